"""Batch sizes that fit: halved when the device's memory is full, and remembered."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from pgraft_fast.errors import PgraftError

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
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                text = str(error).splitlines()[0]
            # Outside of the handler: the error's frames hold tensors.
            if self.value == 1:
                raise PgraftError(
                    f"{self._name}: one row does not fit into memory ({text}); take a smaller model, LoRA, "
                    "train.checkpointing or memory = '8gb'"
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.value = max(1, self.value // 2)
            _LOG.warning("%s: out of memory, goes on with %d rows at once", self._name, self.value)
            self._on_change(self.value)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
