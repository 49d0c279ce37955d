"""Run configs: TOML into a closed schema, errors in one line."""

import difflib
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError, field_validator

from pgraft_fast.errors import InputError
from pgraft_fast.files import text_of
from pgraft_fast.rewards.urls import without_secrets
from pgraft_fast.runs.settings import RunSettings
from pgraft_fast.tasks.digits import DigitsSettings
from pgraft_fast.tasks.known import TaskSettings, named

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_LONGEST = 80


class RunConfig(RunSettings):
    """A whole run of a task that is known by name."""

    task: TaskSettings = DigitsSettings()

    @field_validator("task", mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return named(values)


def read_config(path: Path, overrides: dict[str, Any]) -> RunConfig:
    """Read and check a TOML file before any work. overrides: {"run": ..., "task.reward": ...}, None is left out.

    A reward given as file.py:function in the file is looked up from the file's folder. Raises InputError.
    """
    data = read_toml(path, {})
    task = data.get("task")
    if isinstance(task, dict) and isinstance(task.get("reward"), str) and ".py:" in task["reward"]:
        task["reward"] = str(path.parent / task["reward"])
    override(data, overrides)
    return checked(RunConfig, data, str(path))


def read_toml(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """A TOML file with values replaced: {"table.key": value}, None is left out. Raises InputError."""
    try:
        # A byte order mark is no part of the text, and TOML has no word for one.
        data = tomllib.loads(text_of(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    override(data, overrides)
    return data


def override(data: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Replace values in place."""
    for key, value in overrides.items():
        if value is not None:
            _set(data, key.split("."), value)


def checked(schema: type[ConfigT], data: dict[str, Any], source: str) -> ConfigT:
    """Validate; on errors raise InputError in one line: source, key, what is wrong, nearest valid name."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # Names and values of the file are in it as they stand.
        messages = [" ".join(_explain(schema, item).splitlines()) for item in error.errors()]
        raise InputError(f"{source}: {'; '.join(messages)}") from error


def _explain(schema: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    if item["type"] == "union_tag_invalid":
        name, known = item["ctx"]["discriminator"].strip("'"), item["ctx"]["expected_tags"].replace(", ", " or ")
        return f"{'.'.join(location)}.{name} = {shown(item['ctx']['tag'])}: input should be {known}"
    field = schema.model_fields.get(location[0]) if location else None
    if field is not None and field.discriminator is not None:
        # Which of the tables it is follows from its name.
        del location[1:2]
    key = ".".join(location)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is unknown{_nearest(schema, location)}"
    if item["type"] == "missing":
        return f"{key} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return without_secrets(f"{key} = {shown(item['input'])}: {message[0].lower()}{message[1:]}")


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = without_secrets(repr(value))
    except (ValueError, RecursionError):
        # Whole numbers have no limit in TOML, but their text has one.
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _nearest(schema: type[BaseModel], location: list[str]) -> str:
    """The most similar key of the same table, else of any table."""
    names = _keys(schema)
    table = ".".join(location[:-1])
    here = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == table]
    prefix = f"{table}." if table else ""
    close = [f"{prefix}{name}" for name in difflib.get_close_matches(location[-1], here, 1, 0.7)]
    close += [name for name in names if name.rpartition(".")[2] == location[-1]]
    close += difflib.get_close_matches(".".join(location), names, 1, 0.0)
    return f"; did you mean {close[0]}?"


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in schema.model_fields.items():
        names.append(f"{prefix}{name}")
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names.extend(_keys(kind, f"{prefix}{name}."))
            elif isinstance(kind, type) and is_dataclass(kind):
                names.extend(f"{prefix}{name}.{attribute.name}" for attribute in fields(kind))
    return names


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            # Left for the check of the whole, which names the key and what was given.
            return
    data[keys[-1]] = value
