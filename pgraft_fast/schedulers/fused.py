"""What the fast schedulers share: rows on the device, the place of a timestep, when the fused step may be taken.

A timestep that comes from `scheduler.timesteps` is found by its address in that tensor, so nothing is read back from
a device. Where a fused step cannot give what diffusers gives (a gradient is wanted, shapes that broadcast, a formula
that divides by zero), diffusers' own step runs.
"""

import logging
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pgraft_fast.ops import solver_step
from pgraft_fast.ops.solver_step import SolverStep

if TYPE_CHECKING:
    from pgraft_fast.schedulers.plan import StepPlan

_LOG = logging.getLogger(__name__)
_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Generators = torch.Generator | list[torch.Generator] | None


class Guide(NamedTuple):
    """Classifier-free guidance of one step: g = out_null + scale (out - out_null), rescaled by `rescale`."""

    out_null: Tensor
    scale: float
    rescale: float = 0.0

    def combine(self, out: Tensor) -> Tensor:
        """g in plain torch, for steps that need it as a tensor."""
        guided = self.out_null + self.scale * (out - self.out_null)
        if self.rescale == 0.0:
            return guided
        over = list(range(1, out.ndim))
        factor = out.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
        return self.rescale * (guided * factor) + (1.0 - self.rescale) * guided


class Rows:
    """(R, 8) rows of `ops.solver_step`, copied once to each device where they are used."""

    def __init__(self, rows: Tensor) -> None:
        self.values = rows
        self.finite = rows.isfinite().all(dim=1).tolist()
        self._on: dict[tuple[torch.device, bool], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def on(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table in float32 (float64 for float64 states) and one step counter a row, on the device of x."""
        key = (x.device, x.dtype is torch.float64)
        found = self._on.get(key)
        if found is None:
            table = upload(self.values if key[1] else self.values.float(), x.device)
            counters = torch.arange(self.values.shape[0], device=x.device).unbind()
            found = self._on[key] = (table, counters)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled scheduler takes the rows along, not what lies on devices."""
        return {**self.__dict__, "_on": {}}


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
    given = [out, x, *(value for value in more if value is not None)]
    if x.ndim == 0 or any(v.shape != x.shape or v.device != x.device or v.dtype not in _KINDS for v in given):
        return False
    return not (torch.is_grad_enabled() and any(v.requires_grad for v in given))


def version(value: Any) -> int:
    """Grows with each write into a tensor."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


class FusedScheduler:
    """Mixin before a scheduler class of diffusers."""

    # Of the scheduler class.
    timesteps: Tensor
    config: Any
    sigmas: Any
    alphas_cumprod: Any
    final_alpha_cumprod: Any
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

    # The only ones for which diffusers' class has a formula; it raises for others.
    _predictions: tuple[str | None, ...] = ("epsilon", "sample", "v_prediction")
    _timesteps_seen: tuple[Tensor | None, int] = (None, 0)
    _timesteps_host: Tensor
    _timesteps_list: list[float]
    _rows_kept: dict[Any, Any]
    _rows_for: tuple[tuple[Any, int], ...] = ()

    def __init_subclass__(cls) -> None:
        """`set_timesteps` of the scheduler, signature included, with the host's copy of the schedule kept."""
        original = _original(cls).set_timesteps

        @wraps(original)
        def set_timesteps(
            self: Any, num_inference_steps: Any = None, device: Any = None, *args: Any, **kw: Any
        ) -> None:
            original(self, num_inference_steps, None, *args, **kw)
            self._see_timesteps(self.timesteps)
            if self._sigmas_on_device:
                self._sigmas_host = self.sigmas
            if device is not None and torch.device(device).type != "cpu":
                self.timesteps = self.timesteps.to(device)
                self._timesteps_seen = self.timesteps, version(self.timesteps)
                if self._sigmas_on_device:
                    self.sigmas = self.sigmas.to(device)
                    self._sigmas_seen = self.sigmas, version(self.sigmas)

        cls.set_timesteps = set_timesteps  # type: ignore[attr-defined]

    _sigmas_on_device = False
    _sigmas_host: Tensor
    _sigmas_seen: tuple[Tensor | None, int] = (None, 0)

    def _see_timesteps(self, host: Tensor) -> None:
        self._timesteps_host = host
        self._timesteps_list = host.tolist()
        self._timesteps_seen = self.timesteps, version(self.timesteps)

    def _host_timesteps(self) -> Tensor:
        """The timesteps on the host; read back only where somebody replaced or changed them."""
        seen, written = self._timesteps_seen
        if seen is not self.timesteps or written != version(self.timesteps):
            self._see_timesteps(self.timesteps.cpu())
        return self._timesteps_host

    def _value(self, timestep: Any) -> float:
        """A timestep as a number; one of `self.timesteps` by its address."""
        if not isinstance(timestep, Tensor):
            return timestep
        self._host_timesteps()
        own = self.timesteps
        if timestep.dtype is own.dtype and own.is_contiguous() and timestep.numel() == 1:
            index, rest = divmod(timestep.data_ptr() - own.data_ptr(), own.element_size())
            if rest == 0 and 0 <= index < len(self._timesteps_list):
                return self._timesteps_list[index]
        return timestep.item()

    def _init_step_index(self, timestep: Any) -> None:
        if self.begin_index is None:
            self._step_index = self.index_for_timestep(self._value(timestep), self._host_timesteps())
        else:
            self._step_index = self._begin_index

    def _rows(self, key: Any, sources: tuple[Any, ...], make: Any) -> Any:
        """make(), kept until one of `sources` is another object or written to."""
        held = self._rows_for
        if len(held) != len(sources) or any(
            a is not b or written != version(b) for (a, written), b in zip(held, sources, strict=True)
        ):
            self._rows_for, self._rows_kept = tuple((value, version(value)) for value in sources), {}
        found = self._rows_kept.get(key)
        if found is None:
            found = self._rows_kept[key] = make()
        return found

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
        if self._is_known():
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

    def to_json_string(self) -> str:
        """The configuration under the name of diffusers' class, so that it loads without this package."""
        text = super().to_json_string()  # type: ignore[misc]
        return text.replace(
            f'"_class_name": "{type(self).__name__}"', f'"_class_name": "{_original(type(self)).__name__}"'
        )


def _original(cls: type) -> Any:
    """The scheduler class of diffusers below one of ours."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("diffusers."))


def take(rows: Rows, row: int, x: Tensor, out: Tensor, guide: Guide | None, *, keep: bool, **more: Any) -> SolverStep:
    """`ops.solver_step` with one of the rows."""
    table, counters = rows.on(x)
    if guide is not None:
        more |= {"out_null": guide.out_null, "guidance": guide.scale, "guidance_rescale": guide.rescale}
    return solver_step(x, out, table, counters[row], return_x_0=keep, **more)
