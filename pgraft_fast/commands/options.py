"""Options of the command line: their bounds are checked before any work, and a result must have a place to go."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pgraft_fast.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def checked(function: F) -> F:
    """The function of a command, called only with options within the bounds of their types. Raises InputError."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
        for name, hint in get_type_hints(function, include_extras=True).items():
            if name in arguments:
                _check(_option(name, parameters[name]), hint, arguments[name])
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def check_writable(option: str, path: str | Path | None) -> None:
    """Before any work. Raises InputError."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise InputError(f"{option} {path}: cannot be written there; the folder must exist")


def _option(name: str, parameter: inspect.Parameter) -> str:
    return name if parameter.kind is parameter.POSITIONAL_ONLY else f"--{name.replace('_', '-')}"


def _check(option: str, hint: Any, value: object) -> None:
    if isinstance(value, str | Path) and "\0" in str(value):
        raise InputError(f"{option} {str(value)!r}: a zero byte is in it")
    try:
        TypeAdapter(hint, config=_STRICT).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise InputError(f"{option} {value}: {message[0].lower()}{message[1:]}") from error
