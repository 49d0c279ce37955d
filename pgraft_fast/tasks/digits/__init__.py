"""Handwritten digits: the smallest real task, with everything shipped."""

from pgraft_fast.tasks.digits.task import DigitsSettings, digits_task

__all__ = ["DigitsSettings", "digits_task"]
