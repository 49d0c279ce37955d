"""Layouts as one npz: counts (n,), labels (M,) and boxes (M, 4), elements one after the other.

Boxes are left, top, right, bottom as shares of the page, as int16 in steps of 0.0001, so that edges which agree still
do after rounding.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, NO_ELEMENT, Layouts, cxcywh_from_ltrb, ltrb_from_cxcywh
from pgraft_fast.tasks.layouts.readers import padded
from pgraft_fast.tasks.npz import array_bytes, arrays_of

# Of int16 boxes, shares of the page.
UNIT = 1e-4
_ARRAYS = ("counts", "labels", "boxes")


def npz_bytes(layouts: Layouts) -> bytes:
    """A file for `read_npz`, the same bytes each time. Raises InputError for edges over 3.2767 or not finite."""
    element = layouts.labels != NO_ELEMENT
    steps = (ltrb_from_cxcywh(layouts.boxes.to(torch.float64)[element]) / UNIT).round()
    if not bool((steps.abs() <= torch.iinfo(torch.int16).max).all()):
        raise InputError("boxes are not finite or beyond 3.2767 pages, the most that int16 holds")
    counts, labels = layouts.count.numpy().astype("<u2"), layouts.labels[element].numpy().astype(np.uint8)
    # By columns, which compresses better.
    return array_bytes({"counts": counts, "labels": labels, "boxes": np.asfortranarray(steps.numpy().astype("<i2"))})


def read_npz(path: Path, names: tuple[str, ...], n_max: int = MAX_ELEMENTS) -> Layouts:
    """Layouts of a label set. boxes may be floats, shares of the page. Other arrays are not read.

    Raises InputError: file, layout, element, what is wrong; so for boxes that are centre and size by the right or
    bottom edge that then comes before the left or top.
    """
    try:
        counts, labels, boxes = arrays_of(path.read_bytes(), _ARRAYS)
    except OSError as error:
        raise InputError(f"{path}: layouts cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: no npz of layouts, or damaged ({error})") from error
    try:
        return _layouts(counts, labels, boxes, names, n_max)
    except ValueError as error:
        raise InputError(f"{path}{error}") from error


def _layouts(counts: np.ndarray, labels: np.ndarray, boxes: np.ndarray, names: tuple[str, ...], n_max: int) -> Layouts:
    if counts.dtype.kind not in "iu" or labels.dtype.kind not in "iu" or boxes.dtype.kind not in "iuf":
        raise ValueError(": counts and labels must be whole numbers, boxes numbers")
    if boxes.dtype.kind in "iu" and boxes.dtype != np.int16:
        raise ValueError(f": boxes are {boxes.dtype}; int16 in steps of {UNIT} or floats are needed")
    if counts.ndim != 1 or not counts.size or labels.ndim != 1 or boxes.shape != (*labels.shape, 4):
        shapes = ", ".join(str(part.shape) for part in (counts, labels, boxes))
        raise ValueError(f": shapes {shapes}; needed are (n,), (M,), (M, 4) with n >= 1")
    count = torch.from_numpy(counts.astype(np.int64))
    wrong = (count < 1) | (count > n_max)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise ValueError(f", layout {row + 1}: {int(count[row])} elements; 1 to {n_max} fit")
    if int(count.sum()) != labels.shape[0]:
        raise ValueError(f": counts add up to {int(count.sum())} elements, labels has {labels.shape[0]}")
    edges = torch.from_numpy(boxes.astype(np.float64)) * (UNIT if boxes.dtype == np.int16 else 1.0)
    numbers = torch.from_numpy(labels.astype(np.int64))
    _check(count, numbers, edges, names)
    return padded(count, numbers, cxcywh_from_ltrb(edges), names)


def _check(count: Tensor, labels: Tensor, edges: Tensor, names: tuple[str, ...]) -> None:
    """Raises ValueError for the first element that is wrong."""
    unknown = (labels < 0) | (labels >= len(names))
    broken = ~edges.isfinite().all(dim=1)
    wrong = unknown | broken | (edges[:, 2:] < edges[:, :2]).any(dim=1)
    if bool(wrong.any()):
        place = int(wrong.int().argmax())
        row = int((count.cumsum(0) <= place).sum())
        what = "right or bottom come before left or top; boxes are left, top, right, bottom"
        if bool(unknown[place]):
            what = f"label {int(labels[place])} is unknown; 0 to {len(names) - 1} are known"
        elif bool(broken[place]):
            what = "a number of the box is not finite"
        raise ValueError(f", layout {row + 1}, element {place - int(count[:row].sum()) + 1}: {what}")
