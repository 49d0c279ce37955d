"""Samples with what belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """samples: (B, ...). prompts, ids: B each."""

    samples: Tensor
    prompts: Sequence[str]
    ids: Sequence[int]

    def take(self, rows: Sequence[int]) -> "Batch":
        """Some rows, at least one; rows that lie side by side are not copied."""
        rows = list(rows)
        low, high = rows[0], rows[0] + len(rows)
        samples = self.samples[low:high] if rows == list(range(low, high)) else self.samples[rows]
        return Batch(samples, [self.prompts[i] for i in rows], [self.ids[i] for i in rows])
