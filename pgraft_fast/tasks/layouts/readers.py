"""Layouts from files: PubLayNet's COCO JSON, and RICO's semantic annotations.

What these data sets hold that no layout has, such as a box off its page, is left out and counted; what their files
never hold, such as a category 0, raises InputError: file, entry, what is wrong.
"""

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.files import read_text
from pgraft_fast.tasks.layouts.elements import (
    MAX_ELEMENTS,
    PUBLAYNET,
    RICO,
    Layouts,
    cxcywh_from_ltrb,
)
from pgraft_fast.tasks.layouts.json_entries import entries
from pgraft_fast.tasks.sets import filled

# Percent of a permutation with torch's seed 0, in this order. PubLayNet's val.json is the test set.
PUBLAYNET_PARTS = {"train": 95, "validation": 5}
RICO_PARTS = {"train": 85, "validation": 5, "test": 10}
_RICO_INDEX = {name: index for index, name in enumerate(RICO)}

_WIDE = "pages wider than high"
_ODD = "screens that do not begin at 0, 0 or have no size"
_OFF = "boxes that leave the page"
_FLAT = "boxes without an area"
_UNKNOWN = "elements without a label of the set"
_EMPTY = "pages without a box"


@dataclass
class Dropped:
    """What was left out. counts: by reason. first: where the first of each was."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, n: int = 1) -> None:
        """Count n more."""
        self.counts[reason] = self.counts.get(reason, 0) + n
        self.first.setdefault(reason, where)

    @property
    def lines(self) -> list[str]:
        """One for each reason: how many, why, where the first was."""
        return [f"{n} {reason}; the first: {self.first[reason]}" for reason, n in self.counts.items()]


@dataclass(frozen=True)
class Reading:
    """layouts: what was read. dropped: what was not."""

    layouts: Layouts
    dropped: Dropped


def read_publaynet(path: Path, n_max: int = MAX_ELEMENTS) -> Reading:
    """train.json or val.json of PubLayNet, read as a stream: held are 41 bytes a box and the pages' sizes.

    Pages are in the order of their ids, as LayoutDM's split has it (arXiv 2303.08137); boxes in that of the file.

    Left out: boxes that leave the page or have no area; pages wider than high, of no box or more than n_max. bbox is
    left, top, width, height in px, category_id begins at 1. Raises InputError.
    """
    pages: dict[int, tuple[float, float]] = {}
    images, categories, numbers = array("q"), array("b"), array("d")
    try:
        with open(path, encoding="utf-8-sig") as file:
            for key, number, value in entries(file):
                try:
                    if key == "images":
                        _add_page(pages, value)
                    elif key == "annotations":
                        image, category, box = _annotation(value)
                        images.append(image)
                        categories.append(category)
                        numbers.extend(box)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise ValueError(f"{key}, entry {number}: {_reason(error)}") from error
    except OSError as error:
        raise InputError(f"{path}: layouts cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if not pages:
        raise InputError(f"{path}: no images in it; the JSON of PubLayNet has images and annotations")
    pages = dict(sorted(pages.items()))
    boxes = np.frombuffer(numbers, dtype=np.float64).reshape(-1, 4)
    labels = np.frombuffer(categories, dtype=np.int8).astype(np.int64) - 1
    try:
        return _publaynet(pages, _rows_of(pages, np.frombuffer(images, dtype=np.int64)), labels, boxes, n_max)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def read_rico(folder: Path, n_max: int = MAX_ELEMENTS) -> Reading:
    """RICO's semantic annotations: a folder of JSON trees, taken in the order of their names.

    The root's bounds are 0, 0, width, height; its children, at any depth, are the elements, with componentLabel and
    bounds = left, top, right, bottom. Left out: elements without one of the 25 labels, those that leave the screen or
    have no area; screens wider than high or that begin elsewhere, of no element or more than n_max. Raises InputError.
    """
    paths = sorted(folder.glob("*.json"), key=lambda path: path.name)
    if not paths:
        raise InputError(f"{folder}: no .json in it; RICO's semantic annotations are a folder of them")
    dropped, screens = Dropped(), []
    for path in paths:
        elements = _screen(path, dropped)
        if elements is not None and _fits(len(elements), n_max, path.name, dropped):
            screens.append(elements)
    if not screens:
        raise InputError(f"{folder}: no screen is left; {'; '.join(dropped.lines)}")
    labels = torch.tensor([label for elements in screens for label, _ in elements])
    edges = torch.tensor([edges for elements in screens for _, edges in elements], dtype=torch.float64)
    count = torch.tensor([len(elements) for elements in screens])
    return Reading(padded(count, labels, cxcywh_from_ltrb(edges), RICO), dropped)


def split_rows(n: int, parts: Mapping[str, int]) -> dict[str, Tensor]:
    """Numbers of the layouts in each part, int64. parts: percent, of a permutation of n by torch's seed 0."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    ends = np.cumsum(list(parts.values())) * n // 100
    return dict(zip(parts, order.tensor_split(ends[:-1].tolist()), strict=True))


