"""The training loop: a Trainer that resumes exactly, checkpoints, schedules, callbacks."""
