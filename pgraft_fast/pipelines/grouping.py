"""Rows of a batch that go together."""

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


def rows_by(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """{key: rows that have it}, in the order in which the keys come."""
    groups: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def in_order(parts: Sequence[Tensor], groups: dict[Key, list[int]]) -> Tensor:
    """(n, ...): the rows of each group's part, put back to where they were."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.tensor([row for group in groups.values() for row in group], device=parts[0].device)
    return torch.cat([*parts])[rows.argsort()]
