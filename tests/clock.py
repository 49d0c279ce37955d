"""A clock that a test turns by hand."""

from collections.abc import Callable
from functools import wraps


class Clock:
    """Seconds that pass only where the test lets them: `clock.now += 1.0`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def during(self, function: Callable, seconds: float) -> Callable:
        """The function, with so many seconds passing in each of its calls."""

        @wraps(function)
        def timed(*arguments):
            self.now += seconds
            return function(*arguments)

        return timed
