"""Layouts as tensors: labelled boxes on a page.

A batch is labels (B, N) int64, a number of a label set or -1 where there is no element, and boxes (B, N, 4): centre x,
centre y, width, height as shares of the page's width and height, y down. A diffusion model sees one float tensor
(B, N_max, 4 + L), see `pack`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.sets import NONE, mask, numbers_of

# In the order of category_id, which begins at 1.
PUBLAYNET = ("text", "title", "list", "table", "figure")
RICO = (
    "Text", "Image", "Icon", "Text Button", "List Item", "Input", "Background Image", "Card", "Web View",
    "Radio Button", "Drawer", "Checkbox", "Advertisement", "Modal", "Pager Indicator", "Slider", "On/Off Switch",
    "Button Bar", "Toolbar", "Number Stepper", "Multi-Tab", "Date Picker", "Map View", "Video", "Bottom Navigation",
)  # fmt: skip
LABEL_SETS = {"publaynet": PUBLAYNET, "rico": RICO}
MAX_ELEMENTS = 25
NO_ELEMENT = NONE
# Of `pack`: the columns of boxes and of labels then spread about as noise does, around 0.
BOX_CENTRE = (0.5, 0.5, 0.5, 0.1)
BOX_SCALE = 4.0
LABEL_SCALE = 2.0
# Steps a page, of edges in `same`.
GRID = 64


@dataclass(frozen=True)
class Layouts:
    """labels: (n, N) int64, -1 where there is no element. boxes: (n, N, 4) float32, see above, 0 there. names: of the
    label set.
    """

    labels: Tensor
    boxes: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def count(self) -> Tensor:
        """Numbers of elements, (n,) int64."""
        return (self.labels != NO_ELEMENT).sum(dim=1)

    def rows(self, rows: Tensor) -> "Layouts":
        """Some of them, by their numbers (m,) int64."""
        return Layouts(self.labels[rows], self.boxes[rows], self.names)


def ltrb_from_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom of centre x, centre y, width, height."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def cxcywh_from_ltrb(edges: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height of left, top, right, bottom."""
    low, high = edges[..., :2], edges[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def pack(labels: Tensor, boxes: Tensor, n_labels: int, n_max: int = MAX_ELEMENTS) -> Tensor:
    """One float32 tensor (B, n_max, 4 + n_labels): 4 (box - BOX_CENTRE), 2 one-hot of the label; 0 without an element.

    labels: (B, N) int64, -1 after the last element of each. boxes: (B, N, 4), centre x, centre y, width, height.
    Raises InputError for a page of more than n_max elements, a label that the set lacks, padding before an element.
    """
    if labels.ndim != 2 or boxes.shape != (*labels.shape, 4):
        raise InputError(f"labels {tuple(labels.shape)} with boxes {tuple(boxes.shape)}; (B, N) and (B, N, 4) needed")
    element = labels != NO_ELEMENT
    count = element.sum(dim=1)
    if count.numel() and int(count.max()) > n_max:
        raise InputError(f"layout {int(count.argmax())} has {int(count.max())} elements; at most {n_max} fit")
    wrong = (labels < NO_ELEMENT) | (labels >= n_labels) | (element != mask(count, labels.shape[1]))
    if bool(wrong.any()):
        row, column = (int(index) for index in wrong.nonzero()[0])
        raise InputError(
            f"layout {row}, element {column}: label {int(labels[row, column])}; 0 to {n_labels - 1} are known, "
            f"{NO_ELEMENT} only after the last element"
        )
    rows = packed(labels, boxes, n_labels)[:, :n_max]
    return torch.nn.functional.pad(rows, (0, 0, 0, n_max - rows.shape[1]))


def packed(labels: Tensor, boxes: Tensor, n_labels: int) -> Tensor:
    """`pack` without its checks and its padding, (..., N, 4 + n_labels)."""
    places = BOX_SCALE * (boxes.to(torch.float32) - _centre(boxes.device))
    kinds = torch.arange(n_labels, device=labels.device)
    one_hot = LABEL_SCALE * (labels[..., None] == kinds).to(torch.float32)
    return torch.cat([places, one_hot], dim=-1).where((labels != NO_ELEMENT)[..., None], 0.0)


def boxes_of(samples: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height of samples (..., 4 + L), whatever rows are elements."""
    return samples[..., :4] / BOX_SCALE + _centre(samples.device).to(samples.dtype)


def _centre(device: torch.device) -> Tensor:
    # Filled on the device: no copy from the host.
    return torch.cat([torch.full((1,), value, device=device) for value in BOX_CENTRE])


def unpack(samples: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, N) int64 and boxes (B, N, 4) of samples (B, N, 4 + L) of which the first `count` rows are elements.

    The label is the largest of the one-hot. An element with a number that is not finite has the box nan. Rows after
    the count are not read: label -1, box 0. count: (B,) integers. Raises InputError.
    """
    if samples.ndim != 3 or samples.shape[2] < 5 or count.shape != samples.shape[:1]:
        raise InputError(
            f"samples {tuple(samples.shape)} with counts {tuple(count.shape)}; (B, N, 4 + labels) with (B,) are needed"
        )
    if count.numel() and not 0 <= int(count.min()) <= int(count.max()) <= samples.shape[1]:
        raise InputError(f"counts from {int(count.min())} to {int(count.max())}; 0 to {samples.shape[1]} fit")
    element = mask(count.to(samples.device), samples.shape[1])
    labels = samples[:, :, 4:].argmax(dim=2).where(element, NO_ELEMENT)
    finite = samples.isfinite().all(dim=2, keepdim=True)
    return labels, boxes_of(samples).where(finite, torch.nan).where(element[:, :, None], 0.0)


def same(samples: Tensor, condition: Tensor) -> Tensor:
    """Numbers that are equal for the same layout, (n,) int64; the same in every call.

    A hash, not negative, of the labels with their left, top, right and bottom to the nearest 1/64 of the page, in any
    order of elements. A layout with a number that is not finite is its own: -1, -2, ... in a call.
    samples: (n, N, 4 + L). condition: (n,) numbers of elements.
    """
    labels, boxes = unpack(samples.detach(), condition)
    edges = (ltrb_from_cxcywh(boxes.to(torch.float64)) * GRID).round()
    broken = ~edges.isfinite().flatten(1).all(dim=1)
    # What is far off the page is all in one place.
    steps = edges.nan_to_num().clamp(-(2.0**31), 2.0**31).to(torch.int64)
    rows = torch.cat([labels[:, :, None], steps], dim=2).tolist()
    texts = [
        None if bad else str(sorted(element for element in elements if element[0] != NO_ELEMENT))
        for bad, elements in zip(broken.tolist(), rows, strict=True)
    ]
    return numbers_of(texts, samples.device)
