"""What watching calls of a pipeline tells of it; whether its driven loop does the same."""

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers
from pgraft_fast.diffusion.parameterization import convert
from pgraft_fast.errors import InputError, PgraftError
from pgraft_fast.pipelines.agreement import allowed_of, compare, is_noise, seeds_decide
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.denoisers import DENOISERS
from pgraft_fast.pipelines.driver import State, opened
from pgraft_fast.pipelines.loop import Loop, NotServedError
from pgraft_fast.pipelines.record import Record, record
from pgraft_fast.pipelines.times import Times
from pgraft_fast.sampling.rounding import off
from pgraft_fast.threads import Team, team_of

_STEPS = 4
# Of angles atan2(sigma, alpha); a timestep between two entries of a table is interpolated in two ways.
LEVEL = 0.03
# Of an x_0, as a share: timesteps between two entries of a table again.
_X_0 = 0.03
# Weights of a part with which a call is small work for one thread, whatever the states.
_SMALL = 1 << 21
_CLIPPING = ("clip_sample", "thresholding")


@dataclass(frozen=True)
class Facts:
    """guided: as the call asks for; unguided: the same where there is no guidance to switch off. begin: time t at which
    trajectories start, 1 is noise. noise: whether they start from plain noise, and the seeds decide nothing else;
    seeded: whether they do.
    alone: whether a sample's seed must be its call's only one, as where one picture is encoded with noise for all.
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
    alone: bool
    seeded: bool
    lowest: float
    media: Any

    def team(self, rows: int) -> Team:
        """For calls of the pipeline that make so many samples."""
        return team_of(getattr(self.pipe, self.denoiser), rows, self.shape, self.guided.state.device)

    @property
    def schedule_of_run(self) -> Schedule:
        """From where trajectories start."""
        return self.schedule if self.begin > 0.999 else self.schedule.starting_at(self.begin)

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
    _check_clipping(name, calls.pipe)
    # How large its states are is not known yet.
    with Team(0.0 if _weights(calls.pipe) < _SMALL else None, torch.device("cpu")):
        calls, own = _first_recorded(calls, number)
    _check_states(name, own)
    try:
        denoiser = _denoiser(calls.pipe, own)
        x = own.steps[0].x
        with team_of(getattr(calls.pipe, denoiser), x.shape[0], x.shape[1:], x.device):
            return _facts(name, calls, own, number, denoiser)
    except PgraftError:
        raise
    except Exception as error:
        raise NotServedError(f"{name}: its loop cannot be driven, it raised {_message(error)}") from error


def way_at(facts: Facts, guidance: float, number: int = 0) -> Way:
    """The pipeline called with another scale of guidance. Raises InputError."""
    calls = replace(facts.guided.calls, guidance=guidance)
    with facts.team(calls.rows):
        own = _recorded(calls, number)
        state = _state(opened(calls, number, calls.rows)[1], calls.rows)
        return _way(calls, state, own, number, facts.denoiser)


def _facts(name: str, calls: Calls, own: Record, number: int, denoiser: str) -> Facts:
    calls, loop = opened(calls, number, calls.rows)
    start, start_time = loop.start[: calls.rows], loop.start_time
    state, times = _state(loop, calls.rows), Times.of(calls.pipe.scheduler, *loop.levels)
    schedule = _schedule(calls.pipe.scheduler, times, own.mu)
    _check_levels(name, own, schedule, times)
    parameterization = parameterization_from_diffusers(calls.pipe.scheduler)
    _check_x_0(name, own, schedule, times, parameterization, allowed_of(calls.pipe, state))
    guided = _way(calls, state, own, number, denoiser)
    seeded, alone = seeds_decide(calls, state, own, number)
    unguided, (calls, theirs) = guided, _unguided(calls, number, own)
    if theirs is not own:
        unguided = _way(calls, _state(opened(calls, number, calls.rows)[1], calls.rows), theirs, number, denoiser)
    return Facts(
        pipe=calls.pipe, guided=guided, unguided=unguided, times=times, schedule=schedule,
        parameterization=parameterization, denoiser=denoiser,
        begin=min(1.0, times.back(float(start_time))),  # type: ignore[arg-type]
        noise=is_noise(start, calls.seeds()) and not seeded, alone=alone, seeded=seeded, media=own.media,
        lowest=_lowest(guided, times, own, number, denoiser),
    )  # fmt: skip


def _weights(pipe: Any) -> int:
    """Of its largest part."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return max((sum(weight.numel() for weight in part.parameters()) for part in parts), default=0)


def _state(loop: Loop, rows: int) -> State:
    try:
        return State.of(loop, rows)
    finally:
        loop.close()


def _way(calls: Calls, state: State, own: Record, number: int, denoiser: str) -> Way:
    """Checked. The times' dtype is one that gives the same as the pipeline's own."""
    rows = max(1, round(own.nets.get(denoiser, calls.rows) / calls.rows))
    try:
        compare(calls, state, own, number)
    except NotServedError:
        exact = replace(state, time=own.steps[0].t.dtype)
        if exact == state:
            raise
        state = exact
        compare(calls, state, own, number)
    return Way(calls, state, rows)


