"""What watching calls of a pipeline tells of it; whether its driven loop does the same."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers
from pgraft_fast.errors import InputError, PgraftError
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driver import Driver, State, opened, seeds_of
from pgraft_fast.pipelines.loop import Loop, NotServedError
from pgraft_fast.pipelines.media import differ
from pgraft_fast.pipelines.record import Record, record
from pgraft_fast.pipelines.times import Times

_STEPS, _ROWS = 4, 2
# Root mean squares of differences as shares of what is compared: rounding, other orders of rows, no more.
_ALLOWED = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}
# Of angles atan2(sigma, alpha); a timestep between two entries of a table is interpolated in two ways.
_LEVEL = 0.03
DENOISERS = ("transformer", "unet")


@dataclass(frozen=True)
class Facts:
    """guided: as the call asks for; unguided: the same where there is no guidance to switch off. begin: time t at which
    trajectories start, 1 is noise. noise: whether they start from plain noise, and the seeds decide nothing else.
    lowest: noise level t down to which the denoiser is asked; below it another network is. media: what one call
    returned.
    """

    pipe: Any
    guided: "Way"
    unguided: "Way"
    times: Times
    schedule: Schedule
    parameterization: str
    denoiser: str
    begin: float
    noise: bool
    lowest: float
    media: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample's state."""
        return self.guided.state.shape


@dataclass(frozen=True)
class Way:
    """One way to call the pipeline. evaluations: of the denoiser, a sample and step."""

    calls: Calls
    state: State
    evaluations: int


def facts_of(calls: Calls, number: int = 0) -> Facts:
    """Watch the pipeline, and check that driven it does the same. Raises InputError, which says what was seen."""
    calls.check()
    name = type(calls.pipe).__name__
    try:
        own = _recorded(calls, number)
    except InputError:
        calls = replace(calls, repeat=True)
        own = _recorded(calls, number)
    _check_states(name, own)
    try:
        return _facts(name, calls, own, number)
    except PgraftError:
        raise
    except Exception as error:
        raise NotServedError(f"{name}: its loop cannot be driven, it raised {_told(error)}") from error


def _facts(name: str, calls: Calls, own: Record, number: int) -> Facts:
    denoiser = _denoiser(calls.pipe, own)
    calls, loop = opened(calls, number, _ROWS)
    start, start_time = loop.start[:_ROWS], loop.start_time
    state, times = _state(loop), Times.of(calls.pipe.scheduler, *loop.levels)
    schedule = _schedule(calls.pipe.scheduler, times, own.mu)
    _check_levels(name, own, schedule, times)
    guided = _way(calls, state, own, number, denoiser)
    unguided, (calls, theirs) = guided, _unguided(calls, number, own)
    if theirs is not own:
        unguided = _way(calls, _state(opened(calls, number, _ROWS)[1]), theirs, number, denoiser)
    return Facts(
        pipe=calls.pipe, guided=guided, unguided=unguided, times=times, schedule=schedule,
        parameterization=parameterization_from_diffusers(calls.pipe.scheduler), denoiser=denoiser,
        begin=min(1.0, times.back(float(start_time))),  # type: ignore[arg-type]
        noise=_is_noise(start) and not _is_seeded(guided, own, number), media=own.media,
        lowest=_lowest(guided, times, own, number, denoiser),
    )  # fmt: skip


def _state(loop: Loop) -> State:
    try:
        return State.of(loop, _ROWS)
    finally:
        loop.close()


def _way(calls: Calls, state: State, own: Record, number: int, denoiser: str) -> Way:
    """Checked. The times' dtype is one that gives the same as the pipeline's own."""
    rows = max(1, round(own.nets.get(denoiser, _ROWS) / _ROWS))
    try:
        _compare(calls, state, own, number)
    except NotServedError:
        exact = replace(state, time=own.steps[0].t.dtype)
        if exact == state:
            raise
        state = exact
        _compare(calls, state, own, number)
    return Way(calls, state, rows)


def _recorded(calls: Calls, number: int) -> Record:
    try:
        return record(calls.pipe, calls.of(number, _ROWS, seeds_of(0, range(_ROWS)), _STEPS))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(calls.pipe).__name__}: its own call fails with these arguments: {_told(error)}"
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_states(name: str, own: Record) -> None:
    for before, after in zip(own.steps, own.steps[1:], strict=False):
        if before.next.shape != after.sample.shape or not torch.equal(before.next, after.sample):
            raise NotServedError(f"{name}: its loop changes the state between two steps, it cannot be fine-tuned here")


def _check_levels(name: str, own: Record, schedule: Schedule, times: Times) -> None:
    for step in own.steps:
        if step.level is None:
            continue
        alpha, sigma = (float(one) for one in schedule.alpha_sigma(times.back(float(step.t.reshape(-1)[0]))))
        off = abs(math.atan2(sigma, alpha) - math.atan2(step.level[1], step.level[0]))
        if off > _LEVEL:
            raise NotServedError(
                f"{name}: at timestep {float(step.t.reshape(-1)[0]):g} its scheduler mixes {step.level[0]:.3f} of the "
                f"data and {step.level[1]:.3f} of noise, not {alpha:.3f} and {sigma:.3f} as by its settings"
            )


