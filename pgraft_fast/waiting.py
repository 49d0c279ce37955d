"""How torch's threads wait for each other, which is settled when torch is loaded.

By default a thread that has done its part spins for milliseconds. Where other processes want the cores it spins away
the time of the thread that it waits for, tens of thousands of times in a run. Passive waiting sleeps instead; libgomp
is told to spin for some 0.3 ms before, the gap between two operations: it costs nothing on a quiet machine, and on a
busy one less than to sleep at each gap.
"""

import os
import sys
from typing import Any

_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
# Any of these is a user's word on the matter.
NAMES = (*_PASSIVE, "KMP_BLOCKTIME", "KMP_LIBRARY")
# What the environment said when torch was loaded, as far as we were there before.
_at_load: dict[str, str] | None = None


def wait_passively() -> None:
    """For this process, if torch is not loaded yet, and for those that it starts; a user's own setting wins."""
    global _at_load  # noqa: PLW0603
    if _at_load is None and "torch" in sys.modules:
        _at_load = _settings(os.environ)
    os.environ.update(passive_environment())
    if _at_load is None:
        _at_load = _settings(os.environ)


def passive_environment() -> dict[str, str]:
    """The environment of a process to start: ours, with passive waiting unless it says how to wait."""
    return {**os.environ, **({} if _settings(os.environ) else _PASSIVE)}


def waiting() -> dict[str, Any]:
    """What is in force: {"policy": "passive", "active" or "default", "set_by": "pgraft-fast", "user" or None,
    "settings": {name: value}}."""
    settings = _in_force()
    policy = "default"
    if settings:
        passive = (
            settings.get("OMP_WAIT_POLICY", "").strip().upper() == "PASSIVE" or settings.get("KMP_BLOCKTIME") == "0"
        )
        policy = "passive" if passive else "active"
    return {"policy": policy, "set_by": (_author(settings) if settings else None), "settings": settings}


def is_settled() -> bool:
    """Whether we or the user said how this process waits before torch was loaded."""
    return bool(_in_force())


def _in_force() -> dict[str, str]:
    return _settings(os.environ) if _at_load is None else _at_load


def _author(settings: dict[str, str]) -> str:
    return "pgraft-fast" if settings == _PASSIVE else "user"


def _settings(environment: Any) -> dict[str, str]:
    return {name: environment[name] for name in NAMES if name in environment}
