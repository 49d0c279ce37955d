"""Optimiser steps as CUDA graphs: a small network trains in the time of its kernels, not of their launches."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.optimizing import tell_written
from pgraft_fast.sampling.graphs import GraphCache


class CapturedSteps:
    """Two graphs a step: gradients and their norm, which the host looks at, and the step of optimiser and averages.

    The same operations as in `Learner.step`; the first step is made plainly, since it makes the optimiser's moments.
    """

    def __init__(self, learner: Learner, graphs: GraphCache) -> None:
        self._learner, self._graphs = learner, graphs
        self._refused = not learner.can_be_captured

    def step(
        self, key: Hashable, loss_of: Callable[[list[Tensor]], Tensor], inputs: list[Tensor]
    ) -> tuple[Tensor, bool] | None:
        """(loss_of(inputs), whether its gradient was finite and a step was made). loss_of: (k,), of which the first has
        a gradient. key: of all that the loss depends on beside inputs and weights. None where the step cannot be
        captured: nothing has been done then.
        """
        learner = self._learner
        if self._refused or not learner.optimizer.state:
            return None

        def gradients(buffers: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
            learner.begin()
            loss = loss_of(buffers)
            learner.backward(loss[0])
            return [loss.detach(), learner.clip()]

        whole = ("gradients", key)
        # Each replay writes the gradients to where the capture did.
        outputs = self._graphs.run(whole, gradients, inputs, keep=lambda: [weight.grad for weight in self._weights()])
        if outputs is None:
            self._refused = True
            return None
        loss, norm = outputs
        moves = learner.may_move(norm)
        if moves:
            written = self._graphs.kept(whole, inputs)
            for weight, gradient in zip(self._weights(), written, strict=True):
                weight.grad = gradient
            self._move(norm)
        return loss, moves

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights() if weight.grad is not None]

    def _weights(self) -> list[Tensor]:
        return [weight for group in self._learner.optimizer.param_groups for weight in group["params"]]

    def _move(self, norm: Tensor) -> None:
        learner, written = self._learner, self._learner.moved()
        before: list[Tensor] = []

        def move(buffers: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
            if not before:
                # What runs before a capture makes steps that are not meant.
                before.extend(value.detach().clone() for value in written)
            learner.move()
            return [buffers[0]]

        def put_back() -> None:
            with torch.no_grad():
                for value, old in zip(written, before, strict=True):
                    value.copy_(old)

        places = hash(tuple(value.data_ptr() for value in (*written, *self._gradients())))
        if self._graphs.run(("step", places), move, [norm], keep=put_back) is None:
            if before:
                put_back()
            self._refused = True
            learner.move()
            return
        # A replay runs none of torch's code.
        tell_written(written)