def _first_recorded(calls: Calls, number: int) -> tuple[Calls, Record]:
    """Of several samples in whichever way the pipeline makes them, or of one. Raises what its first try does."""
    try:
        return calls, _recorded(calls, number)
    except InputError as error:
        for other in (replace(calls, repeat=True), replace(calls, rows=1)):
            with contextlib.suppress(InputError):
                return other, _recorded(other, number)
        raise error


def _recorded(calls: Calls, number: int) -> Record:
    try:
        return record(calls.pipe, calls.of(number, calls.rows, calls.seeds(), _STEPS))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(calls.pipe).__name__}: its own call fails with these arguments: {_message(error)}"
        ) from error


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_clipping(name: str, pipe: Any) -> None:
    """A scheduler that cuts x_0 off makes other samples than rollouts do."""
    key = next((key for key in _CLIPPING if getattr(pipe, "scheduler", None) and pipe.scheduler.config.get(key)), None)
    if key is not None:
        raise NotServedError(
            f"{name}: scheduler.{key} = true cuts x_0 off in every step, which rollouts do not; set it to false in "
            f"scheduler/scheduler_config.json, or by pipe.scheduler.register_to_config({key}=False)"
        )


def _check_x_0(name: str, own: Record, schedule: Schedule, times: Times, parameterization: str, allowed: float) -> None:
    """The x_0 that a step makes of an output must be that of the schedule and the parameterization."""
    for step in own.steps:
        if step.x_0 is None:
            continue
        t = times.back(float(step.t.reshape(-1)[0]))
        mine = convert(step.out.float(), step.x.float(), schedule, t, parameterization, "x_0")
        far = off(mine, step.x_0)
        if far > max(allowed, _X_0):
            raise NotServedError(
                f"{name}: its scheduler makes another x_0 of an output than its settings tell (off by {far:.2g}): "
                f"at timestep {float(step.t.reshape(-1)[0]):g}, from {parameterization}"
            )


def _check_states(name: str, own: Record) -> None:
    for before, after in zip(own.steps, own.steps[1:], strict=False):
        # Some bring it to the denoiser's dtype.
        if before.next.shape != after.sample.shape or not torch.equal(before.next.to(after.sample), after.sample):
            raise NotServedError(f"{name}: its loop changes the state between two steps, it cannot be fine-tuned here")


def _check_levels(name: str, own: Record, schedule: Schedule, times: Times) -> None:
    for step in own.steps:
        if not step.levels:
            continue
        alpha, sigma = (float(level) for level in schedule.alpha_sigma(times.back(float(step.t.reshape(-1)[0]))))
        far = [abs(math.atan2(sigma, alpha) - math.atan2(noise, data)) for data, noise in step.levels]
        if min(far) > LEVEL:
            data, noise = step.levels[0]
            raise NotServedError(
                f"{name}: at timestep {float(step.t.reshape(-1)[0]):g} its scheduler mixes {data:.3f} of the data and "
                f"{noise:.3f} of noise, not {alpha:.3f} and {sigma:.3f} as by its settings"
            )


def _denoiser(pipe: Any, own: Record) -> str:
    known = [name for name in DENOISERS if name in own.nets]
    if known:
        return known[0]
    if not own.nets:
        raise NotServedError(f"{type(pipe).__name__}: no network of its components is called in its loop")
    sizes = {name: sum(weight.numel() for weight in getattr(pipe, name).parameters()) for name in own.nets}
    return max(sizes, key=lambda name: sizes[name])


def _unguided(calls: Calls, number: int, own: Record) -> tuple[Calls, Record]:
    """Without guidance: what asks the networks for fewer rows. A scale that the network itself takes stays."""
    fewer = True
    while fewer:
        fewer = False
        for without in calls.without_guidance():
            theirs = _recorded(without, number)
            if sum(theirs.nets.values()) < sum(own.nets.values()):
                calls, own, fewer = without, theirs, True
                break
    return calls, own


def _lowest(way: Way, times: Times, own: Record, number: int, denoiser: str) -> float:
    """By bisection, on the safe side."""
    loop = Loop(way.calls.pipe, way.calls.of(number, way.calls.rows, way.calls.seeds()))
    x = way.state.laid(own.steps[-1].x[: way.calls.rows])

    @torch.no_grad()
    def is_called(t: float) -> bool:
        loop.output(x, torch.tensor(times.of_time(t), device=way.state.device).to(way.state.time))
        return denoiser in loop.called

    try:
        last = times.back(float(own.steps[-1].t.reshape(-1)[0]))
        if is_called(last):
            return 0.0
        low, high = last, times.back(float(own.steps[0].t.reshape(-1)[0]))
        while high - low > LEVEL / 10.0:
            middle = (low + high) / 2.0
            low, high = (low, middle) if is_called(middle) else (middle, high)
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
