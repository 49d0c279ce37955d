"""What a layout is asked for by: how many elements, which labels, and elements that are given with their box.

A condition is (B, N, 6) float32, a slot a row: kind (-1 no element, 0 ... L-1 a known label, L an unknown one),
box_known (1 or 0), and centre x, centre y, width, height as shares of the page, 0 where not given.
Texts: "7 elements"; "title, text, text, figure"; "title at 0.5 0.08 0.6 0.04, text, 3 elements".
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, NO_ELEMENT, PUBLAYNET, Layouts
from pgraft_fast.tasks.sets import shares

COLUMNS = 6
EXAMPLE = "title at 0.5 0.08 0.6 0.04, text, 3 elements"
KINDS = ("number", "labels", "completion")
_ITEM = re.compile(r"(?:(?P<n>\d+) +elements?|(?P<name>[^@,]+?))(?: +at +(?P<box>\S+ +\S+ +\S+ +\S+))?")


def element_mask(condition: Tensor) -> Tensor:
    """(..., N) bool: the slots of a condition (..., N, 6) that are elements."""
    return condition[..., 0] > NO_ELEMENT + 0.5


def counts_of(condition: Tensor) -> Tensor:
    """(B,) int64: numbers of elements of a condition (B, N, 6)."""
    return element_mask(condition).sum(dim=-1)


def condition_of(texts: Sequence[str], names: tuple[str, ...] = PUBLAYNET, n_max: int = MAX_ELEMENTS) -> Tensor:
    """(B, n_max, 6) float32 of texts, see above. Raises InputError for a text that cannot be read."""
    return torch.stack([_slots(text, names, n_max) for text in texts]) if texts else torch.zeros(0, n_max, COLUMNS)


def condition_from(labels: Tensor, boxes: Tensor, label_known: Tensor, box_known: Tensor, n_labels: int) -> Tensor:
    """(B, N, 6) of layouts, see `elements`, of which some labels and boxes are told.

    labels: (B, N) int64, -1 where there is no element. boxes: (B, N, 4). label_known, box_known: (B, N) bool, not
    read where there is no element.
    """
    element = labels != NO_ELEMENT
    kind = labels.where(label_known, n_labels).where(element, NO_ELEMENT)
    box_known = box_known & element
    flags = torch.stack([kind, box_known], dim=-1).to(torch.float32)
    return torch.cat([flags, boxes.to(torch.float32).where(box_known[..., None], 0.0)], dim=-1)


def prompt_texts(layouts: Layouts, kind: str, n: int, seed: int = 0) -> list[str]:
    """n texts from a data set. number: numbers of elements as often as in the set, by the largest remainder,
    ascending. labels: those of drawn layouts. completion: a drawn part of their elements with label and box, at least
    one and not all (one of one), and how many more there are. Raises InputError.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} of prompts is unknown; known: {', '.join(KINDS)}")
    if kind == "number":
        return [_elements(size) for size in _sizes(layouts, n)]
    generator = torch.Generator().manual_seed(seed)
    times = -(-n // len(layouts))
    rows = torch.cat([torch.randperm(len(layouts), generator=generator) for _ in range(times)])[:n]
    texts = []
    for labels, boxes in zip(layouts.labels[rows], layouts.boxes[rows], strict=True):
        size = int((labels != NO_ELEMENT).sum())
        order = torch.randperm(size, generator=generator)
        part = size if kind == "labels" else int(torch.randint(1, max(size, 2), (1,), generator=generator))
        # In the order of the data.
        chosen = order[:part].sort().values
        items = [layouts.names[int(labels[slot])] for slot in chosen]
        if kind == "completion":
            items = [
                f"{item} at {' '.join(f'{value:.4g}' for value in boxes[slot].tolist())}"
                for item, slot in zip(items, chosen, strict=True)
            ]
            items += [_elements(size - part)] if size > part else []
        texts.append(", ".join(items))
    return texts


def training_condition(labels: Tensor, boxes: Tensor, n_labels: int, kind: Tensor, share: Tensor) -> Tensor:
    """The conditions of a batch of layouts in training. kind: (B,) 0 number, 1 labels, 2 completion. share: (B,) in
    [0, 1] of the elements that are told by label and box in the last; which ones is drawn on the device.
    """
    drawn = torch.rand(labels.shape, device=labels.device) < share[:, None]
    box_known = drawn & (kind == 2)[:, None]
    return condition_from(labels, boxes, box_known | (kind == 1)[:, None], box_known, n_labels)


@lru_cache(maxsize=100_000)
def _slots(text: str, names: tuple[str, ...], n_max: int) -> Tensor:
    numbers = {name.lower(): float(label) for label, name in enumerate(names)}
    rows: list[list[float]] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(" ".join(item.split()))
        kind = float(len(names)) if match and match["n"] else numbers.get((match["name"] if match else "").lower())
        if match and match["name"] and match["name"].lower() == "element":
            kind = float(len(names))
        if match is None or kind is None:
            raise _unread(text, f"{item.strip()!r} is no label or number of elements; labels: {', '.join(names)}")
        times = int(match["n"] or 1)
        if not 1 <= times <= n_max or len(rows) + times > n_max:
            raise _unread(text, f"1 to {n_max} elements fit")
        rows += [[kind, *_box(text, match["box"])]] * times
    slots = torch.zeros(n_max, COLUMNS)
    slots[:, 0] = NO_ELEMENT
    slots[: len(rows)] = torch.tensor(rows)
    return slots


def _box(text: str, box: str | None) -> list[float]:
    """box_known, then the box."""
    if box is None:
        return [0.0] * 5
    try:
        numbers = [float(part) for part in box.split()]
    except ValueError:
        numbers = []
    centre, size = numbers[:2], numbers[2:]
    if not numbers or not all(0.0 <= value <= 1.0 for value in centre) or not all(0.0 < value <= 1.0 for value in size):
        raise _unread(text, f"{box!r} is no centre x, centre y, width, height as shares of the page")
    return [1.0, *numbers]


def _unread(text: str, reason: str) -> InputError:
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return InputError(f"layout {shown!r} cannot be read: {reason}; for example {EXAMPLE!r}")


def _elements(n: int) -> str:
    return f"{n} element{'s' if n != 1 else ''}"


def _sizes(layouts: Layouts, n: int) -> list[int]:
    whole = shares(torch.bincount(layouts.count), n)
    return torch.arange(len(whole)).repeat_interleave(whole).tolist()
