"""A model in training, and its optimiser steps."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune.masters import Masters
from pgraft_fast.finetune.optimizing import follow, load_moments, moments_of, tell_written
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.sampling import Model

_MOST_REJECTED_IN_A_ROW = 3
# Gradients of float16 below 6e-8 are 0: losses are multiplied by this at first, less where they overflow.
FIRST_SCALE = 2.0**16


class Learner:
    """A model in training: raw weights, averaged weights (`ema`, the result) and the optimiser.

    run: what is called in training: the model, or a compiled one with the same weights. sampled: the same weights as
    they are called in sampling, with guidance where there is some, for losses on what was sampled. frozen: what the
    contrast objective starts from, called as in training: the reference, or see `freeze`. averaged: the averaged
    weights, called as in training. trained: the weights that get gradients. Those of 16 bits have float32 masters,
    which are trained, averaged and kept; in float16 the loss is scaled. overflows: whether the last step did not end
    because that scale was too large. sharded: whether ranks share the network, and make all of its calls together.
    """

    sharded = False

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model = self._copied(model).requires_grad_(True)
        self.ema = self._copied(model).requires_grad_(False)
        self.frozen: Model = model
        self.averaged: Model = self.ema
        self._start_of_round: nn.Module | None = None
        self._start(dict(self.model.named_parameters()), dict(self.ema.named_parameters()), settings)

    def _start(
        self, values: dict[str, nn.Parameter], averages: dict[str, nn.Parameter], settings: TrainSettings
    ) -> None:
        """values: what is trained, by name; averages: what follows it."""
        self.settings, self._masters, self._averages = settings, self._kept(values), self._kept(averages)
        self.trained = list(values.values())
        # One pass over all weights where torch has it: a third of the time of the loop over tensors.
        device = next(iter(values.values())).device.type
        self.optimizer = torch.optim.AdamW(
            self._masters.by_name.values(), settings.learning_rate, weight_decay=settings.weight_decay,
            fused=device in ("cpu", "cuda"), capturable=device == "cuda",
        )  # fmt: skip
        self._scaler = self._scaler_of(device)
        self.overflows = False
        self.steps_done = 0
        self.run: Model = self.model
        self.sampled: Model = self.model

    def freeze(self) -> None:
        """From now on the contrast objective starts from the averaged weights as they are."""
        if self._start_of_round is None:
            self._start_of_round = self._copied(self.ema, trained=False)
        self._copy_weights(self.ema, self._start_of_round)
        self.frozen = self._start_of_round

    @property
    def can_be_captured(self) -> bool:
        """Whether a step is the same work each time: without a scaled loss, and without recomputing, which keeps the
        state of random numbers on the host.
        """
        nets: Any = self.model
        recomputes = any(getattr(part, "gradient_checkpointing", False) for part in nets.modules())
        return self._scaler is None and not recomputes

    def begin(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        self._masters.forget_gradients()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the batch."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, follow: bool = True) -> tuple[bool, Tensor]:
        """One optimiser step and the norm of its gradient; one that is not finite changes nothing: False.

        follow: whether the averaged weights follow.
        """
        norm = self.clip()
        done = self.may_move(norm)
        if done:
            self.move(follow)
        return done, norm

    def clip(self) -> Tensor:
        """The first half of a step: the norm of the gradient, which is clipped."""
        self._masters.take_gradients()
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        return self._clipped()

    def may_move(self, norm: Tensor) -> bool:
        """Between the halves: whether the gradient is finite."""
        done = bool(torch.isfinite(norm))
        if self._scaler is not None:
            self.overflows = not done and self._scaler.get_scale() > 1.0
            self._scaler.update()
        return done

    def move(self, follow: bool = True) -> None:
        """The second half: the optimiser's step."""
        self.optimizer.step()
        tell_written(self._masters.by_name.values())
        self._masters.write()
        if follow:
            self.follow(self.settings.ema)

    def moved(self) -> list[Tensor]:
        """All that `move` writes to, once there was a first step."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self._masters.written(), *self._averages.written(), *moments]

    def follow(self, decay: float) -> None:
        """The averaged weights keep this share of themselves and take the rest from the raw ones."""
        follow(self._averages.by_name.values(), self._masters.by_name.values(), decay)
        self._averages.write()

    def update(self, loss: Tensor) -> tuple[bool, Tensor]:
        """`begin`, `backward` and `step`."""
        self.begin()
        self.backward(loss)
        return self.step()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that `load` needs to go on."""
        scaling = {} if self._scaler is None else {"scaling": _scaling_of(self._scaler)}
        return {**self.weights(), "optimizer": moments_of(self.optimizer), **scaling}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """{"model": raw, "ema": averaged}, in the precision in which they are trained."""
        return {
            "model": {**self.model.state_dict(), **self._masters.by_name},
            "ema": {**self.ema.state_dict(), **self._averages.by_name},
        }

    def most_rows(self) -> int:
        """That may be trained on at once."""
        return sys.maxsize

    def alike(self) -> list[Tensor]:
        """What is the same on all ranks."""
        return list(self.weights()["model"].values())

    def gathered(self) -> dict[str, dict[str, Tensor]]:
        """`tensors`, whole, where they are to be written; called by all ranks."""
        return self.tensors()

    def load_weights(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Inverse of `weights`."""
        self.model.load_state_dict(tensors["model"])
        self.ema.load_state_dict(tensors["ema"])
        self._masters.load(tensors["model"])
        self._averages.load(tensors["ema"])

    def load(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Inverse of `tensors`."""
        self.load_weights(tensors)
        load_moments(self.optimizer, tensors.get("optimizer", {}))
        if self._scaler is not None and "scaling" in tensors:
            _load_scaling(self._scaler, tensors["scaling"])
        self.steps_done = steps_done

    def _copied(self, model: Any, trained: bool = True) -> Any:
        return copy.deepcopy(model)

    def _copy_weights(self, source: Any, target: Any) -> None:
        target.load_state_dict(source.state_dict())

    def _kept(self, weights: dict[str, nn.Parameter]) -> Masters:
        return Masters(weights)

    def _scaler_of(self, device: str) -> torch.amp.GradScaler | None:
        scaled = any(weight.dtype is torch.float16 for weight in self.model.parameters())
        return torch.amp.GradScaler(device, init_scale=FIRST_SCALE) if scaled else None

    def _clipped(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self._masters.by_name.values(), self.settings.clip)


class OptimizerSteps:
    """Steps of a learner, one after the other. rejected: those whose gradient was not finite."""

    def __init__(self, learner: Learner, follow: bool = True) -> None:
        self._learner, self._follow = learner, follow
        self.rejected = self._in_a_row = 0

    def step(
        self, accumulate: Callable[[], Tensor], captured: Callable[[], tuple[Tensor, bool] | None] | None = None
    ) -> Tensor:
        """accumulate() makes the gradients, and is returned. Where float16 overflows it is asked again, with a smaller
        scale of the loss. captured(): see `CapturedSteps.step`, asked first. Raises PgraftError at the third gradient
        in a row that is not finite.
        """
        learner = self._learner
        result, done = (captured and captured()) or self._made(accumulate)
        while not done and learner.overflows:
            result, done = self._made(accumulate)
        learner.steps_done += 1
        self._in_a_row = 0 if done else self._in_a_row + 1
        self.rejected += not done
        if self._in_a_row == _MOST_REJECTED_IN_A_ROW:
            raise PgraftError(
                f"training: the gradient was not finite {self._in_a_row} times in a row; lower train.learning_rate"
            )
        return result

    def _made(self, accumulate: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        result = accumulate()
        return result, self._learner.step(self._follow)[0]


def _scaling_of(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    state = scaler.state_dict()
    return {"scale": torch.tensor(state["scale"]), "steps": torch.tensor(state["_growth_tracker"])}


def _load_scaling(scaler: torch.amp.GradScaler, saved: dict[str, Tensor]) -> None:
    known = {"scale": float(saved["scale"]), "_growth_tracker": int(saved["steps"])}
    scaler.load_state_dict({**scaler.state_dict(), **known})
