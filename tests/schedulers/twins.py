"""Whole trajectories of a scheduler of diffusers and of ours, side by side."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor

from pgraft_fast import schedulers
from pgraft_fast.errors import InputError

PAIRS = {
    "ddim": (diffusers.DDIMScheduler, schedulers.FastDDIMScheduler),
    "ddpm": (diffusers.DDPMScheduler, schedulers.FastDDPMScheduler),
    "euler": (diffusers.EulerDiscreteScheduler, schedulers.FastEulerDiscreteScheduler),
    "dpm": (diffusers.DPMSolverMultistepScheduler, schedulers.FastDPMSolverMultistepScheduler),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler, schedulers.FastFlowMatchEulerDiscreteScheduler),
}
KINDS = tuple(PAIRS)


@dataclass(frozen=True)
class Setup:
    """One trajectory. schedule: arguments of set_timesteps; options: of step.

    generator: "one", "list" (one a sample), "global" (none is passed), or "given": variance_noise is.
    start: ("index" or "timestep", number of the first step). feed: the timestep as a "view" of scheduler.timesteps,
    a "number", a "foreign" tensor, or one of shape (1,), "line". out_dtype: of the model, where it is another.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": 8})
    options: dict[str, Any] = field(default_factory=dict)
    generator: str = "one"
    start: tuple[str, int] | None = None
    feed: str = "view"
    return_dict: bool = True
    dtype: torch.dtype = torch.float32
    out_dtype: torch.dtype | None = None
    shape: tuple[int, ...] = (2, 3, 4, 4)
    per_token: bool = False

    @property
    def learned(self) -> bool:
        """Whether the model has twice the channels."""
        return str(self.config.get("variance_type")).startswith("learned")


@dataclass
class Run:
    """The states, x_0 of each step where there is one, the generators' states, or the error.

    gain: what the steps multiply the state by, most of which they subtract again.
    """

    x: list[Tensor] = field(default_factory=list)
    x_0: list[Tensor] = field(default_factory=list)
    types: set[type] = field(default_factory=set)
    timesteps: Tensor | None = None
    gain: float = 1.0
    randomness: list[Tensor] = field(default_factory=list)
    error: Exception | None = None


def model(x: Tensor, t: float, setup: Setup) -> Tensor:
    """A bounded smooth network; a second half of channels where the variance is learned."""
    wide = x if x.dtype is torch.float64 else x.float()
    out = torch.tanh(0.7 * wide + math.sin(0.003 * t)) + 0.1 * math.cos(0.01 * t)
    if setup.learned:
        above = 0.6 if setup.config["variance_type"] == "learned" else 0.0
        out = torch.cat((out, 0.5 * torch.tanh(wide.flip(1)) + above), dim=1)
    return out.to(setup.out_dtype or setup.dtype)


def widen(scheduler: Any) -> None:
    """The scheduler's tables in float64: its 0-dim coefficients round nothing then, and promote no state."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        value = getattr(scheduler, name, None)
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.double())


def prepared(cls: Any, setup: Setup) -> tuple[Any, int]:
    """A scheduler, ours made from the config of diffusers', its timesteps set; and the first step."""
    original, _ = PAIRS[setup.kind]
    scheduler = original(**setup.config)
    if cls is not original:
        scheduler = cls.from_config(scheduler.config)
    scheduler.set_timesteps(**setup.schedule)
    first = 0 if setup.start is None else min(setup.start[1], len(scheduler.timesteps) - 1)
    if setup.start is not None and setup.start[0] == "index":
        scheduler.set_begin_index(first)
    return scheduler, first


