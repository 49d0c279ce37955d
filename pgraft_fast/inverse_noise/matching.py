"""Learning a vector field between data and noise: of a base flow and of a corrector alike.

Every random number is keyed by (seed, step), so a run that was killed and goes on ends with the same bits.
"""

import copy
import math
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Stream, normal, uniform
from pgraft_fast.errors import InputError, PgraftError
from pgraft_fast.finetune.checkpoint import Checkpoint, newest_for_all, save_checkpoint
from pgraft_fast.finetune.gradients import Gradients
from pgraft_fast.finetune.identity import (
    changed_versions,
    check_same,
    lasting,
    sha256_of_module,
    versions,
)
from pgraft_fast.finetune.kernel_choice import training_kernels
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.optimizing import follow, load_moments, moments_of, warmed_up
from pgraft_fast.inverse_noise.interpolants import Interpolant
from pgraft_fast.inverse_noise.sources import Source, contents_of
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.threads import team_of

_HELD_OUT_SEED = 1 << 62


@dataclass(frozen=True)
class FitSettings:
    """steps: of AdamW on batch_size rows each, the rate falling to 0 by a cosine. ema: decay of the averaged weights,
    which are the result. held_out: share of the rows for the early stop, 0 is none; it ends after `patience` checks in
    a row that were no better, each `check_every` steps. save_every: steps between checkpoints. precision: "fp32", or
    "bf16" for the network under autocast.
    """

    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    ema: float = 0.995
    held_out: float = 0.0
    check_every: int = 250
    patience: int = 8
    save_every: int = 1000
    precision: str = "fp32"
    seed: int = 0


@dataclass
class Fitted:
    """network: with the averaged weights, those of the best check where rows were held out. history: of the checks."""

    network: nn.Module
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)


