"""The command line as an object: what makes a function one of its subcommands."""

import functools
from collections.abc import Callable
from typing import Any

import tyro

from pgraft_fast.commands.options import F, checked
from pgraft_fast.errors import InputError
from pgraft_fast.ranks.environment import of_ranks

app = tyro.extras.SubcommandApp()


def command(name: str | None = None, on_ranks: bool = False) -> Callable[[F], F]:
    """A subcommand; its options are checked first. on_ranks: whether several processes make it together."""
    add = app.command(name=name)
    return lambda function: add(checked(function if on_ranks else _alone(function)))


def _alone(function: F) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if of_ranks():
            name = function.__name__.replace("_", "-")
            raise InputError(f"{name}: one process makes it; start it without torchrun, accelerate launch or srun")
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]
