"""Whether a driven loop does what the pipeline's own call did."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.denoisers import DENOISERS
from pgraft_fast.pipelines.driver import Driver, State
from pgraft_fast.pipelines.loop import NotServedError
from pgraft_fast.pipelines.media import differ, media_of
from pgraft_fast.pipelines.record import Record
from pgraft_fast.sampling.rounding import allowed_for, off


def allowed_of(pipe: Any, state: State) -> float:
    """By the dtypes of the state and of the denoiser."""
    nets = [getattr(pipe, name, None) for name in DENOISERS]
    weights = [next(net.parameters(), None) for net in nets if isinstance(net, nn.Module)]
    dtypes = [state.dtype, *(weight.dtype for weight in weights if weight is not None)]
    return max(allowed_for(dtype, state.device) for dtype in dtypes)


def compare(calls: Calls, state: State, own: Record, number: int) -> None:
    """Raise NotServedError unless the driven loop gives what the pipeline's own call gave: at all of its steps, for a
    sample alone, and at the end.
    """
    name, driver = type(calls.pipe).__name__, Driver(calls, state)
    allowed = allowed_of(calls.pipe, state)
    rows, seeds = calls.rows, calls.seeds()
    try:
        driver.start(number, seeds)
        for place, step in enumerate([*own.steps, own.steps[0]]):
            t, x = float(step.t.reshape(-1)[0]), step.x[:rows]
            with torch.no_grad():
                out = driver.output(x, t, number)
            far = off(out, step.out[:rows].to(out))
            if far > allowed:
                raise NotServedError(
                    f"{name}: the output of step {place % len(own.steps)} is another one (off by {far:.2g}) than for "
                    "the same state and time in its own loop: it depends on more than these"
                )
        media = driver.finish(own.steps[-1].next[:rows], number)
        if differ(media_of(media), media_of(own.media), allowed):
            raise NotServedError(f"{name}: from the same final state it makes something else than its own loop")
        if rows == 1:
            return
        first = own.steps[0]
        driver.start(number, seeds[:1])
        with torch.no_grad():
            out = driver.output(first.x[:1], float(first.t.reshape(-1)[0]), number)
        far = off(out, first.out[:1].to(out))
        if far > allowed:
            raise NotServedError(f"{name}: the output of a sample alone is off by {far:.2g} from that beside a second")
    finally:
        driver.close()


def seeds_decide(calls: Calls, state: State, own: Record, number: int) -> tuple[bool, bool]:
    """Whether outputs depend on the seeds of a call, and whether those of a sample on the seeds of others."""
    first = own.steps[0]
    driver, allowed = Driver(calls, state), allowed_of(calls.pipe, state)
    count = calls.rows

    @torch.no_grad()
    def output(seeds: Sequence[int], rows: slice) -> Tensor:
        driver.start(number, seeds)
        return driver.output(first.x[:count][rows], float(first.t.reshape(-1)[0]), number)

    seeds, every, last = calls.seeds(), slice(None), slice(count - 1, count)
    try:
        out = output(seeds, every)
        if torch.equal(out, output(calls.seeds(1), every)):
            return False, count == 1
        return True, count == 1 or off(output(seeds[last], last), out[last]) > allowed
    finally:
        driver.close()


def is_noise(start: Tensor, seeds: Sequence[int]) -> bool:
    """Whether first states are the numbers that the generators of their seeds draw, in whatever order and scale."""
    for row, seed in zip(start, seeds, strict=True):
        drawn = torch.randn(row.numel(), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        mine, theirs = row.flatten().float().cpu().sort().values, drawn.to(row.dtype).float().sort().values
        scale = float(theirs.square().mean().sqrt() / mine.square().mean().sqrt().clamp(min=1e-12))
        if not torch.allclose(mine * scale, theirs, rtol=1e-2, atol=1e-2):
            return False
    return True
