"""Image classification: one class, several classes or a number for each image."""
