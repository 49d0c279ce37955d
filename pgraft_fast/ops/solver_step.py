"""One step of a solver in one pass: guidance, prediction of x_0, update, noise.

    g   = out, or out_null + guidance (out - out_null); with rescale phi: phi g std(out) / std(g) + (1 - phi) g
    x_0 = p x + q g                           (clipped, or with a dynamic threshold)
    x_s = a x + b x_0 + c previous + d z

The row (p, q, a, b, c, d, noise number, slot) stands in a table on the device and is found by a step counter on the
device, so the launch is the same at every step and nothing waits for the host. Every parameterization and every solver
of `sampling.solvers` is such a row.

Sources: guidance, Ho and Salimans 2022, arXiv 2207.12598, eq. 6; rescaling, Lin et al. 2023, arXiv 2305.08891, section
3.4; dynamic threshold, Saharia et al. 2022, arXiv 2205.11487, section 2.3.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.checks import (
    check_like,
    check_no_gradient,
    check_rows,
    check_state,
    flat,
    layout,
    over_samples,
    wide,
)
from pgraft_fast.ops.philox import philox_normal, signed
from pgraft_fast.ops.registration import register, traced

COLUMNS = ("p", "q", "a", "b", "c", "d", "noise", "keep")


class SolverStep(NamedTuple):
    """x_s, x_0: shape, dtype and layout of x. log_prob: (B,) float32. x_0 and log_prob are None where not asked for."""

    x_s: Tensor
    x_0: Tensor | None
    log_prob: Tensor | None


def solver_step(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    step: Tensor,
    *,
    out_null: Tensor | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    sample_id: Tensor | None = None,
    seed: int = 0,
    clip: float | None = None,
    dynamic_ratio: float | None = None,
    dynamic_limit: float = 1.0,
    return_x_0: bool = False,
    return_log_prob: bool = False,
    x_cut: Tensor | None = None,
) -> SolverStep:
    """One update x_t -> x_s.

    x: (B, ...) float32, float16 or bfloat16, C order or channels-last (float64: reference only). out, out_null, noise,
    previous: shape of x, any floating dtype. table: (S, 8) float32 rows of `COLUMNS`; float64 with a float64 state.
    step: one int64 on the device of x, the row.
    previous: a third state of the update, for DPM-Solver++ 2M the x_0 before; not read where c = 0; without it c
    counts with x_0. noise: z; without it z is `philox_normal` of (seed, sample_id, noise number), drawn where d != 0.
    sample_id: (B,) int64, default 0, 1, 2 ...
    clip: limit of |x_0|. dynamic_ratio: quantile of |x_0| in each sample that becomes its limit, at least 1 and at
    most dynamic_limit; x_0 is then divided by the limit.
    x_cut: (slots, *x.shape) in the layout of x; where the row's slot is i > 0, x_cut[i - 1] becomes x_s.
    log_prob = -|z|^2 / 2 - n (log d + log(2 pi) / 2), the log-density of the step that was drawn; 0 where d = 0.

    Arithmetic is float32 (float64 for float64), rounded once on writing. No gradient flows. Raises InputError.
    """
    check_state("x", x)
    check_no_gradient("solver_step", x, out, out_null, previous, noise)
    check_like("out", out, x)
    if out_null is not None:
        check_like("out_null", out_null, x)
    elif guidance != 1.0 or guidance_rescale != 0.0:
        raise InputError(f"guidance={guidance}, guidance_rescale={guidance_rescale}: guidance needs out_null=")
    if previous is not None:
        check_like("previous", previous, x)
    if noise is not None:
        check_like("noise", noise, x)
    if sample_id is not None:
        check_rows("sample_id", sample_id, x, torch.int64)
    _check_table(table, step, x)
    if clip is not None and (dynamic_ratio is not None or not clip > 0):
        raise InputError(f"clip={clip}: it must be above 0, and excludes dynamic_ratio")
    if dynamic_ratio is not None and (not 0 < dynamic_ratio <= 1 or dynamic_limit < 1):
        raise InputError(f"dynamic_ratio={dynamic_ratio} must be in (0, 1], dynamic_limit={dynamic_limit} at least 1")
    if x_cut is not None and (x_cut.shape[1:] != x.shape or x_cut.dtype is not x.dtype or x_cut.device != x.device):
        raise InputError(f"x_cut is {x_cut.dtype} {tuple(x_cut.shape)}: (slots, *{tuple(x.shape)}) {x.dtype} is needed")
    call = _op if traced(x, out) else _run
    x_s, x_0, log_prob = call(
        x, out, out_null, previous, noise, table, step, sample_id, signed(seed), guidance, guidance_rescale,
        clip or 0.0, dynamic_ratio or 0.0, dynamic_limit, return_x_0, return_log_prob, x_cut,
    )  # fmt: skip
    return SolverStep(x_s, x_0 if return_x_0 else None, log_prob if return_log_prob else None)


def _check_table(table: Tensor, step: Tensor, x: Tensor) -> None:
    dtype, device = wide(x), x.device
    if (
        table.dtype is dtype and table.ndim == 2 and table.size(1) == len(COLUMNS) and table.device == device
        and step.dtype is torch.int64 and step.numel() == 1 and step.device == device
    ):  # fmt: skip
        return
    if table.ndim != 2 or table.shape[1] != len(COLUMNS) or table.dtype is not dtype or table.device != x.device:
        raise InputError(
            f"table is {table.dtype} {tuple(table.shape)} on {table.device}: (S, 8) {dtype} on {x.device} is needed"
        )
    raise InputError(f"step is {step.dtype} {tuple(step.shape)} on {step.device}: one int64 on {x.device} needed")


def _dense(x: Tensor, dtype: torch.dtype, memory: torch.memory_format) -> Tensor:
    """x itself where it has that dtype and layout; float64 is not the kernels'."""
    if x.dtype is not dtype or dtype is torch.float64:
        x = x.to(torch.float32 if dtype is torch.float64 else dtype)
    if memory is torch.contiguous_format and x.is_contiguous():
        return x
    return x.contiguous(memory_format=memory)


