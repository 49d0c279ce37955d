"""A user's own reward, from `file.py:function`."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

from pgraft_fast.errors import RewardError


def load_reward(spec: str) -> Callable[..., object]:
    """Import `path/to/file.py:function` and return the function. The file's code runs. Raises RewardError."""
    file, _, attribute = spec.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not attribute:
        raise RewardError(f"reward {spec!r}: expected file.py:function")
    if not path.is_file():
        raise RewardError(f"reward {spec!r}: there is no file {path}")
    name = f"pgraft_fast_reward_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        raise RewardError(f"reward {spec!r}: importing {path} raised {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RewardError(f"reward {spec!r}: {path} has no function {attribute!r}")
    return function
