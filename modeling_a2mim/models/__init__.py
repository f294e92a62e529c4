"""Models for tasks: classifier, backbone, detector, linear probe; and how they take over weights."""
