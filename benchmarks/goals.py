"""The goals of the operations, as data beside the cases: how many times faster, or how near to a copy."""

from dataclasses import dataclass

from pgraft_fast_benchmarks.harness import Row


@dataclass(frozen=True)
class Goal:
    """faster: the provider takes at least `factor` times our time; else we take at most `factor` times its time."""

    op: str
    case: str
    shape: tuple[int, ...]
    provider: str
    factor: float
    faster: bool = True

    @property
    def name(self) -> str:
        """Of the case."""
        return f"{self.op} {self.case} {'x'.join(map(str, self.shape))}"

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.factor:g}x {self.provider}" if self.faster else f"within {self.factor:g}x {self.provider}"

    def judge(self, rows: list[Row]) -> tuple[str, str] | None:
        """What was measured, and met or missed; None where a time is missing."""
        ratio = self.ratio(rows)
        return None if ratio is None else (f"{ratio:.2f}x", "met" if self.met(ratio) else "missed")

    def ratio(self, rows: list[Row]) -> float | None:
        """The measured one, in the sense of the goal; None where a time is missing."""
        mine, theirs = self._time(rows, "ours"), self._time(rows, self.provider)
        if mine is None or theirs is None:
            return None
        return theirs / mine if self.faster else mine / theirs

    def met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.factor if self.faster else ratio <= self.factor

    def _time(self, rows: list[Row], provider: str) -> float | None:
        for row in rows:
            key = row["op"], row["case"], tuple(row["shape"]), row["dtype"], row["provider"]
            if key == (self.op, self.case, self.shape, "float32", provider):
                return row["p50_ms"]
        return None


_BATCH, _ONE, _GROUPS = (16, 4, 64, 64), (1, 4, 64, 64), (65_536, 16)

GOALS = (
    Goal("solver_step", "ddim", _BATCH, "diffusers", 12.0),
    Goal("solver_step", "ddim", _BATCH, "copy", 3.0, faster=False),
    Goal("solver_step", "ddim eta=1", _BATCH, "diffusers", 6.0),
    Goal("solver_step", "ddpm", _BATCH, "diffusers", 6.0),
    Goal("solver_step", "dpmpp_2m", _BATCH, "diffusers", 10.0),
    Goal("solver_step", "ddim", _ONE, "diffusers", 5.0),
    Goal("philox_normal", "noise", (10**7,), "torch", 4.0),
    Goal("reward_filter", "top 4", _GROUPS, "torch", 4.0),
    Goal("reward_filter", "top 4 + gather", _GROUPS, "torch", 1.5),
    Goal("reward_filter", "top 4 + gather", _GROUPS, "copy", 1.5, faster=False),
    Goal("lora", "rank 32", (32, 4, 8, 8), "base", 1.05, faster=False),
    Goal("weighted_mse", "forward+backward", (64, 4, 64, 64), "eager", 4.0),
)
