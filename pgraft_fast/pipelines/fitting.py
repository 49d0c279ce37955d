"""What a pipeline's loop makes of a denoiser's answers: the sum, with or without guidance, that gives its outputs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.pipelines.rules import CallRule, Explanation

# As a share of the output: rounding of its own operations.
_RESIDUAL = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 0.03}


class Output(NamedTuple):
    """parts: of the answers, (n, *shape) each; out: what scheduler.step got for them."""

    parts: list[Tensor]
    out: Tensor


def fits(explanation: Explanation, output: Output) -> bool:
    """Whether it gives this output, but for rounding."""
    if output.out.dtype != explanation.dtype or any(part.shape != output.out.shape for part in output.parts):
        return False
    expected = output.out.double()
    far = (explanation.output(output.parts).double() - expected).square().mean().sqrt()
    return bool(far <= _RESIDUAL.get(explanation.dtype, 1e-5) * expected.square().mean().sqrt())


def fitted(
    calls: tuple[CallRule, ...], outputs: Sequence[Output], dtype: torch.dtype
) -> tuple[Explanation | None, float]:
    """A sum of the parts; or guidance of two, brought to the length of one of them along the last dimension, or in
    part to its standard deviation. None where no such sum is the output. The second value: how far a plain sum is from
    it, as a share.
    """
    expected = torch.cat([output.out.double().flatten() for output in outputs])
    size = expected.square().mean().sqrt()

    def far(explanation: Explanation) -> float:
        sums = torch.cat([explanation.output(output.parts).double().flatten() for output in outputs])
        return float((sums - expected).square().mean().sqrt() / size)

    limit = _RESIDUAL.get(dtype, 1e-5)
    plain = _simplest(Explanation(calls, _least_squares(outputs), dtype), far)
    # What is not a number is no sum either.
    if far(plain) <= limit:
        return plain, far(plain)
    others: list[Explanation] = []
    if len(outputs[0].parts) == 2 and expected.isfinite().all():
        directed = [_directed(outputs, norm) for norm in (0, 1)] if outputs[0].out.ndim > 2 else []
        others = [Explanation(calls, weights, dtype, norm) for norm, weights in enumerate(directed)]
        others += _rescaled(Explanation(calls, (0.0, 1.0), dtype), outputs)
    best = min((_simplest(explanation, far) for explanation in others), key=far, default=None)
    return (best if best is not None and far(best) <= limit else None), far(plain)


def _least_squares(outputs: Sequence[Output]) -> tuple[float, ...]:
    columns = torch.cat([torch.stack([part.double().flatten() for part in output.parts], dim=1) for output in outputs])
    expected = torch.cat([output.out.double().flatten() for output in outputs])
    return tuple(torch.linalg.lstsq(columns, expected[:, None]).solution[:, 0].tolist())


def _directions(outputs: Sequence[Output], kept: int) -> list[Tensor]:
    """Weights (rows, 2) of the two parts by least squares, of each vector of the dimensions from `kept` on."""
    weights = []
    for (a, b), out in outputs:
        columns = torch.stack((a.double(), b.double()), dim=-1).flatten(kept, -2).flatten(0, kept - 1)
        expected = out.double().flatten(kept).flatten(0, kept - 1)
        weights.append(torch.linalg.lstsq(columns, expected[..., None]).solution[..., 0])
    return weights


def _directed(outputs: Sequence[Output], norm: int) -> tuple[float, float]:
    """Weights, their sum 1 or -1, of the sum that has the direction of the output along the last dimension."""
    weights = torch.cat(_directions(outputs, outputs[0].out.ndim - 1))
    total = weights.sum(dim=1)
    scale, sign = float((weights[:, 1] / total).median()), float(total.sign().median())
    return sign * (1.0 - scale), sign * scale


def _rescaled(plain: Explanation, outputs: Sequence[Output]) -> list[Explanation]:
    """Guidance with either part as the one without the prompt, and the share of it that is rescaled."""
    weights, explanations = torch.cat(_directions(outputs, 1)), []
    factor = weights.sum(dim=1)
    for null in (0, 1):
        scale = float((weights[:, 1 - null] / factor).median())
        guided = replace(plain, weights=(0.0, 1.0) if null == 0 else (1.0, 0.0)).with_scale(scale)
        pairs = [(output.parts[1 - null].double(), guided.output(output.parts).double()) for output in outputs]
        away = torch.cat([a.flatten(1).std(dim=1) / b.flatten(1).std(dim=1) - 1.0 for a, b in pairs])
        share = float((away * (factor - 1.0)).sum() / away.square().sum().clamp(min=1e-30))
        if guided.null == null and 0.0 < share < 1.001:
            explanations.append(replace(guided, rescale=round(share, 3)))
    return explanations


def _simplest(explanation: Explanation, far: Callable[[Explanation], float]) -> Explanation:
    """With guidance by a scale of few digits, where that is no worse."""
    weights, least = explanation.weights, far(explanation)
    total = round(sum(weights)) if math.isfinite(sum(weights)) else 0
    for digits in range(4) if len(weights) <= 2 and total in (-1, 1) else ():
        scale = round(weights[-1], digits)
        rounded = replace(explanation, weights=(total - scale, scale)[-len(weights) :])
        if far(rounded) <= 1.5 * least + 1e-7:
            return rounded
    return explanation
