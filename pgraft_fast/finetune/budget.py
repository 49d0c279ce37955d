"""A budget that a run stops inside."""

from collections.abc import Callable

from pgraft_fast.amounts import apart, duration, energy
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.settings import BudgetSettings

_SLOWEST_ROUNDS = 0.95


class Budget:
    """Decides whether the next piece of work still fits. `reserve`, `reserve_joules`: kept back for saving and the
    evaluation at the end.
    """

    def __init__(self, settings: BudgetSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._rounds: list[float] = []
        self._joules: list[float] = []
        self.reserve = self.reserve_joules = 0.0

    def round_took(self, seconds: float, joules: float = 0.0) -> None:
        """Learn from a finished round."""
        self._rounds.append(seconds)
        self._joules.append(joules)

    def seconds_left(self) -> float:
        """Wall seconds until the reserve must be touched; infinite without a time budget."""
        return float("inf") if self._limit is None else self._limit - self._ledger.elapsed - self.reserve

    @property
    def _limit(self) -> float | None:
        """Wall seconds, with what is left of GPU-hours spent on as many devices as there are now."""
        ledger, hours, wall = self._ledger, self._settings.gpu_hours, self._settings.wall_seconds
        if hours is None:
            return wall
        shared = ledger.elapsed + (3600.0 * hours - ledger.device_seconds) / ledger.ranks
        return shared if wall is None else min(wall, shared)

    def joules_left(self) -> float:
        """Joules until the reserve must be touched; infinite without such a budget."""
        limit = self._settings.joules
        return float("inf") if limit is None else limit - self._ledger.joules_now() - self.reserve_joules

    def calls_left(self) -> float:
        """Model calls left; infinite without such a budget."""
        limit = self._settings.model_calls
        return float("inf") if limit is None else limit - self._ledger.model_calls

    def allows_round(self, calls: int) -> bool:
        """Whether another round of so many calls, as slow as the slow ones so far, still fits."""
        return (
            calls <= self.calls_left()
            and _slow(self._rounds) <= self.seconds_left()
            and _slow(self._joules) <= self.joules_left()
        )

    def why_not(self, calls: int) -> str:
        """One line for the log once `allows_round` is False."""
        if calls > self.calls_left():
            return f"budget: a round needs {calls:,} model calls, {max(0, int(self.calls_left())):,} are left"
        if _slow(self._joules) > self.joules_left():
            limit, kept = self._settings.joules, self.reserve_joules
            return _what_is_left(energy, self._joules, self.joules_left(), limit, kept)
        return _what_is_left(duration, self._rounds, self.seconds_left(), self._limit, self.reserve)

    def check_first_round(self, calls: int) -> None:
        """Raise InputError before any work where not even one round fits."""
        if not self.allows_round(calls):
            raise InputError(f"{self.why_not(calls)}: not one round fits; raise [budget] or lower [sample] and [train]")

    def time_is_up(self) -> bool:
        """Whether only the reserve is left, of seconds or joules."""
        return self.seconds_left() <= 0.0 or self.joules_left() <= 0.0


def _what_is_left(
    tell: Callable[[float, int], str], rounds: list[float], left: float, limit: float | None, kept: float
) -> str:
    if rounds:
        takes, rest = apart(tell, _slow(rounds), max(0.0, left))
        return f"budget: a round takes {takes}, {rest} are left"
    also = f", {tell(kept, 3)} are kept for saving and evaluation" if kept > 0.0 else ""
    return f"budget: of {tell(limit or 0.0, 3)} nothing is left for a first round{also}"


def _slow(values: list[float]) -> float:
    """What a slow round takes of it; 0 before the first."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(_SLOWEST_ROUNDS * len(ordered)))]
