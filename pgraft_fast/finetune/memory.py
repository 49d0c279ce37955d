"""Batch sizes that fit: halved when the device's memory is full, and remembered."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from pgraft_fast.errors import PgraftError, is_out_of_memory

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)


class BatchSize:
    """value: rows at once. Results do not depend on it but for rounding: every random number is a row's own.

    on_change(value): after a halving.
    """

    def __init__(self, value: int, name: str = "batch", on_change: Callable[[int], None] = lambda value: None) -> None:
        self.value, self._name, self._on_change = value, name, on_change

    def run(self, work: Callable[[int], Result]) -> Result:
        """work(size), again with half the size for as long as memory runs out. Raises PgraftError where one row is too
        much.
        """
        while True:
            try:
                return work(self.value)
            except PgraftError:
                # A reward beside may have run out of memory: that is its own batch.
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                text = next(iter(str(error).splitlines()), type(error).__name__)
            # Outside of the handler: the error's frames hold tensors.
            if self.value == 1:
                raise PgraftError(
                    f"{self._name}: one row does not fit into memory ({text}); take a smaller model, LoRA, "
                    "train.checkpointing or memory = '8gb'"
                )
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            self.value = max(1, self.value // 2)
            _LOG.warning("%s: out of memory, goes on with %d rows at once", self._name, self.value)
            self._on_change(self.value)
