"""Cases that `make test` leaves to `make test-faults`."""

from typing import Any

import pytest


def repeats(*cases: Any) -> list[Any]:
    """Cases whose mechanism others have, too: run by make test-faults."""
    return [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.faults) for one in cases]
