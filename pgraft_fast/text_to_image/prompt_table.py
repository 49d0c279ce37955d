"""Embeddings of prompts, encoded once each and shared by all samples of a prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError

_AT_ONCE = 32


class PromptTable:
    """Rows of embeddings by prompt number; number len(texts) is the null prompt, of guidance.

    encode(texts) -> {column: (n, ...)}, of None as the pipeline does where no prompt is given. Those of the prompts in
    `prepare` lie on the device, all that were ever encoded in the host's memory, in `dtype`. On the device they are
    written over in place, so that CUDA graphs read the new ones; `graph_key` says where they lie.
    """

    def __init__(
        self, encode: Callable[[list[str | None]], dict[str, Tensor]], texts: Sequence[str], null_text: str | None,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._encode = encode
        self._texts: list[str | None] = [*texts, null_text]
        self._device, self._dtype = device, dtype
        self._known: dict[int, dict[str, Tensor]] = {}
        self._place = torch.full((len(self._texts),), -1, dtype=torch.int64, device=device)
        self._null = torch.tensor(len(self._texts) - 1, device=device)
        # At least as many rows as are present.
        self._columns: dict[str, Tensor] = {}
        self._present: frozenset[int] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptTable":
        """Copies of a model share it."""
        return self

    @property
    def null(self) -> Tensor:
        """() int64 on the device: the number of the null prompt."""
        return self._null

    @property
    def graph_key(self) -> tuple[int, ...]:
        """Addresses of what `rows` reads."""
        return tuple(value.data_ptr() for value in (self._place, self._null, *self._columns.values()))

    @torch.no_grad()
    def prepare(self, numbers: Tensor) -> None:
        """Bring the rows of these prompts, and the null prompt's, to the device."""
        wanted = sorted({*(int(number) for number in numbers.unique()), len(self._texts) - 1})
        if self._present.issuperset(wanted):
            return
        missing = [number for number in wanted if number not in self._known]
        for low in range(0, len(missing), _AT_ONCE):
            part = missing[low : low + _AT_ONCE]
            columns = self._encode([self._texts[number] for number in part])
            for row, number in enumerate(part):
                self._known[number] = {
                    name: value[row].detach().to("cpu", self._dtype) for name, value in columns.items()
                }
        rows = [self._known[number] for number in wanted]
        for name in rows[0]:
            found, held = torch.stack([row[name] for row in rows]), self._columns.get(name)
            if held is None or held.shape[0] < len(wanted):
                self._columns[name] = found.to(self._device)
            else:
                held[: len(wanted)].copy_(found)
        self._place.fill_(-1)
        self._place[torch.tensor(wanted, device=self._device)] = torch.arange(len(wanted), device=self._device)
        self._present = frozenset(wanted)

    def rows(self, numbers: Tensor) -> dict[str, Tensor]:
        """{column: (B, ...)} of prompts that `prepare` brought. numbers: (B,) int64. Nothing is read back on a GPU."""
        numbers = numbers.to(self._device)
        place = self._place.index_select(0, numbers)
        if place.device.type == "cpu" and (not self._columns or bool((place < 0).any())):
            raise InputError("PromptTable.rows: a prompt was asked for that prepare() did not bring")
        return {name: value.index_select(0, place) for name, value in self._columns.items()}
