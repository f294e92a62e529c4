"""From files to batches: sources of rows, how images are decoded and augmented, in which order they come."""
