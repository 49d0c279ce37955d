"""Batches of pairs (sample, step), for methods that train on every step of a sample."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform


def sample_step_batches(
    sample_id: Tensor, steps: Tensor, *, count: int, parts: int, epochs: int, seed: int, most_steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, step), (rows,) int64, of each optimiser step: one step of every sample, then another of every one.

    sample_id: (n,) int64. steps: those to choose from, of which each sample trains `count`, drawn by its id. parts:
    optimiser steps of a pass, of nearly equal size, the samples in drawn orders. most_steps: more than any of steps.
    """
    for epoch in range(epochs if parts else 0):
        order = torch.argsort(uniform(seed, sample_id, epoch, Stream.TRAIN_ORDER), stable=True)
        words = (epoch * most_steps + steps).unsqueeze(1)
        draws = uniform(seed, sample_id, words, Stream.TRAIN_STEPS)
        chosen = steps[torch.argsort(draws, dim=0, stable=True)[:count]]
        for part in order.tensor_split(parts):
            yield part.repeat(count), chosen[:, part].flatten()
