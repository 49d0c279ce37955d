"""The operations of a training step: noisy states with their targets, and the loss with its gradient."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.ops import partial_noise, weighted_mse
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.providers import compiled, copy, draw, eager, ours, plain


def cases(settings: Settings) -> Iterator[Case]:
    """One batch of 64 latents."""
    shape = (2, 4, 8, 8) if settings.small else (64, 4, 64, 64)
    tensor_bytes = 4 * torch.Size(shape).numel()
    # Forward reads out and target, backward reads both again and writes the gradient.
    yield Case("weighted_mse", "forward+backward", shape, "float32", 5 * tensor_bytes, partial(_weighted_mse, shape))
    yield Case("partial_noise", "philox", shape, "float32", 3 * tensor_bytes, partial(_partial_noise, shape))


def _weighted_mse(shape: tuple[int, ...], settings: Settings) -> Sequence[Provider]:
    out, target = draw(shape, settings, 2)
    weight = torch.linspace(0.1, 1.0, shape[0], device=settings.device)
    inputs = {"out": out, "target": target, "weight": weight}
    work = partial(_loss_and_gradient, weighted_mse)
    providers = [
        ours(work, inputs, settings),
        plain("eager", partial(_loss_and_gradient, _expression, **inputs), work, inputs),
        copy(out),
    ]
    if not settings.short:
        run = partial(_loss_and_gradient, compiled(_expression), **inputs)
        providers.append(plain("compile", run, work, inputs, optional=True))
    return providers


def _loss_and_gradient(
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], out: Tensor, target: Tensor, weight: Tensor
) -> list[Tensor]:
    with torch.enable_grad():
        out = out.detach().requires_grad_()
        loss = loss_of(out, target, weight)
        (gradient,) = torch.autograd.grad(loss.mean(), out)
    return [loss.detach(), gradient]


def _expression(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight.view(-1, 1, 1, 1) * out - target).square().mean(dim=(1, 2, 3))


def _partial_noise(shape: tuple[int, ...], settings: Settings) -> Sequence[Provider]:
    (x_cut,) = draw(shape, settings, 1)
    alpha = torch.linspace(0.1, 0.8, shape[0], dtype=torch.float64, device=settings.device)
    ones = torch.ones_like(alpha)
    levels = torch.stack((alpha, (1.0 - alpha**2).sqrt(), 0.0 * ones, ones), dim=1)
    ids = torch.arange(shape[0], device=settings.device)

    def work(x_cut: Tensor) -> list[Tensor]:
        return list(partial_noise(x_cut, levels, 0.9, 0.19**0.5, sample_id=ids, step=ids, seed=9))

    inputs = {"x_cut": x_cut}
    return [ours(work, inputs, settings), eager(work, inputs), copy(x_cut)]
