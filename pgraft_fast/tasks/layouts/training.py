"""Training of the layouts' networks: the denoisers, and the encoder of the Frechet distance. Data and batches stay on
the device; nothing is read back to the host but now and then a loss and the time.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.diffusion import target_coefficients
from pgraft_fast.finetune.optimizing import follow, warmed_up
from pgraft_fast.tasks.layouts.conditions import KINDS, training_condition
from pgraft_fast.tasks.layouts.elements import BOX_SCALE, NO_ELEMENT, Layouts, packed
from pgraft_fast.tasks.layouts.features import LayoutDecoder, LayoutEncoder
from pgraft_fast.tasks.layouts.network import LayoutsDiT, known_values
from pgraft_fast.tasks.weights import Variant

Log = Callable[[str], None]
Check = Callable[[], None]

_LEAST_TIME = 1e-3
_WARM_UP_STEPS = 300
_LOG_STEPS = 500
# The whole page is moved by so much of its size at most, as far as its elements stay on it.
_SHIFT = 0.02
# Standard deviations of boxes in noised layouts, shares of the page.
_NOISE = (0.005, 0.1)


@dataclass(frozen=True)
class Amount:
    """Of training. steps: at most. seconds: at most; the learning rate falls to 0 with whichever ends first. batch:
    layouts a step. rate: peak learning rate. decay: of the average of the weights.
    """

    steps: int = 20_000
    seconds: float = math.inf
    batch: int = 128
    rate: float = 1.5e-3
    decay: float = 0.999


def train_denoiser(
    variant: Variant, data: Layouts, held_out: Layouts, amount: Amount, seed: int = 0, log: Log = print,
    check: Check = lambda: None, device: torch.device | str = "cpu",
    snapshot: tuple[int, Callable[[LayoutsDiT], None]] | None = None, **architecture: int,
) -> LayoutsDiT:  # fmt: skip
    """Denoising regression on unknown parts of real elements, conditions of the three kinds in equal shares; returns
    the averaged weights. held_out: layouts whose loss is told in the log. snapshot: every so many steps, what is done
    with the averaged weights so far.
    """
    torch.manual_seed(seed)
    model = LayoutsDiT(variant, len(data.names), **architecture).to(device)
    # On a CPU reading the number of rows costs nothing.
    model.attention = "packed" if torch.device(device).type == "cpu" else "padded"
    average = copy.deepcopy(model)
    labels, boxes = data.labels.to(device), data.boxes.to(device)
    others = held_out.labels.to(device), held_out.boxes.to(device)

    def loss_of(rows: Tensor) -> Tensor:
        return denoising_loss(model, variant, labels[rows], shifted(labels[rows], boxes[rows]))

    def after(step: int, loss: Tensor) -> None:
        follow(average.parameters(), model.parameters(), warmed_up(amount.decay, step))
        if (step + 1) % _LOG_STEPS == 0:
            with torch.no_grad():
                unseen = denoising_loss(average, variant, *others)
            log(f"step {step + 1}, loss {float(loss):.4f}, of held-out layouts {float(unseen):.4f}")
        if snapshot is not None and (step + 1) % snapshot[0] == 0:
            snapshot[1](average)

    _fit(list(model.parameters()), loss_of, after, len(data), amount, device, check)
    average.attention = "padded"
    return average.requires_grad_(False).eval()


def train_encoder(
    data: Layouts, amount: Amount, seed: int = 0, log: Log = print, check: Check = lambda: None,
    device: torch.device | str = "cpu", **architecture: int,
) -> LayoutEncoder:  # fmt: skip
    """Real layouts told from noised ones, and labels and boxes given back; the decoder is not kept."""
    torch.manual_seed(seed)
    encoder = LayoutEncoder(len(data.names), **architecture).to(device)
    decoder = LayoutDecoder(len(data.names), **architecture).to(device)
    labels, boxes = data.labels.to(device), data.boxes.to(device)

    def loss_of(rows: Tensor) -> Tensor:
        return _encoder_loss(encoder, decoder, labels[rows], shifted(labels[rows], boxes[rows]))

    def after(step: int, loss: Tensor) -> None:
        if (step + 1) % _LOG_STEPS == 0:
            log(f"step {step + 1}, loss {float(loss):.4f}")

    _fit([*encoder.parameters(), *decoder.parameters()], loss_of, after, len(data), amount, device, check)
    return encoder.requires_grad_(False).eval()


def denoising_loss(model: nn.Module, variant: Variant, labels: Tensor, boxes: Tensor) -> Tensor:
    """Mean square error over what the condition does not tell of real elements; times spread evenly over the batch."""
    n, device = labels.shape[0], labels.device
    n_labels = int(model.n_labels)  # type: ignore[arg-type]
    x_0 = packed(labels, boxes, n_labels)
    order = torch.randperm(n, device=device)
    t = (torch.rand(1, device=device) + order / n) % 1.0 * (1.0 - _LEAST_TIME) + _LEAST_TIME
    kind = torch.arange(n, device=device) % len(KINDS)
    condition = training_condition(labels, boxes, n_labels, kind, torch.rand(n, device=device))
    alpha, sigma = (value.view(-1, 1, 1) for value in variant.schedule.alpha_sigma(t))
    c, d = (value.view(-1, 1, 1) for value in target_coefficients(variant.schedule, t, variant.parameterization))
    noise = torch.randn_like(x_0)
    out = model(alpha * x_0 + sigma * noise, t, condition)
    unknown = ~known_values(condition, n_labels)[1]
    return (out - (c * x_0 + d * noise)).where(unknown, 0.0).square().sum() / unknown.sum().clamp(min=1)


def shifted(labels: Tensor, boxes: Tensor) -> Tensor:
    """Each page moved as a whole, by at most _SHIFT and no further than its elements stay on the page."""
    element = (labels != NO_ELEMENT)[..., None]
    low = (boxes[..., :2] - boxes[..., 2:] / 2).where(element, 1.0).amin(dim=1, keepdim=True).clamp(0.0, _SHIFT)
    high = (boxes[..., :2] + boxes[..., 2:] / 2).where(element, 0.0).amax(dim=1, keepdim=True)
    room = (1.0 - high).clamp(0.0, _SHIFT)
    move = (torch.rand_like(low) * (low + room) - low).where(element, 0.0)
    return torch.cat([boxes[..., :2] + move, boxes[..., 2:]], dim=-1)


def _encoder_loss(encoder: nn.Module, decoder: nn.Module, labels: Tensor, boxes: Tensor) -> Tensor:
    element = labels != NO_ELEMENT
    low, high = (math.log(value) for value in _NOISE)
    scale = torch.exp(low + (high - low) * torch.rand(len(labels), 1, 1, device=labels.device))
    noised = boxes + scale * torch.randn_like(boxes)
    features = encoder(torch.cat([labels, labels]), torch.cat([boxes, noised]))
    real, kinds, places = decoder(features, torch.cat([element, element]))
    truth = torch.arange(len(real), device=real.device) < len(labels)
    told_apart = F.binary_cross_entropy_with_logits(real, truth.to(real.dtype))
    n = element.sum().clamp(min=1)
    kind = F.cross_entropy(kinds[: len(labels)].transpose(1, 2), labels.clamp(min=0), reduction="none")
    error = places[: len(labels)] - packed(labels, boxes, kinds.shape[-1])[..., :4]
    place = (error / BOX_SCALE).square().sum(dim=-1)
    # The boxes' errors are shares of the page, and small.
    return told_apart + (kind + 10.0 * place).where(element, 0.0).sum() / n


def _fit(
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    after: Callable[[int, Tensor], None],
    n: int,
    amount: Amount,
    device: torch.device | str,
    check: Check,
) -> None:
    """AdamW with a linear warm-up and a cosine to 0. loss_of: of the rows of a batch, drawn on the device."""
    optimizer = torch.optim.AdamW(parameters, amount.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    began = time.perf_counter()
    for step in range(amount.steps):
        done = max(step / amount.steps, (time.perf_counter() - began) / amount.seconds)
        if done >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = amount.rate * min((step + 1) / _WARM_UP_STEPS, 0.5 * (1.0 + math.cos(math.pi * done)))
        loss = loss_of(torch.randint(0, n, (amount.batch,), device=device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after(step, loss.detach())
        check()
