"""The tasks of configs, by name."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pgraft_fast.schema import Settings
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.layouts.task import LayoutsSettings, layouts_task
from pgraft_fast.tasks.molecules.task import MoleculesSettings, molecules_task

_DEFAULT = "digits"
_TASKS: dict[type[Settings], Callable[..., Task]] = {
    DigitsSettings: digits_task,
    LayoutsSettings: layouts_task,
    MoleculesSettings: molecules_task,
}
TaskSettings = Annotated[
    DigitsSettings
    | LayoutsSettings
    | MoleculesSettings,
    Field(discriminator="name"),
]  # fmt: skip
NAMES = tuple(settings.model_fields["name"].default for settings in _TASKS)


def named(values: Any) -> Any:
    """The values of a config's task with its name, which is "digits" where there is none."""
    return {"name": _DEFAULT, **values} if isinstance(values, dict) else values


def load_task(settings: TaskSettings) -> Task:
    """The task of a config. Raises InputError, CheckpointError."""
    return _TASKS[type(settings)](settings)


def task_of(values: dict[str, Any]) -> Task:
    """As `load_task`, of the values of a config."""
    return load_task(TypeAdapter(TaskSettings).validate_python(named(values)))
