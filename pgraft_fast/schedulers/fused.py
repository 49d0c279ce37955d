"""What the fast schedulers share: rows on the device, the place of a timestep, when the fused step may be taken.

A timestep that comes from `scheduler.timesteps` is found by its address in that tensor, so nothing is read back from
a device. Where a fused step cannot give what diffusers gives (a gradient is wanted, shapes that broadcast, a formula
that divides by zero), diffusers' own step runs.
"""

import inspect
import logging
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pgraft_fast.ops import solver_step
from pgraft_fast.ops.solver_step import SolverStep
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.methods import Methods

if TYPE_CHECKING:
    from pgraft_fast.schedulers.plan import StepPlan

_LOG = logging.getLogger(__name__)
_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Generators = torch.Generator | list[torch.Generator] | None


class Rows:
    """(R, 8) rows of `ops.solver_step`, copied once to each device where they are used."""

    def __init__(self, rows: Tensor) -> None:
        self.values = rows
        self.finite = rows.isfinite().all(dim=1).tolist()
        self._on: dict[tuple[torch.device, bool], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def on(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table in float32 (float64 for float64 states) and one step counter a row, on the device of x."""
        key = (x.device, x.dtype is torch.float64)
        entry = self._on.get(key)
        if entry is None:
            table = upload(self.values if key[1] else self.values.float(), x.device)
            counters = torch.arange(self.values.shape[0], device=x.device).unbind()
            entry = self._on[key] = (table, counters)
        return entry


def upload(values: Tensor, device: torch.device) -> Tensor:
    """values on a device, without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def draw(shape: torch.Size, generator: Generators, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The normals that diffusers draws: same generator, same numbers."""
    if generator is None or device.type == "cpu" or isinstance(generator, list):
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    if generator.device.type != "cpu":
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return upload(torch.randn(shape, generator=generator, dtype=dtype), device)


def can_fuse(out: Tensor, x: Tensor, *more: Tensor | None) -> bool:
    """Whether `ops.solver_step` takes these tensors and no gradient is wanted through them. more: noise, x_0 before."""
    tensors = [out, x, *(value for value in more if value is not None)]
    if x.ndim == 0 or any(v.shape != x.shape or v.device != x.device or v.dtype not in _KINDS for v in tensors):
        return False
    return not (torch.is_grad_enabled() and any(v.requires_grad for v in tensors))


def widens(timestep: Any, levels: Tensor, dtype: torch.dtype) -> bool:
    """Whether diffusers' result has a wider dtype: levels that a (1,) timestep picks are no numbers but a tensor."""
    picked = isinstance(timestep, Tensor) and timestep.ndim > 0
    return picked and torch.promote_types(levels.dtype, dtype) is not dtype


def version(value: Any) -> int:
    """Grows with each write into a tensor."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


class Times(NamedTuple):
    """The timesteps of a scheduler as they were when they were read: `seen` at version `written`, on the host."""

    seen: Tensor | None
    written: int
    host: Tensor
    values: list[float]


class Kept:
    """What a fast scheduler has worked out, apart from the attributes of diffusers' class.

    Each entry is replaced whole, so that threads which share the scheduler see one or the other.
    times: of `timesteps`. sigmas: the tensor on a device, its version, and the same on the host. rows: what they were
    made from, and the tables by their keys.
    """

    __slots__ = ("rows", "sigmas", "times")

    def __init__(self) -> None:
        self.times = Times(None, 0, torch.empty(0), [])
        self.sigmas: tuple[Tensor | None, int, Tensor] = (None, 0, torch.empty(0))
        self.rows: tuple[tuple[tuple[Any, int], ...], dict[Any, Any]] = ((), {})


class FusedScheduler:
    """Mixin before a scheduler class of diffusers, of which the subclass has the name.

    A pipeline that is saved with one of these names diffusers' class: it asks an object for its module.
    """

    __slots__ = ("_kept",)

    # Of the scheduler class.
    timesteps: Tensor
    config: Any
    sigmas: Any
    alphas_cumprod: Any
    final_alpha_cumprod: Any
    one: Any
    num_inference_steps: Any
    model_outputs: list[Any]
    lower_order_nums: int
    variance_type: Any
    custom_timesteps: bool
    begin_index: Any
    step_index: Any
    index_for_timestep: Any
    _begin_index: Any
    _step_index: Any
    _internal_dict: Any
    _kept: Kept

    # The only ones for which diffusers' class has a formula; it raises for others.
    captures: ClassVar[bool] = True
    _predictions: tuple[str | None, ...] = ("epsilon", "sample", "v_prediction")
    _sigmas_on_device = False
    _original: ClassVar[Any]
    _methods: ClassVar[Methods]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._kept = Kept()
        vars(self)["__module__"] = cls._original.__module__
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled scheduler has the attributes of diffusers' class."""
        return vars(self)

    def __init_subclass__(cls) -> None:
        """`set_timesteps` of the scheduler, signature included, with the host's copy of the schedule kept."""
        if FusedScheduler not in cls.__bases__:
            return
        cls._original = cls.__bases__[cls.__bases__.index(FusedScheduler) + 1]

        @wraps(cls._original.set_timesteps)
        def set_timesteps(
            self: Any, num_inference_steps: Any = None, device: Any = None, *args: Any, **kw: Any
        ) -> None:
            self._original.set_timesteps(self, num_inference_steps, None, *args, **kw)
            self._see_timesteps(self.timesteps)
            host = self.sigmas if self._sigmas_on_device else None
            if device is not None and torch.device(device).type != "cpu":
                times, self.timesteps = self._kept.times, self.timesteps.to(device)
                self._kept.times = times._replace(seen=self.timesteps, written=version(self.timesteps))
                if host is not None:
                    self.sigmas = host.to(device)
            if host is not None:
                self._kept.sigmas = self.sigmas, version(self.sigmas), host

        cls.set_timesteps = set_timesteps  # type: ignore[attr-defined]
        cls.__signature__ = inspect.signature(cls._original)  # type: ignore[attr-defined]
        cls._methods = Methods(cls, cls._original)

    @classmethod
    def twin_of(cls, scheduler: Any) -> Self:
        """One of this class with the very attributes of a scheduler of diffusers: what changes in one, does in both."""
        twin = cls.__new__(cls)
        vars(scheduler).setdefault("__module__", cls._original.__module__)
        object.__setattr__(twin, "__dict__", vars(scheduler))
        return twin

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the scheduler, by name."""
        return vars(self)

    def is_replaced(self) -> bool:
        """Whether a method, `step` among them, is somebody else's: the fused loop does not stand for that."""
        return self._methods.replaced(self, type(self), whole=True)

    def _see_timesteps(self, host: Tensor) -> Times:
        times = Times(self.timesteps, version(self.timesteps), host, host.tolist())
        self._kept.times = times
        return times

    def times(self) -> Times:
        """The timesteps on the host; read back only where somebody replaced or changed them."""
        times, own = self._kept.times, self.timesteps
        if times.seen is not own or times.written != version(own):
            times = self._see_timesteps(own.cpu())
        return times

    def host_sigmas(self) -> Tensor:
        """The sigmas on the host; read back only where somebody replaced or changed them."""
        seen, written, host = self._kept.sigmas
        return host if seen is self.sigmas and written == version(self.sigmas) else self.sigmas.cpu()

    def _value(self, timestep: Any) -> float:
        """A timestep as a number; one of `self.timesteps` by its address."""
        if not isinstance(timestep, Tensor):
            return timestep
        times, own = self.times(), self.timesteps
        if timestep.dtype is own.dtype and own.is_contiguous() and timestep.numel() == 1:
            index, rest = divmod(timestep.data_ptr() - own.data_ptr(), own.element_size())
            if rest == 0 and 0 <= index < len(times.values):
                return times.values[index]
        return timestep.item()

    def _init_step_index(self, timestep: Any) -> None:
        if self.begin_index is None:
            self._step_index = self.index_for_timestep(self._value(timestep), self.times().host)
        else:
            self._step_index = self._begin_index

    def _rows(self, key: Any, sources: tuple[Any, ...], make: Any) -> Any:
        """make(), kept until one of `sources` is another object or written to."""
        held, tables = self._kept.rows
        if len(held) != len(sources) or any(
            a is not b or written != version(b) for (a, written), b in zip(held, sources, strict=True)
        ):
            tables = {}
            self._kept.rows = tuple((value, version(value)) for value in sources), tables
        rows = tables.get(key)
        if rows is None:
            rows = tables[key] = make()
        return rows

    def tables(self) -> dict[Any, Any]:
        """What `_rows` keeps at the moment."""
        return self._kept.rows[1]

    def _limits(self) -> dict[str, float] | None:
        """Arguments of `ops.solver_step` that clip or threshold x_0; None where it does not take them."""
        config = self.config
        if config.thresholding:
            if config.sample_max_value < 1.0 or not 0.0 < config.dynamic_thresholding_ratio <= 1.0:
                return None
            return {"dynamic_ratio": config.dynamic_thresholding_ratio, "dynamic_limit": config.sample_max_value}
        if getattr(config, "clip_sample", False):
            return {"clip": config.clip_sample_range} if config.clip_sample_range > 0.0 else None
        return {}

    def advance(
        self, out: Tensor, timestep: Any, x: Tensor, *, guide: Guide | None = None, keep: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One step: (x_s, x_0), x_0 only where `keep`. options: those of `step`. guide: guidance in the same pass."""
        done = None
        if self._is_known() and not self._methods.replaced(self, type(self)):
            done = self._fused(out, timestep, x, guide=guide, keep=keep, **options)
        if done is None:
            _LOG.debug("%s: diffusers' own step is taken", type(self).__name__)
            out = out if guide is None else guide.combine(out)
            done = super().step(out, timestep, x, **options, return_dict=False)  # type: ignore[misc]
            done = (done[0], done[1] if len(done) > 1 else None)
        return done

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> "StepPlan | None":
        """The steps first ... last - 1 worked out ahead, for states like x whose model outputs have the same dtype.

        None where one of them needs `advance`. Whoever makes the steps calls `planned_done` after them.
        """
        raise NotImplementedError

    def _is_known(self) -> bool:
        """Whether the fused step has the formula of the prediction type."""
        return getattr(self.config, "prediction_type", None) in self._predictions

    def planned_done(self, plan: "StepPlan") -> None:
        """Set the counters as if the steps had been made one by one."""

    def _fused(
        self, out: Tensor, timestep: Any, x: Tensor, *, guide: Guide | None, keep: bool, **options: Any
    ) -> tuple[Tensor, Tensor | None] | None:
        """As `advance`; None where the fused step does not apply. Changes nothing of the scheduler then."""
        raise NotImplementedError


def take(rows: Rows, row: int, x: Tensor, out: Tensor, guide: Guide | None, *, keep: bool, **more: Any) -> SolverStep:
    """`ops.solver_step` with one of the rows."""
    table, counters = rows.on(x)
    if guide is not None:
        more |= {"out_null": guide.out_null, "guidance": guide.scale, "guidance_rescale": guide.rescale}
    return solver_step(x, out, table, counters[row], return_x_0=keep, **more)
