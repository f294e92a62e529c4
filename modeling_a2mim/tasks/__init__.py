"""Fine-tuning: one task for each kind of label."""
