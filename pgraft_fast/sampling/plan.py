"""Which steps of a trajectory run, which states are kept, and where the tuned model hands over."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError

_SAME_TIME = 1e-9


@dataclass(frozen=True)
class Plan:
    """Indices into the grid. first, last: steps first ... last - 1 run. handover: steps below it use the tuned model.

    keep: {index: cuts whose state is the one at this index}.
    """

    first: int
    last: int
    handover: int
    keep: dict[int, list[float]]


def make_plan(
    schedule: Schedule,
    grid: Tensor,
    *,
    cuts: Sequence[float],
    cut: float | None,
    cut_logsnr: float | None,
    start: float | None,
    stop: float | None,
) -> Plan:
    """Cuts are found by log-SNR, so they mean the same noise on any grid. Raises InputError."""

    def index_of(share: float) -> int:
        return _first_at_or_below(schedule, grid, schedule.cut_logsnr(share))

    if cut is not None and cut_logsnr is not None:
        raise InputError("give cut or cut_logsnr, not both")
    handover = 0
    if cut is not None:
        handover = index_of(cut)
    elif cut_logsnr is not None:
        handover = _first_at_or_below(schedule, grid, cut_logsnr)
    first = 0 if start is None else index_of(start)
    last = grid.numel() - 1 if stop is None else index_of(stop)
    if first >= last:
        raise InputError(f"start={start} and stop={stop} leave no step in between")
    keep: dict[int, list[float]] = {}
    for share in dict.fromkeys(cuts if stop is None else (*cuts, stop)):
        index = index_of(share)
        if not first <= index <= last:
            raise InputError(f"cut={share} is outside the part of the trajectory that runs")
        keep.setdefault(index, []).append(share)
    return Plan(first, last, handover, keep)


def _first_at_or_below(schedule: Schedule, grid: Tensor, logsnr: float) -> int:
    """The first grid index whose state is no noisier than this log-SNR (to rounding)."""
    return int((grid > float(schedule.t_of_logsnr(logsnr)) + _SAME_TIME).sum())
