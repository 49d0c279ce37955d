"""Tasks: what is generated, scored and measured."""

from pgraft_fast.tasks.base import Task

__all__ = ["Task"]
