"""The tasks of configs, by name."""

from typing import Any

from pydantic import TypeAdapter

from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task

TaskSettings = DigitsSettings


def load_task(settings: TaskSettings) -> Task:
    """The task of a config. Raises InputError, CheckpointError."""
    return digits_task(settings)


def task_of(values: dict[str, Any]) -> Task:
    """As `load_task`, of the values of a config."""
    return load_task(TypeAdapter(TaskSettings).validate_python(values))
