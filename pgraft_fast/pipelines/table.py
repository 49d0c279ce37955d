"""What an explained denoiser is given of each prompt beside state and time: recorded once, kept on its device."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.explain import NotExplainedError
from pgraft_fast.pipelines.loop import NetCall
from pgraft_fast.pipelines.rules import Constant, Explanation, Listed, Whole, leaves_of, values_of

# Prompts whose constants are kept in the host's memory besides those on the device.
_KEPT = 1024


@dataclass(frozen=True)
class Constants:
    """Of one prompt. leaves: of each argument of each call in turn. Prompts of one kind go through the denoiser
    together: they have equal shapes, and the very same values where all rows share one.
    """

    leaves: list[Any]
    kind: tuple[Any, ...]


class PromptTable:
    """rows(numbers): the constants of these prompts, as many rows as numbers, for calls with several copies of them.

    record(number): the calls of the denoiser in one iteration of a sample of this prompt. On the device lie those that
    `prepare` brought; they are written over in place, so that CUDA graphs read the new ones: `graph_key` says where
    they lie.
    """

    def __init__(
        self, explanation: Explanation, record: Callable[[int], Sequence[NetCall]], count: int, device: torch.device
    ) -> None:
        self._explanation, self._record, self._device = explanation, record, device
        self._rules = leaves_of([(call.args, call.kwargs) for call in explanation.calls])
        self._known: OrderedDict[int, Constants] = OrderedDict()
        # Row of each prompt in the columns of its kind.
        self._place = torch.full((count,), -1, dtype=torch.int64, device=device)
        self._columns: dict[Any, list[Any]] = {}
        self._present: dict[int, Any] = {}

    @property
    def kinds(self) -> int:
        """Of the prompts on the device."""
        return len(self._columns)

    @property
    def on_device(self) -> bool:
        """Whether `rows` reads nothing back to the host: all prompts are of one kind, and no argument is a list."""
        return self.kinds == 1 and not any(isinstance(rule, Listed) and not rule.state for rule in self._rules)

    @property
    def graph_key(self) -> tuple[int, ...]:
        """Addresses of what `rows` reads."""
        columns = (value for held in self._columns.values() for value in held if isinstance(value, Tensor))
        return tuple(value.data_ptr() for value in (self._place, *columns))

    def kind(self, number: int) -> Any:
        """Of a prompt that is on the device."""
        return self._present[number]

    @torch.no_grad()
    def prepare(self, numbers: Sequence[int]) -> None:
        """Bring the constants of these prompts to the device."""
        # Asked at every step of a rollout.
        if all(number in self._present for number in numbers):
            return
        wanted = sorted(set(numbers))
        constants = {number: self._constants(number) for number in wanted}
        kinds: dict[Any, list[int]] = {}
        for number, of_prompt in constants.items():
            kinds.setdefault(of_prompt.kind, []).append(number)
        held, self._columns = self._columns, {}
        self._place.fill_(-1)
        for kind, of_kind in kinds.items():
            self._columns[kind] = self._filled(held.get(kind), [constants[number].leaves for number in of_kind])
            rows = torch.arange(len(of_kind), device=self._device)
            self._place[torch.tensor(of_kind, device=self._device)] = rows
        self._present = {number: of_prompt.kind for number, of_prompt in constants.items()}
        while len(self._known) > _KEPT + len(wanted):
            self._known.popitem(last=False)

    def rows(self, numbers: Tensor, kind: Any = None) -> Iterator[Any]:
        """The leaves for (B,) int64 prompts of one kind: tensors (copies B, ...), all of the first copy first. Nothing
        is read back on a GPU where `on_device` is.
        """
        place = self._place.index_select(0, numbers.to(self._device))
        if place.device.type == "cpu" and bool((place < 0).any()):
            raise InputError("PromptTable.rows: a prompt was asked for that prepare() did not bring")
        columns = self._columns[next(iter(self._columns)) if kind is None else kind]
        for rule, column in zip(self._rules, columns, strict=True):
            if isinstance(rule, Listed) and not rule.state:
                listed = [column[row] for row in place.tolist()]
                yield [value[copy] for copy in range(rule.copies) for value in listed]
            elif isinstance(column, Tensor) and _copies(rule):
                # (rows, copies, each, ...)
                yield column.index_select(0, place).transpose(0, 1).flatten(0, 2).movedim(0, _dim(rule))
            else:
                yield column

    def _constants(self, number: int) -> Constants:
        known = self._known.pop(number, None)
        if known is None:
            known = self._recorded(number)
        self._known[number] = known
        return known

    def _recorded(self, number: int) -> Constants:
        calls, rules = self._record(number), self._explanation.calls
        if len(calls) != len(rules):
            raise NotExplainedError("another prompt calls the denoiser another number of times")
        pairs = [
            pair
            for rule, call in zip(rules, calls, strict=True)
            for pair in values_of((rule.args, rule.kwargs), (call.args, call.kwargs))
        ]
        return Constants([_on_host(value) for _, value in pairs], tuple(_kind(rule, value) for rule, value in pairs))

    def _filled(self, held: list[Any] | None, leaves: list[list[Any]]) -> list[Any]:
        """Columns of these prompts, in the place of those that are held where they fit."""
        columns: list[Any] = []
        for number, (rule, *values) in enumerate(zip(self._rules, *leaves, strict=True)):
            copies, first = _copies(rule), values[0]
            if isinstance(rule, Listed):
                columns.append([_to(value, self._device) for value in values])
            elif copies and isinstance(first, Tensor):
                column = torch.stack([value.movedim(_dim(rule), 0).unflatten(0, (copies, -1)) for value in values])
                own = None if held is None else held[number]
                if own is None or own.shape[0] < len(values):
                    columns.append(column.to(self._device))
                else:
                    own[: len(values)].copy_(column)
                    columns.append(own)
            else:
                # What all rows share is the same for all prompts of a kind.
                columns.append(_to(first, self._device) if held is None else held[number])
        return columns


def _copies(rule: Any) -> int:
    """Rows of a sample in what is kept of an argument; 0 where all samples share it."""
    if isinstance(rule, Constant):
        return rule.rows
    return rule.copies if isinstance(rule, Whole) and rule.dim is not None else 0


def _dim(rule: Any) -> int:
    """Along which the rows lie."""
    return rule.dim if isinstance(rule, Constant) else 0


def _kind(rule: Any, value: Any) -> Any:
    """Equal for what may stand beside each other in a batch."""
    if not isinstance(value, Tensor):
        return repr(value) if isinstance(rule, Constant) else None
    content = None if _copies(rule) else hashlib.sha256(value.float().cpu().contiguous().numpy().tobytes()).digest()
    return tuple(value.shape), value.dtype, content


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return [_on_host(entry) for entry in value] if isinstance(value, list) else value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_to(entry, device) for entry in value] if isinstance(value, list) else value
