"""What masked pre-training teaches: interactions, frequencies, reconstructions; numbers first, then a figure."""
