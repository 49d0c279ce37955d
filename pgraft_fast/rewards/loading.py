"""A user's own reward, from `file.py:function`."""

from collections.abc import Callable
from pathlib import Path

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.neighbours import load_file
from pgraft_fast.rewards.protocol import one_line


def load_reward(spec: str) -> Callable[..., object]:
    """Import `path/to/file.py:function` and return the function. The file's code runs, and may import what lies beside
    it, see `neighbours`. Raises RewardError.
    """
    file, _, attribute = spec.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not attribute:
        raise RewardError(f"reward {spec!r}: expected file.py:function")
    if not path.is_file():
        raise RewardError(f"reward {spec!r}: there is no file {path}")
    try:
        module = load_file(path)
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {one_line(error)}"
        raise RewardError(f"reward {spec!r}: importing {path} raised {message}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RewardError(f"reward {spec!r}: {path} has no function {attribute!r}")
    return function
