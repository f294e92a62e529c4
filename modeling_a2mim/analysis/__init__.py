"""What masked pre-training teaches: numbers first, then a figure."""
