"""Boxes as left, top, right, bottom, in any unit, y down."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Edges = tuple[float, float, float, float]
_ItemT = TypeVar("_ItemT")


def grouped(items: Sequence[_ItemT], joins: Callable[[_ItemT, _ItemT], bool]) -> list[list[_ItemT]]:
    """The items in groups that are connected."""
    groups: list[list[_ItemT]] = []
    for item in items:
        near = [group for group in groups if any(joins(other, item) for other in group)]
        rest = [group for group in groups if not any(group is part for part in near)]
        groups = [*rest, [*(other for group in near for other in group), item]]
    return groups


def clusters(edges: Sequence[Edges], margin: float) -> list[Edges]:
    """What lies within a margin of each other, as one."""
    boxes = list(edges)
    while True:
        groups = grouped(boxes, lambda box, other: _near(box, other, margin))
        if len(groups) == len(boxes):
            return boxes
        boxes = [around(group) for group in groups]


def _near(first: Edges, second: Edges, margin: float) -> bool:
    across = first[0] - margin < second[2] and second[0] - margin < first[2]
    return across and first[1] - margin < second[3] and second[1] - margin < first[3]


def around(boxes: Sequence[Edges]) -> Edges:
    """The least box that holds all."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def clipped(edges: Edges, width: float, height: float) -> Edges:
    """What of a box lies on the page."""
    return max(edges[0], 0.0), max(edges[1], 0.0), min(edges[2], width), min(edges[3], height)


def area(edges: Edges) -> float:
    """0 for a box that is turned over."""
    return max(edges[2] - edges[0], 0.0) * max(edges[3] - edges[1], 0.0)


def shared(box: Edges, other: Edges) -> float:
    """Share of the first that lies in the second."""
    both = max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])
    return area(both) / max(area(box), 1e-6)
