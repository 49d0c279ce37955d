"""Kinds of goals of whole calls and rounds: at most a number, so many times faster, not slower."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgraft_fast_benchmarks.harness import Row

# By how much the median may be the longer one before no noise excuses it.
_MOST_NOISE = 1.05


@dataclass(frozen=True)
class Goal:
    """What all goals say: which case, at full size. peers: others of it that are compared with, the fastest of them.

    mine: the provider of ours.
    """

    case: str
    batch: int
    steps: int = 50
    peers: tuple[str, ...] = ("diffusers",)
    mine: str = "ours"

    @property
    def name(self) -> str:
        """Of the case."""
        return f"{self.case}, batch {self.batch}"

    @property
    def text(self) -> str:
        """In words."""
        raise NotImplementedError

    def judge(self, rows: Sequence[Row]) -> tuple[str, str] | None:
        """What was measured, and met or missed; "no number" where a provider has none; None without the case."""
        here = [
            row for row in rows if (row["case"], row["batch"], row["steps"]) == (self.case, self.batch, self.steps)
        ]  # fmt: skip
        if not here:
            return None
        timed = [row for row in here if row["p50_ms"] is not None]
        mine = next((row for row in timed if row["provider"] == self.mine), None)
        peer = min((row for row in timed if row["provider"] in self.peers), key=lambda row: row["p50_ms"], default=None)
        judgement = None if mine is None else self._judge(mine, peer)
        return ("-", "no number") if judgement is None else judgement

    def _judge(self, mine: Row, peer: Row | None) -> tuple[str, str] | None:
        raise NotImplementedError


@dataclass(frozen=True)
class AtMost(Goal):
    """Our number in a column is at most the limit; strict: below it."""

    column: str = "non_model_share"
    limit: float = 0.0
    strict: bool = False

    @property
    def text(self) -> str:
        return f"{self.column} {'<' if self.strict else '<='} {self.limit:g}"

    def _judge(self, mine: Row, peer: Row | None) -> tuple[str, str] | None:
        value = mine.get(self.column)
        if value is None:
            return None
        return f"{value:.3g}", _verdict(value < self.limit if self.strict else value <= self.limit)


@dataclass(frozen=True)
class Times(Goal):
    """A peer's number in a column is at least `factor` times ours."""

    column: str = "p50_ms"
    factor: float = 1.0

    @property
    def text(self) -> str:
        return f"{_named(self.peers)} {self.column} >= {self.factor:g}x ours"

    def _judge(self, mine: Row, peer: Row | None) -> tuple[str, str] | None:
        if peer is None or not mine.get(self.column) or peer.get(self.column) is None:
            return None
        ratio = peer[self.column] / mine[self.column]
        return f"{ratio:.2f}x", _verdict(ratio >= self.factor)


@dataclass(frozen=True)
class NotSlower(Goal):
    """Our median is at most the peer's.

    "met (noise)": it is longer, by at most 5 %, and each median lies between the other's p20 and p80 or beyond it on
    the good side.
    """

    @property
    def text(self) -> str:
        return f"not slower than {_named(self.peers)}"

    def _judge(self, mine: Row, peer: Row | None) -> tuple[str, str] | None:
        if peer is None:
            return None
        ratio = mine["p50_ms"] / peer["p50_ms"]
        noise = ratio <= _MOST_NOISE and mine["p50_ms"] <= peer["p80_ms"] and mine["p20_ms"] <= peer["p50_ms"]
        return f"{ratio:.3f} of {peer['provider']}", "met (noise)" if ratio > 1.0 and noise else _verdict(ratio <= 1.0)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _named(peers: tuple[str, ...]) -> str:
    return peers[0] if len(peers) == 1 else "the fastest other"
