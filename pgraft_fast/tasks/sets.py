"""Sets of elements of different sizes, as rows that are filled up: what molecules and layouts have in common."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pgraft_fast.errors import InputError

# The kind of what is no element.
NONE = -1


def mask(count: Tensor, n_max: int) -> Tensor:
    """(B, n_max) bool: the first count[b] are True."""
    return torch.arange(n_max, device=count.device) < count[:, None]


def filled(count: Tensor, kinds: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, N) int64, -1 where there is no element, and (n, N, d) float32, 0 there, of elements one after the other.

    count: (n,). kinds: (M,). values: (M, d). M is the sum of all counts.
    """
    element = mask(count, int(count.max()))
    rows = torch.full(element.shape, NONE)
    places = torch.zeros(*element.shape, values.shape[1])
    rows[element], places[element] = kinds, values.to(torch.float32)
    return rows, places


def numbers_of(texts: Sequence[str | None], device: torch.device) -> Tensor:
    """(n,) int64 that are equal for equal texts, in every call: a hash, not negative. None is its own: -1, -2, ..."""
    numbers = [-1 - row if text is None else _number(text) for row, text in enumerate(texts)]
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def shares(frequency: Tensor, n: int) -> Tensor:
    """n in whole numbers as a frequency (k,) has it, (k,) int64, by the largest remainder; of equal ones the first."""
    share = frequency.to(torch.float64) * n / int(frequency.sum())
    whole = share.floor().to(torch.int64)
    left = n - int(whole.sum())
    whole[(share - whole).argsort(descending=True, stable=True)[:left]] += 1
    return whole


def spread(n: int) -> Tensor:
    """(n,) int64, each of 0 ... n - 1 once: in any number of the first ones all of the range is there alike."""
    # Multiples of the golden ratio, without their whole part.
    ratio = (5.0**0.5 - 1.0) / 2.0
    return (torch.arange(1, n + 1, dtype=torch.float64) * ratio).frac().argsort().argsort()


def device_of(name: str) -> str:
    """ "cpu" or "cuda", of "auto" as well. Raises InputError where there is no CUDA."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device='cuda': there is none; set device='auto'")
    return "cuda" if available and name != "cpu" else "cpu"


def _number(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
