"""Packages that come with an extra: asked for before any work that needs them."""

import importlib.util

from pgraft_fast.errors import InputError

# Of the command line: its options, reports, figures, the digits, the curves of a run.
CLI = ("tyro", "jinja2", "matplotlib", "sklearn", "tensorboard")
REPORT = ("jinja2", "matplotlib")


def need(what: str, *modules: str, extra: str = "cli") -> None:
    """Raise InputError, which says how to install them, where modules are missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}, not installed: pip install 'pgraft-fast[{extra}]'")
