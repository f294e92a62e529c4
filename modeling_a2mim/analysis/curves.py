"""The loss over the steps of a run, as a picture."""