def _run(
    x: Tensor,
    out: Tensor,
    out_null: Tensor | None,
    previous: Tensor | None,
    noise: Tensor | None,
    table: Tensor,
    step: Tensor,
    sample_id: Tensor | None,
    seed: int,
    guidance: float,
    rescale: float,
    clip: float,
    ratio: float,
    limit: float,
    return_x_0: bool,
    return_log_prob: bool,
    x_cut: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    launch = launcher("solver_step", x)
    if launch is None:
        return _reference(
            x, out, out_null, previous, noise, table, step, sample_id, seed, guidance, rescale, clip, ratio, limit,
            x_cut,
        )  # fmt: skip
    memory = layout(x)
    channels = 0 if memory is torch.contiguous_format else x.shape[1]
    x, out = _dense(x, x.dtype, memory), _dense(out, out.dtype, memory)
    if out_null is not None:
        out_null = _dense(out_null, out.dtype, memory)
    if previous is not None:
        previous = _dense(previous, x.dtype, memory)
    if noise is not None:
        noise = _dense(noise, noise.dtype, memory)
    if x_cut is not None and x_cut.numel() and not x_cut[0].is_contiguous(memory_format=memory):
        raise InputError("x_cut must have the memory layout of x in each slot")
    batch = x.shape[0]
    x_s = torch.empty_like(x)
    x_0 = torch.empty_like(x) if return_x_0 else None
    log_prob = x.new_empty(batch, dtype=torch.float32) if return_log_prob else None
    launch(
        x, out, out_null, previous, noise, table, step, sample_id, seed, guidance, rescale, clip, ratio, limit,
        batch, channels, x_s, x_0, x_cut, log_prob,
    )  # fmt: skip
    return x_s, x_0, log_prob


def _reference(
    x: Tensor,
    out: Tensor,
    out_null: Tensor | None,
    previous: Tensor | None,
    noise: Tensor | None,
    table: Tensor,
    step: Tensor,
    sample_id: Tensor | None,
    seed: int,
    guidance: float,
    rescale: float,
    clip: float,
    ratio: float,
    limit: float,
    x_cut: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, size = wide(x), x[:1].numel()
    p, q, a, b, c, d, number, slot = table.index_select(0, step.view(1)).to(dtype).squeeze(0).unbind()
    state, g = x.to(dtype), out.to(dtype)
    if out_null is not None:
        g = _guide(g, out_null.to(dtype), guidance, rescale)
    x_0 = p * state + q * g
    if clip > 0.0:
        x_0 = x_0.clamp(-clip, clip)
    if ratio > 0.0:
        quantile = torch.quantile(flat(x_0.abs()), ratio, dim=1) if x_0.numel() else x_0.new_ones(x_0.shape[:1])
        bound = over_samples(quantile.clamp(1.0, limit), x_0)
        x_0 = x_0.clamp(-bound, bound) * (1.0 / bound)
    if previous is None:
        x_s = a * state + (b + c) * x_0
    else:
        x_s = a * state + b * x_0
        x_s = x_s + torch.where(c != 0, c * previous.to(dtype), torch.zeros_like(x_s))
    drawn = d != 0
    if noise is not None:
        z = noise.to(dtype)
    elif x.is_cpu and not bool(drawn):
        # Only on a CPU can this be asked without waiting.
        z = torch.zeros_like(x_s)
    else:
        ids = torch.arange(x.shape[0], device=x.device) if sample_id is None else sample_id
        z = philox_normal(seed, ids, number.to(torch.int64), size, dtype).view(x.shape)
    x_s = (x_s + torch.where(drawn, d * z, torch.zeros_like(x_s))).to(x.dtype)
    log_prob = -0.5 * flat(z).square().sum(dim=1) - size * (d.log() + 0.5 * math.log(2.0 * math.pi))
    log_prob = torch.where(drawn, log_prob, torch.zeros_like(log_prob))
    if x_cut is not None and x_cut.shape[0]:
        index = (slot.to(torch.int64) - 1).clamp(min=0)
        x_cut.copy_(torch.where((over_samples(_slots(x_cut), x_cut) == index) & (slot > 0), x_s, x_cut))
    memory = layout(x)
    return x_s.contiguous(memory_format=memory), x_0.to(x.dtype).contiguous(memory_format=memory), log_prob


def _slots(x_cut: Tensor) -> Tensor:
    return torch.arange(x_cut.shape[0], device=x_cut.device)


def _guide(out: Tensor, out_null: Tensor, guidance: float, rescale: float) -> Tensor:
    guided = out_null + guidance * (out - out_null)
    if rescale == 0.0:
        return guided
    factor = over_samples(_spread(out) / _spread(guided), out)
    return rescale * (guided * factor) + (1.0 - rescale) * guided


def _spread(x: Tensor) -> Tensor:
    """(B,) standard deviations over each sample."""
    values = flat(x)
    return (values - values.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


def _registered(*args: object) -> tuple[Tensor, Tensor, Tensor]:
    """As `_run`, with empty tensors for what was not asked for: an operator's outputs are not optional."""
    x_s, x_0, log_prob = _run(*args)  # type: ignore[arg-type]
    keep_x_0, keep_log_prob = args[14], args[15]
    return (
        x_s,
        x_0 if keep_x_0 and x_0 is not None else x_s.new_empty(0),
        log_prob if keep_log_prob and log_prob is not None else x_s.new_empty(0, dtype=wide(x_s)),
    )


def _fake(x: Tensor, *args: object) -> tuple[Tensor, Tensor, Tensor]:
    keep_x_0, keep_log_prob = args[13], args[14]
    x_s = torch.empty_like(x, memory_format=layout(x))
    return (
        x_s,
        torch.empty_like(x_s) if keep_x_0 else x.new_empty(0),
        x.new_empty(x.shape[0] if keep_log_prob else 0, dtype=wide(x)),
    )


_op = register(
    "solver_step(Tensor x, Tensor out, Tensor? out_null, Tensor? previous, Tensor? noise, Tensor table, Tensor step, "
    "Tensor? sample_id, int seed, float guidance, float rescale, float clip, float ratio, float limit, "
    "bool return_x_0, bool return_log_prob, Tensor(a!)? x_cut) -> (Tensor, Tensor, Tensor)",
    _registered,
    _fake,
)
