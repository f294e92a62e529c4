"""Fine-tuning: one task for each kind of label."""

from .task import Task, arguments_of, find_task, load_task


__all__ = ["Task", "arguments_of", "find_task", "load_task"]