def follow(cls: Any, setup: Setup, exact: bool = False, along: Run | None = None, begin: Tensor | None = None) -> Run:
    """The trajectory with one class.

    exact: the scheduler's tables in float64. along: each step starts at that run's state. begin: the first state.
    """
    run = Run()
    torch.manual_seed(11)
    seeds = {"one": [3], "list": list(range(setup.shape[0]))}.get(setup.generator, [])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise_generator = torch.Generator().manual_seed(5)
    options = dict(setup.options)
    if generators:
        options["generator"] = generators if setup.generator == "list" else generators[0]
    try:
        scheduler, first = prepared(cls, setup)
        if exact:
            widen(scheduler)
        run.timesteps = scheduler.timesteps
        if setup.config.get("algorithm_type") in {"dpmsolver", "sde-dpmsolver"}:
            alpha, _ = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[first:])
            run.gain = float(alpha.max() / alpha.min())
        if begin is None:
            begin = torch.randn(setup.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            begin = begin * getattr(scheduler, "init_noise_sigma", 1.0)
        x = begin.to(setup.dtype)
        run.x.append(x)
        for step, t in enumerate(scheduler.timesteps[first:]):
            x = x if along is None else along.x[step]
            number = t.item()
            fed = {"view": t, "number": number, "foreign": t.clone(), "line": t.reshape(1)}[setup.feed]
            shown = scheduler.scale_model_input(x, fed) if hasattr(scheduler, "scale_model_input") else x
            out = model(shown, number, setup)
            if setup.generator == "given":
                options["variance_noise"] = torch.randn(setup.shape, generator=noise_generator).to(setup.dtype)
            if setup.per_token:
                ramp = torch.linspace(0.5, 1.0, setup.shape[1]).expand(setup.shape[:2])
                options["per_token_timesteps"] = ramp * number
            done = scheduler.step(out, fed, x, **options, return_dict=setup.return_dict)
            run.types.add(type(done))
            x, *x_0 = done.to_tuple() if setup.return_dict else done
            run.x.append(x)
            run.x_0 += x_0
    except Exception as error:
        run.error = error
    run.randomness = [generator.get_state() for generator in generators] + [torch.get_rng_state()]
    return run


def largest(x: Tensor) -> float:
    """Of the finite values."""
    return float(torch.where(x.isfinite(), x, 0.0).abs().max())


def apart(x: Tensor, y: Tensor) -> float:
    """Largest difference of finite values."""
    return largest(x.double() - y.double())


def near(mine: list[Tensor], theirs: list[Tensor], exact: Callable[[], list[Tensor]], allowed: list[float]) -> float:
    """Every tensor within `allowed` of diffusers'. Returns the largest share of what is allowed that was used.

    Where it is not, the float32 coefficients of diffusers may be what is off: cancellation where neighbouring
    levels are close or the noise is nearly all, up to NaN from the root of -6e-8. Then ours must be within `allowed`
    of diffusers' with its tables in float64, or no farther from it than diffusers' own.
    """
    assert len(mine) == len(theirs)
    used = 0.0
    for index, (m, t, share) in enumerate(zip(mine, theirs, allowed, strict=True)):
        limit = share
        assert (m.dtype, m.shape) == (t.dtype, t.shape)
        distance = apart(m, t)
        if distance > limit or not torch.equal(m.isfinite(), t.isfinite()):
            e = exact()[index]
            assert torch.equal(m.isfinite(), t.isfinite()) or torch.equal(m.isfinite(), e.isfinite())
            distance, limit = apart(m, e), max(limit, apart(t, e))
            assert distance <= limit
        used = max(used, distance / max(limit, 1e-30))
    return used


def check_parity(setup: Setup, rounding: float = 2e-5) -> float:
    """Our class does what diffusers' does. rounding: share of max|x| that the trajectory may be off.

    Also step by step from diffusers' states, within 2e-5 of that step's max|x|, so that what is small late is held to
    its own size. Returns the largest share of these tolerances that was used.
    """
    original, ours = PAIRS[setup.kind]
    theirs, mine = follow(original, setup), follow(ours, setup)
    if theirs.error is not None:
        assert mine.error is not None
        return 0.0
    if mine.error is not None:
        # diffusers takes a root of log beta there: see test_changes.
        assert isinstance(mine.error, InputError) and "variance_type='fixed_large_log'" in str(mine.error)
        return 0.0
    # alpha_s / alpha_t x, less nearly as much noise: in float32 no order of the operations rounds that better.
    cancelled = 5e-7 * theirs.gain
    rounding = max(rounding, cancelled)
    assert mine.types == theirs.types
    assert torch.equal(mine.timesteps.nan_to_num(), theirs.timesteps.nan_to_num())
    assert all(torch.equal(a, b) for a, b in zip(mine.randomness, theirs.randomness, strict=True))

    exact = cache(lambda: follow(original, setup, exact=True))
    tops = [largest(x) for x in theirs.x]
    x_0_tops = [max(top, largest(x_0)) for top, x_0 in zip(tops, theirs.x_0, strict=False)]
    top, x_0_top = max(tops), max(x_0_tops, default=0.0)
    used = [
        near(mine.x, theirs.x, lambda: exact().x, [rounding * top] * len(tops)),
        near(mine.x_0, theirs.x_0, lambda: exact().x_0, [rounding * x_0_top] * len(x_0_tops)),
    ]
    step = follow(ours, setup, along=theirs)
    exact_step = cache(lambda: follow(original, setup, exact=True, along=theirs))
    limits = [max(2e-5, cancelled) * max(pair) for pair in zip([0.0, *tops], tops, strict=False)]
    used += [
        near(step.x, theirs.x, lambda: exact_step().x, limits),
        near(step.x_0, theirs.x_0, lambda: exact_step().x_0, [2e-5 * top for top in x_0_tops]),
    ]
    return max(used)


def check_half(setup: Setup, name: str) -> None:
    """In a low precision the trajectory is as near to one of float32 states and float64 tables as diffusers' is.

    Within 1.5 times diffusers' distance and 2 units in the last place of max|x|: ours rounds once a step. 3 times at
    the third order, whose weights of kept, rounded x_0 reach hundreds: which rounding is the luckier is chance there.
    Of fewer than 16 numbers torch draws the same in each dtype, rounded.
    """
    factor = 3.0 if setup.config.get("solver_order") == 3 else 1.5
    dtype = getattr(torch, name)
    setup = replace(setup, dtype=dtype, shape=(1, 3, 2, 2), feed="view")
    original, ours = PAIRS[setup.kind]
    theirs, mine = follow(original, setup), follow(ours, setup)
    if theirs.error is not None or mine.error is not None:
        return
    truth = follow(original, replace(setup, dtype=torch.float32), exact=True, begin=theirs.x[0])
    assert [x.dtype for x in mine.x + mine.x_0] == [x.dtype for x in theirs.x + theirs.x_0]
    assert all(torch.equal(a, b) for a, b in zip(mine.randomness, theirs.randomness, strict=True))
    top = 0.0
    for m, t, e in ((mine.x, theirs.x, truth.x), (mine.x_0, theirs.x_0, truth.x_0)):
        top = max([top, *map(largest, e)])
        allowed = factor * max(map(apart, t, e), default=0.0) + 2 * torch.finfo(dtype).eps * top
        assert max(map(apart, m, e), default=0.0) <= allowed
        # float16 ends at 65504: what diffusers overflows on its way, ours may still hold.
        assert all((a.isfinite() | ~b.isfinite()).all() for a, b in zip(m, t, strict=True))


X = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
OUT = torch.tanh(X.flip(0))


def step(scheduler, t, x=X, out=OUT, **options):
    """One step with a seed of its own, as a tuple."""
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, t)
    options.setdefault("generator", torch.Generator().manual_seed(4))
    return scheduler.step(out, t, x, **options, return_dict=False)


def on_both(kind, use, config=(), steps=8, rounding=2e-5):
    """use(scheduler) with diffusers' class and ours: tensors that agree, or an error of each. Returns ours."""
    results = []
    for cls in PAIRS[kind]:
        scheduler = cls(**dict(config))
        if steps:
            scheduler.set_timesteps(steps)
        try:
            results.append(use(scheduler))
        except Exception as error:
            results.append(error)
    theirs, mine = results
    if isinstance(theirs, Exception):
        assert isinstance(mine, Exception)
        return mine
    assert not isinstance(mine, Exception), mine
    for a, b in zip(mine, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert apart(a, b) <= rounding * max(largest(X), largest(b))
    return mine
