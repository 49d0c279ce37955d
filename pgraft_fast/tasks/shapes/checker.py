"""Reads a picture exactly and answers each question of its prompt.

How a picture is read: each pixel is laid on the line from white to the nearest of the six colours, which gives its
colour and how much of it is covered; connected pixels of one colour that are at least half covered are an object; its
covered area gives a scale for each of the four shapes, and the shape whose drawing at that place and scale overlaps
best is its shape, if it overlaps well enough. What is neither white nor such an object is counted as a smudge.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.shapes.geometry import AREA, COLOURS, PALETTE, SHAPES, SIDE, coverage, size_of
from pgraft_fast.tasks.shapes.prompts import Prompt, Question, Thing, parse
from pgraft_fast.tasks.shapes.render import Blob

# Distance from a colour's line, RGB in [0, 1], beyond which a pixel has no colour.
_OFF_COLOUR = 0.25
# Soft intersection over union with the best shape.
MIN_OVERLAP = 0.75
# Areas in pixels: below the first a speck is passed over; a picture may have so many pixels without a colour.
_SPECK, _OFF_PIXELS = 4.0, 6
# A relation holds from this many pixels between the middles on, along the greater of both distances.
MIN_DISTANCE = 3.0
_WINDOW = 10
_CHUNK = 1000
_COLOUR_NAMES = tuple(COLOURS)
_INK = PALETTE - 1.0
_LENGTH = np.linalg.norm(_INK, axis=1)


class Reading:
    """What a picture shows. blobs: its objects, shape "" where unreadable. smudged: some of it is no object."""

    __slots__ = ("blobs", "smudged")

    def __init__(self, blobs: list[Blob], smudged: bool) -> None:
        self.blobs = blobs
        self.smudged = smudged


def read(samples: Tensor) -> list[Reading]:
    """Read pictures (B, 3, 32, 32) in [-1, 1] (clamped; a NaN makes a picture unreadable). Raises InputError."""
    if samples.ndim != 4 or samples.shape[1:] != (3, SIDE, SIDE):
        raise InputError(f"pictures of shape {tuple(samples.shape)}: the checker reads (B, 3, {SIDE}, {SIDE})")
    pixels = samples.detach().to("cpu", torch.float32).clamp(-1.0, 1.0).add(1.0).mul(0.5).numpy()
    return [reading for start in range(0, len(pixels), _CHUNK) for reading in _read(pixels[start : start + _CHUNK])]


def answers(reading: Reading, prompt: Prompt) -> list[bool]:
    """Yes or no to each of `prompt.questions`."""
    return [_answer(reading, question) for question in prompt.questions]


def reward(samples: Tensor, prompts: Sequence[str | Prompt]) -> Tensor:
    """(B,) float32 in [0, 1]: the share of the prompt's questions that the picture answers with yes.

    samples: (B, 3, 32, 32) in [-1, 1], prompts: one a picture, as text or parsed. Raises InputError for another
    shape or number, and for a text that is not of the grammar.
    """
    if len(prompts) != samples.shape[0]:
        raise InputError(f"{len(prompts)} prompts for {samples.shape[0]} pictures: give one a picture")
    parsed = [parse(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    shares = []
    for reading, prompt in zip(read(samples), parsed, strict=True):
        right = answers(reading, prompt)
        shares.append(sum(right) / len(right))
    return torch.tensor(shares, dtype=torch.float32, device=samples.device)


def _answer(reading: Reading, question: Question) -> bool:
    if question.kind == "total":
        return not reading.smudged and len(reading.blobs) == question.total
    assert question.thing is not None
    first = _matching(reading.blobs, question.thing)
    if question.kind == "count":
        return len(first) == question.thing.count
    if question.kind == "has":
        return bool(first)
    assert question.other is not None
    second = _matching(reading.blobs, question.other)
    return any(a is not b and _related(a, b, question.relation) for a in first for b in second)


def _matching(blobs: list[Blob], thing: Thing) -> list[Blob]:
    return [
        blob
        for blob in blobs
        if blob.shape == thing.shape and thing.colour in (None, blob.colour) and thing.size in (None, size_of(blob.r))
    ]


def _related(a: Blob, b: Blob, relation: str | None) -> bool:
    right, down = b.x - a.x, b.y - a.y
    along, across = {
        "left of": (right, down), "right of": (-right, down), "above": (down, right), "below": (-down, right)
    }[str(relation)]  # fmt: skip
    return along >= MIN_DISTANCE and along > abs(across)


def _read(pixels: np.ndarray) -> list[Reading]:
    n = len(pixels)
    broken = ~np.isfinite(pixels).reshape(n, -1).all(axis=1)
    pixels = np.where(broken[:, None, None, None], 1.0, pixels)
    colour, cover, off = _colours(pixels)
    inside = (cover >= 0.5) & ~off
    smudged = (off.reshape(n, -1).sum(axis=1) > _OFF_PIXELS) | broken
    # One plane for each picture and colour, so that nothing connects across them.
    planes = inside[:, None] & (colour[:, None] == np.arange(len(COLOURS))[:, None, None])
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = True
    labels, count = ndimage.label(planes.reshape(-1, SIDE, SIDE), flat)
    readings = [Reading([], bool(smudge)) for smudge in smudged]
    for plane, blob in _blobs(labels, count, cover, colour):
        reading = readings[plane // len(COLOURS)]
        if blob.shape:
            reading.blobs.append(blob)
        else:
            reading.smudged = True
    return readings


def _colours(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour number, coverage and "far from every colour" of each pixel: (n, 32, 32) each."""
    ink = (pixels - 1.0).transpose(0, 2, 3, 1).reshape(-1, 3)
    along = ink @ (_INK / _LENGTH[:, None]).T
    cover = np.clip(along / _LENGTH, 0.0, 1.0)
    reached = cover * _LENGTH
    distance = (ink * ink).sum(axis=1, keepdims=True) - 2.0 * reached * along + reached * reached
    colour = distance.argmin(axis=1)
    rows = np.arange(len(ink))
    off = distance[rows, colour] > _OFF_COLOUR**2
    shape = (len(pixels), SIDE, SIDE)
    return colour.reshape(shape), cover[rows, colour].reshape(shape), off.reshape(shape)


