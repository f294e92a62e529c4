"""Fine-tuning: one task for each kind of label."""

from .task import Task, find_task, load_task


__all__ = ["Task", "find_task", "load_task"]