def fit_field(
    network: nn.Module,
    source: Source,
    interpolant: Interpolant,
    settings: FitSettings,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    log: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Regress network(x_u, u) on the interpolant's velocity.

    folder: of checkpoints, from which the same call goes on; identity: what else must be the same then. check():
    between steps, may raise. ranks: among which the rows of a step are dealt. Raises InputError, CheckpointError,
    StorageError; PgraftError where the loss is not finite.
    """
    fit = _Fit(network, source, interpolant, settings, {**asdict(settings), **(identity or {})}, log, ranks)
    if folder is not None:
        fit.resume(folder)
    return fit.run(folder, check)


class _Weights:
    """What `Gradients` needs of a network in training."""

    sharded = False

    def __init__(self, network: nn.Module) -> None:
        self.trained = list(network.parameters())

    def most_rows(self) -> int:
        return sys.maxsize

    def begin(self) -> None:
        for weight in self.trained:
            weight.grad = None

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class _Fit:
    def __init__(
        self, network: nn.Module, source: Source, interpolant: Interpolant, settings: FitSettings,
        identity: dict[str, Any], log: Callable[[str], None], ranks: Ranks,
    ) -> None:  # fmt: skip
        n = len(source)
        if settings.precision not in ("fp32", "bf16"):
            raise InputError(f"precision={settings.precision!r} is unknown; known: fp32, bf16")
        self._held = round(settings.held_out * n)
        self._train = n - self._held
        if self._train < 1 or (settings.held_out > 0 and self._held < 1):
            raise InputError(f"{n} rows with held_out={settings.held_out}: too few to learn from")
        self._source, self._interpolant, self._settings, self._log = source, interpolant, settings, log
        self._ranks = ranks
        self._identity = {
            **lasting(identity), "interpolant": interpolant.name, "rows": n, "data": contents_of(source),
            "first weights": sha256_of_module(network),
        }  # fmt: skip
        self._model = network.train()
        self._average = copy.deepcopy(network).requires_grad_(False).eval()
        self._best: dict[str, Tensor] | None = None
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay,
            fused=next(network.parameters()).device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self._device = next(network.parameters()).device
        self._reader = ThreadPoolExecutor(1) if source.slow else None
        self._ahead: tuple[int, Future[Tensor]] | None = None
        self._state: dict[str, Any] = {"step": 0, "history": [], "best": None, "waited": 0}

    def run(self, folder: Path | None, check: Callable[[], None]) -> Fitted:
        shape = self._source.rows(torch.arange(1), 0).shape[1:]
        try:
            with team_of(self._model, self._settings.batch_size, shape, self._device), training_kernels(self._device):
                self._run(folder, check)
        finally:
            if self._reader is not None:
                self._reader.shutdown(cancel_futures=True)
        if self._best is not None:
            self._average.load_state_dict(self._best)
        return Fitted(self._average, self._state["step"], self._state["history"])

    def _run(self, folder: Path | None, check: Callable[[], None]) -> None:
        settings, state = self._settings, self._state
        size = BatchSize(settings.batch_size, "training")
        gradients = Gradients(_Weights(self._model), size, check, lambda: False, self._ranks)
        while state["step"] < settings.steps and not self._should_stop():
            self._step(state["step"], gradients)
            state["step"] += 1
            if self._held and state["step"] % settings.check_every == 0:
                self._judge()
            if folder is not None and state["step"] % settings.save_every == 0:
                self._save(folder)
        if folder is not None and state["step"] % settings.save_every:
            self._save(folder)

    def _should_stop(self) -> bool:
        return bool(self._held) and self._state["waited"] >= self._settings.patience

    def _step(self, step: int, gradients: Gradients) -> None:
        settings, batch = self._settings, self._batch(step)
        total = batch.shape[0]

        def losses(low: int, high: int) -> Tensor:
            return self._loss(self._model, batch, step, settings.seed, slice(low, high)) * ((high - low) / total)

        gradients.of(total, losses)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), float("inf"))
        if not torch.isfinite(norm):
            raise PgraftError(f"the gradient of step {step} is not finite; lower learning_rate")
        for group in self._optimizer.param_groups:
            group["lr"] = 0.5 * settings.learning_rate * (1.0 + math.cos(math.pi * step / settings.steps))
        self._optimizer.step()
        follow(self._average.parameters(), self._model.parameters(), warmed_up(settings.ema, step))

    def _batch(self, step: int) -> Tensor:
        """The rows of a step; those of a slow source are read one step ahead."""
        if self._reader is None:
            return self._rows(step)
        ahead, self._ahead = self._ahead, None
        rows = ahead[1].result() if ahead is not None and ahead[0] == step else self._rows(step)
        if step + 1 < self._settings.steps:
            self._ahead = (step + 1, self._reader.submit(self._rows, step + 1))
        return rows

    def _rows(self, step: int) -> Tensor:
        place = torch.arange(self._settings.batch_size)
        index = (uniform(self._settings.seed, place, step, Stream.FIELD_ROWS) * self._train).long()
        return self._source.rows(index, step)

    def _loss(self, network: nn.Module, data: Tensor, step: int, seed: int, part: slice = slice(None)) -> Tensor:
        """Mean over some rows of a batch, whose noise and time are those of their places in it."""
        device, n = self._device, data.shape[0]
        data = data[part].to(device, non_blocking=True)
        place = torch.arange(n, device=device)[part]
        noise = normal(seed, place, step, tuple(data.shape[1:]), Stream.FIELD_NOISE)
        # Spread evenly over each batch.
        offset = uniform(seed, torch.zeros_like(place[:1]), step, Stream.FIELD_TIME)
        u = ((offset + place / n) % 1.0).to(torch.float32)
        x, target = self._interpolant.between(data, noise, u)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            velocity = network(x, u)
        return (velocity.to(torch.float32) - target).square().mean()

    @torch.no_grad()
    def _judge(self) -> None:
        """The loss of the average on the rows held out, always at the same noise; the first rank tells all."""
        state, loss = self._state, self._ranks.from_first(self._held_out_loss)
        state["history"].append({"step": state["step"], "held_out_loss": loss})
        if state["best"] is None or loss < state["best"]:
            state["best"], state["waited"] = loss, 0
            self._best = {name: value.clone() for name, value in self._average.state_dict().items()}
        else:
            state["waited"] += 1
        self._log(f"step {state['step']} of {self._settings.steps}: held-out loss {loss:.4f}")

    def _held_out_loss(self) -> float:
        # Pictures are judged in smaller parts than points.
        size = 4096 if not self._source.slow else self._settings.batch_size
        losses = []
        for low in range(0, self._held, size):
            index = torch.arange(self._train + low, min(self._train + low + size, self._train + self._held))
            rows = self._source.rows(index, low // size)
            losses.append(float(self._loss(self._average, rows, low // size, _HELD_OUT_SEED)) * index.numel())
        return sum(losses) / self._held

    def _save(self, folder: Path) -> None:
        tensors = {
            "model": self._model.state_dict(), "average": self._average.state_dict(),
            "optimizer": moments_of(self._optimizer),
        }  # fmt: skip
        if self._best is not None:
            tensors["best"] = self._best
        state = {"fit": self._state, "identity": self._identity, "versions": versions()}
        self._ranks.once(lambda: save_checkpoint(folder, Checkpoint(self._state["step"], state, tensors)))

    def resume(self, folder: Path) -> None:
        checkpoint = newest_for_all(self._ranks, folder, self._log)
        if checkpoint is None:
            return
        defaults = lasting(asdict(FitSettings()))
        check_same(checkpoint.state["identity"], self._identity, f"the run in {folder}", defaults)
        changes = changed_versions(checkpoint.state.get("versions", {}))
        if changes:
            self._log(f"{folder}: {changes}")
        self._model.load_state_dict(checkpoint.tensors["model"])
        self._average.load_state_dict(checkpoint.tensors["average"])
        self._best = checkpoint.tensors.get("best")
        load_moments(self._optimizer, checkpoint.tensors["optimizer"])
        self._state = checkpoint.state["fit"]
        self._log(f"goes on after step {self._state['step']}")