def _blobs(labels: np.ndarray, count: int, cover: np.ndarray, colour: np.ndarray) -> list[tuple[int, Blob]]:
    """The connected parts as (plane, blob)."""
    if count == 0:
        return []
    plane, y, x = np.nonzero(labels)
    number = labels[plane, y, x] - 1
    pixels = np.bincount(number, minlength=count)
    middle_x = np.bincount(number, x, count) / pixels
    middle_y = np.bincount(number, y, count) / pixels
    plane_of = np.zeros(count, dtype=np.int64)
    plane_of[number] = plane
    kept = np.flatnonzero(pixels >= _SPECK)
    # A part's edge pixels are less than half covered: those that touch it and are of its colour belong to it.
    reach = np.arange(-_WINDOW, _WINDOW + 1)
    left, top = np.rint(middle_x[kept]).astype(int), np.rint(middle_y[kept]).astype(int)
    at_y = top[:, None, None] + reach[None, :, None]
    at_x = left[:, None, None] + reach[None, None, :]
    valid = (at_y >= 0) & (at_y < SIDE) & (at_x >= 0) & (at_x < SIDE)
    at_y, at_x = np.clip(at_y, 0, SIDE - 1), np.clip(at_x, 0, SIDE - 1)
    own_plane = plane_of[kept][:, None, None]
    member = (labels[own_plane, at_y, at_x] == kept[:, None, None] + 1) & valid
    edge = np.ones((1, 3, 3), dtype=bool)
    member = ndimage.binary_dilation(member, edge) & valid
    picture = own_plane // len(COLOURS)
    member &= colour[picture, at_y, at_x] == own_plane % len(COLOURS)
    mass = np.where(member, cover[picture, at_y, at_x], 0.0)
    area = mass.sum(axis=(1, 2))
    x0 = (mass * (at_x + 0.5)).sum(axis=(1, 2)) / area
    y0 = (mass * (at_y + 0.5)).sum(axis=(1, 2)) / area
    dx, dy = at_x + 0.5 - x0[:, None, None], at_y + 0.5 - y0[:, None, None]
    scales = np.stack([np.sqrt(area / AREA[shape]) for shape in SHAPES])
    overlap = np.stack([
        _overlap(mass, coverage(shape, dx, dy, scales[i][:, None, None])) for i, shape in enumerate(SHAPES)
    ])  # fmt: skip
    best = overlap.argmax(axis=0)
    blobs = []
    for i, k in enumerate(best):
        shape = SHAPES[k] if overlap[k, i] >= MIN_OVERLAP else ""
        name = _COLOUR_NAMES[plane_of[kept[i]] % len(COLOURS)]
        blobs.append((int(plane_of[kept[i]]), Blob(shape, name, float(x0[i]), float(y0[i]), float(scales[k, i]))))
    return blobs


def _overlap(mass: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.minimum(mass, drawn).sum(axis=(1, 2)) / np.maximum(mass, drawn).sum(axis=(1, 2))
