"""A clock that a test turns by hand: time that work takes by its count, however busy the machine is."""

from collections.abc import Callable
from functools import wraps


class Clock:
    """Seconds that pass only where the test lets them: `clock.now += 1.0`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        """This and the next in the place of the module `time`."""
        return self.now

    def perf_counter_ns(self) -> int:
        return round(1e9 * self.now)

    def during(self, function: Callable, seconds: float) -> Callable:
        """The function, with so many seconds passing in each of its calls."""

        @wraps(function)
        def timed(*arguments, **more):
            self.now += seconds
            return function(*arguments, **more)

        return timed