def padded(count: Tensor, labels: Tensor, boxes: Tensor, names: tuple[str, ...]) -> Layouts:
    """Of elements one after the other: count (n,), labels (M,), boxes (M, 4), M the sum of all counts."""
    return Layouts(*filled(count, labels, boxes), names)


def _add_page(pages: dict[int, tuple[float, float]], value: Any) -> None:
    number, size = _whole(value["id"]), (_number(value["width"]), _number(value["height"]))
    if number in pages:
        raise ValueError(f"the id {number} is that of an image before")
    if min(size) <= 0:
        raise ValueError(f"width and height are {size[0]:g} and {size[1]:g}")
    pages[number] = size


def _annotation(value: Any) -> tuple[int, int, list[float]]:
    category = _whole(value["category_id"])
    if not 1 <= category <= len(PUBLAYNET):
        raise ValueError(f"category_id {category} is unknown; 1 to {len(PUBLAYNET)} are {', '.join(PUBLAYNET)}")
    return _whole(value["image_id"]), category, _four(value["bbox"], "bbox")


def _rows_of(pages: dict[int, tuple[float, float]], images: np.ndarray) -> np.ndarray:
    """(M,) the page of each box, by the pages' order."""
    ids = np.fromiter(pages, dtype=np.int64, count=len(pages))
    order = ids.argsort()
    place = np.searchsorted(ids, images, sorter=order).clip(max=len(ids) - 1)
    rows = order[place]
    wrong = np.flatnonzero(ids[rows] != images)
    if wrong.size:
        raise ValueError(f"annotations, entry {wrong[0] + 1}: no image has the id {images[wrong[0]]}")
    return rows


def _publaynet(
    pages: dict[int, tuple[float, float]], rows: np.ndarray, labels: np.ndarray, boxes: np.ndarray, n_max: int
) -> Reading:
    dropped = Dropped()
    sizes = np.array(list(pages.values()))
    wide = sizes[:, 0] > sizes[:, 1]
    edges = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    flat = (boxes[:, 2:] <= 0).any(axis=1)
    off = ~flat & ((edges[:, :2] < 0).any(axis=1) | (edges[:, 2:] > sizes[rows]).any(axis=1))
    kept = ~(wide[rows] | flat | off)
    for reason, which in ((_FLAT, flat & ~wide[rows]), (_OFF, off & ~wide[rows])):
        if which.any():
            dropped.add(reason, f"annotations, entry {which.argmax() + 1}", int(which.sum()))
    count = np.bincount(rows[kept], minlength=len(pages))
    chosen = np.zeros(len(pages), dtype=bool)
    for row, number in enumerate(pages):
        where = f"image {number}"
        if wide[row]:
            dropped.add(_WIDE, where)
        else:
            chosen[row] = _fits(int(count[row]), n_max, where, dropped)
    if not chosen.any():
        raise ValueError(f"no page is left; {'; '.join(dropped.lines)}")
    kept &= chosen[rows]
    order = np.flatnonzero(kept)[rows[kept].argsort(kind="stable")]
    shares = torch.from_numpy(edges[order] / np.tile(sizes[rows[order]], 2))
    parts = torch.from_numpy(count[chosen]), torch.from_numpy(labels[order]), cxcywh_from_ltrb(shares)
    return Reading(padded(*parts, PUBLAYNET), dropped)


def _screen(path: Path, dropped: Dropped) -> list[tuple[int, list[float]]] | None:
    """Labels and edges as shares of the screen; None where it is left out."""
    try:
        root = json.loads(read_text(path, "a layout"))
        left, top, width, height = _four(root["bounds"], "bounds")
        if left or top or min(width, height) <= 0 or width > height:
            dropped.add(_WIDE if not (left or top) and width > height > 0 else _ODD, path.name)
            return None
        elements = []
        for number, node in enumerate(_nodes(root), 1):
            where = f"{path.name}, element {number}"
            label = _RICO_INDEX.get(str(node.get("componentLabel")))
            edges = _four(node["bounds"], f"bounds of element {number}")
            if label is None:
                dropped.add(_UNKNOWN, where)
            elif edges[2] <= edges[0] or edges[3] <= edges[1]:
                dropped.add(_FLAT, where)
            elif min(edges) < 0 or edges[2] > width or edges[3] > height:
                dropped.add(_OFF, where)
            else:
                elements.append((label, [edge / size for edge, size in zip(edges, (width, height) * 2, strict=True)]))
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: damaged JSON, or cut short ({error.msg}, line {error.lineno})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: {_reason(error)}") from error
    return elements


def _nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All below the root, a parent before its children, in the order of the file."""
    stack = list(reversed(root.get("children") or []))
    while stack:
        node = stack.pop()
        if node is not None:
            yield node
            stack.extend(reversed(node.get("children") or []))


def _fits(n: int, n_max: int, where: str, dropped: Dropped) -> bool:
    if not 1 <= n <= n_max:
        dropped.add(_EMPTY if n < 1 else f"pages of more than {n_max} boxes", where)
    return 1 <= n <= n_max


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return value


def _four(value: Any, what: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{what} is {str(value)[:40]!r}; four numbers are needed")
    return [_number(part) for part in value]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return "not as the format has it" if isinstance(error, AttributeError | TypeError) else str(error)
