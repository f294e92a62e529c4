"""Object detection and instance segmentation: boxes, and masks, of objects."""