def _compare(calls: Calls, state: State, own: Record, number: int) -> None:
    name, driver = type(calls.pipe).__name__, Driver(calls, state)
    allowed = _ALLOWED.get(state.dtype, 1e-4)
    seeds = seeds_of(0, range(_ROWS))
    try:
        driver.start(number, seeds)
        for place, step in enumerate([*own.steps, own.steps[0]]):
            t, x = float(step.t.reshape(-1)[0]), step.x[:_ROWS]
            with torch.no_grad():
                found = driver.output(x, t, number)
            off = _off(found, step.out[:_ROWS].to(found))
            if off > allowed:
                raise NotServedError(
                    f"{name}: the output of step {place % len(own.steps)} is another one (off by {off:.2g}) than for "
                    "the same state and time in its own loop: it depends on more than these"
                )
        media = driver.finish(own.steps[-1].next[:_ROWS], number)
        if differ(media, own.media, allowed):
            raise NotServedError(f"{name}: from the same final state it makes something else than its own loop")
        first = own.steps[0]
        driver.start(number, seeds[:1])
        with torch.no_grad():
            found = driver.output(first.x[:1], float(first.t.reshape(-1)[0]), number)
        off = _off(found, first.out[:1].to(found))
        if off > allowed:
            raise NotServedError(f"{name}: the output of a sample alone is off by {off:.2g} from that beside a second")
    finally:
        driver.close()


def _off(found: Tensor, expected: Tensor) -> float:
    size = float(expected.float().square().mean().sqrt())
    off = float((found.float() - expected.float()).square().mean().sqrt()) / max(size, 1e-12)
    return math.inf if math.isnan(off) else off


def _denoiser(pipe: Any, own: Record) -> str:
    known = [name for name in DENOISERS if name in own.nets]
    if known:
        return known[0]
    if not own.nets:
        raise NotServedError(f"{type(pipe).__name__}: no network of its components is called in its loop")
    sizes = {name: sum(one.numel() for one in getattr(pipe, name).parameters()) for name in own.nets}
    return max(sizes, key=lambda name: sizes[name])


def _unguided(calls: Calls, number: int, own: Record) -> tuple[Calls, Record]:
    """Without guidance: what asks the networks for fewer rows. A scale that the network itself takes stays."""
    found = True
    while found:
        found = False
        for without in calls.without_guidance():
            theirs = _recorded(without, number)
            if sum(theirs.nets.values()) < sum(own.nets.values()):
                calls, own, found = without, theirs, True
                break
    return calls, own


def _lowest(way: Way, times: Times, own: Record, number: int, denoiser: str) -> float:
    """By bisection, on the safe side."""
    loop = Loop(way.calls.pipe, way.calls.of(number, _ROWS, seeds_of(0, range(_ROWS))))
    x = way.state.laid(own.steps[-1].x[:_ROWS])

    @torch.no_grad()
    def asked(t: float) -> bool:
        loop.output(x, torch.tensor(times.of_time(t)).to(way.state.time))
        return denoiser in loop.called

    try:
        last = times.back(float(own.steps[-1].t.reshape(-1)[0]))
        if asked(last):
            return 0.0
        low, high = last, times.back(float(own.steps[0].t.reshape(-1)[0]))
        while high - low > _LEVEL / 10.0:
            middle = (low + high) / 2.0
            low, high = (low, middle) if asked(middle) else (middle, high)
        return high
    finally:
        loop.close()


def _schedule(scheduler: Any, times: Times, mu: float | None) -> Schedule:
    """Of the states as the denoiser sees them."""
    if times.angle:
        return Schedule.cosine(offset=0.0, t_max=times.scale)
    return Schedule.from_diffusers(scheduler, _shift(scheduler.config, mu))


def _shift(config: Any, mu: float | None) -> float | None:
    """Of a flow's times, where it depends on the sample's size: exp(mu), or mu where it is linear."""
    if not config.get("use_dynamic_shifting"):
        return None
    if mu is None:
        return 1.0
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def _is_seeded(way: Way, own: Record, number: int) -> bool:
    """Whether outputs depend on the seeds of a call, as where a picture is encoded with noise."""
    first, found = own.steps[0], []
    driver = Driver(way.calls, way.state)
    try:
        for seed in (0, 1):
            driver.start(number, seeds_of(seed, range(_ROWS)))
            with torch.no_grad():
                found.append(driver.output(first.x[:_ROWS], float(first.t.reshape(-1)[0]), number))
    finally:
        driver.close()
    return not torch.equal(*found)


def _is_noise(start: Tensor) -> bool:
    """Whether first states are the numbers that the generators of their seeds draw, in whatever order and scale."""
    for row, seed in zip(start, seeds_of(0, range(_ROWS)), strict=True):
        drawn = torch.randn(row.numel(), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        mine, theirs = row.flatten().float().cpu().sort().values, drawn.to(row.dtype).float().sort().values
        scale = float(theirs.square().mean().sqrt() / mine.square().mean().sqrt().clamp(min=1e-12))
        if not torch.allclose(mine * scale, theirs, rtol=1e-2, atol=1e-2):
            return False
    return True
