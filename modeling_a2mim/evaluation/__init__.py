"""What a model is worth: metrics and intervals, frozen features, corrupted images, errors."""
