"""Cases that `make test` leaves to `make test-faults`."""

from typing import Any

import pytest


def repeats(*cases: Any) -> list[Any]:
    """Cases whose mechanism others have, too: run by make test-faults."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.faults) for case in cases]
