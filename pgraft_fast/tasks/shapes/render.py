"""Pictures that a prompt is true of, with a layout keyed by (seed, number)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.shapes.geometry import COLOURS, LARGE_ABOVE, PALETTE, REACH, SHAPES, SIDE, SMALL_BELOW, coverage
from pgraft_fast.tasks.shapes.prompts import Prompt, Thing

_SCALES = {"small": (3.1, 3.5), "medium": (4.0, 4.6), "large": (5.5, 6.2)}
# Without a named size: smaller where there are more objects.
_FREE_SCALES = {1: (3.2, 6.0), 2: (3.2, 4.6), 3: (3.2, 4.3), 4: (3.1, 3.9)}
# So far from the bounds between sizes that a reader cannot be in doubt.
_CLEAR = 0.25
_GAP, _BORDER = 2.0, 1.0
_TRIES = 4000
_COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Blob:
    """One object: its middle (x, y) and scale r in pixels, x to the right and y down from the upper left corner."""

    shape: str
    colour: str
    x: float
    y: float
    r: float


def scene(prompt: Prompt, seed: int, number: int) -> tuple[Blob, ...]:
    """A layout of exactly the prompt's objects; the same for the same (prompt, seed, number).

    seed, number: whole numbers from 0. Raises InputError where the objects do not fit into the picture.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    things = [Thing(t.shape, t.colour, t.size) for t in prompt.things for _ in range(t.count)]
    colours = [t.colour or _COLOUR_NAMES[int(random.integers(len(COLOURS)))] for t in things]
    free = _FREE_SCALES[min(len(things), 4)]
    for _ in range(_TRIES // 40):
        r = [_scale(random, *(_SCALES[t.size] if t.size else free)) for t in things]
        for places in random.random((40, len(things), 2)):
            reach = np.array([REACH[t.shape] for t in things]) * r
            room = SIDE / 2 - _BORDER - reach
            middle = SIDE / 2 + (2.0 * places - 1.0) * room[:, None]
            if _apart(middle, reach) and _related(middle, prompt.relation):
                return tuple(
                    Blob(t.shape, colours[i], float(middle[i, 0]), float(middle[i, 1]), r[i])
                    for i, t in enumerate(things)
                )
    raise InputError(
        f"prompt {prompt.text!r}: its objects do not fit into {SIDE} x {SIDE} pixels; ask for smaller ones"
    )


def draw(scenes: Sequence[Sequence[Blob]]) -> Tensor:
    """(B, 3, 32, 32) float32 in [-1, 1]: anti-aliased objects on white."""
    pictures = np.ones((len(scenes), SIDE, SIDE, 3), dtype=np.float32)
    blobs = [(i, blob) for i, layout in enumerate(scenes) for blob in layout]
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    for shape in SHAPES:
        chosen = [(i, blob) for i, blob in blobs if blob.shape == shape]
        for start in range(0, len(chosen), 1024):
            part = chosen[start : start + 1024]
            x, y, r = np.array([(b.x, b.y, b.r) for _, b in part], dtype=np.float32).T[..., None, None]
            cover = coverage(shape, axis[None, None, :] - x, axis[None, :, None] - y, r)[..., None]
            ink = (1.0 - PALETTE[[_COLOUR_NAMES.index(b.colour) for _, b in part]])[:, None, None, :]
            np.subtract.at(pictures, [i for i, _ in part], cover * ink)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).mul_(2.0).sub_(1.0).contiguous()


def render(prompts: Sequence[Prompt], seed: int = 0, numbers: Sequence[int] | None = None) -> Tensor:
    """(B, 3, 32, 32) float32 in [-1, 1], one picture a prompt; numbers: of the layouts, 0 ... B-1 if not given.

    A picture depends on its prompt, seed and number alone. Raises InputError, see `scene`.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    if len(numbers) != len(prompts):
        raise InputError(f"{len(numbers)} numbers for {len(prompts)} prompts: give one a prompt")
    return draw([scene(prompt, seed, int(number)) for prompt, number in zip(prompts, numbers, strict=True)])


def _scale(random: np.random.Generator, low: float, high: float) -> float:
    while True:
        r = float(random.uniform(low, high))
        if abs(r - SMALL_BELOW) >= _CLEAR and abs(r - LARGE_ABOVE) >= _CLEAR:
            return r


def _apart(middle: np.ndarray, reach: np.ndarray) -> bool:
    for i in range(len(reach)):
        for j in range(i):
            gap = np.hypot(middle[i, 0] - middle[j, 0], middle[i, 1] - middle[j, 1]) - reach[i] - reach[j]
            if gap < _GAP:
                return False
    return True


def _related(middle: np.ndarray, relation: str | None) -> bool:
    if relation is None:
        return True
    right, down = middle[1] - middle[0]
    along, across = {
        "left of": (right, down), "right of": (-right, down), "above": (down, right), "below": (-down, right)
    }[relation]  # fmt: skip
    return bool(along > 1.2 * abs(across) + 1.0)
