"""The four shapes, six colours and three sizes of the pictures, and how much of each pixel a shape covers."""

import math

import numpy as np

SIDE = 32
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "medium", "large")
# RGB in [0, 1] on white paper; as lines from white, at least 24 degrees apart.
COLOURS = {
    "red": (0.88, 0.10, 0.12),
    "yellow": (0.98, 0.82, 0.05),
    "green": (0.10, 0.65, 0.22),
    "cyan": (0.05, 0.78, 0.88),
    "blue": (0.12, 0.25, 0.92),
    "purple": (0.74, 0.18, 0.82),
}
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)

# A scale r stands for about the same area whatever the shape. Distance from the middle to the farthest point, over r:
REACH = {"circle": 1.0, "square": 0.886 * math.sqrt(2.0), "triangle": 1.35, "star": 1.3}
_STAR_INNER = 0.45 * REACH["star"]
# Area over r^2.
AREA = {
    "circle": math.pi,
    "square": 4.0 * 0.886**2,
    "triangle": 0.75 * math.sqrt(3.0) * REACH["triangle"] ** 2,
    "star": 5.0 * REACH["star"] * _STAR_INNER * math.sin(math.pi / 5.0),
}
# Scales at which small ends and large starts.
SMALL_BELOW, LARGE_ABOVE = 3.75, 5.05


def size_of(r: float) -> str:
    """The size's name for a scale r in pixels."""
    return "small" if r < SMALL_BELOW else "large" if r > LARGE_ABOVE else "medium"


def coverage(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Share of each pixel inside the shape, in [0, 1].

    x, y: pixel centres relative to the shape's middle, x to the right and y down, in pixels. r: the scale; all three
    broadcast together. Anti-aliased by the signed distance to the nearest edge line.
    """
    return np.clip(0.5 - _distance(shape, x, y, r), 0.0, 1.0)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.886 * r
    if shape == "triangle":
        half = 0.5 * REACH["triangle"] * r
        return np.maximum(y, 0.5 * math.sqrt(3.0) * np.abs(x) - 0.5 * y) - half
    # A star is ten mirrored copies of one edge, from the tip (1, 0) to the inner corner at 36 degrees.
    angle = np.arctan2(np.abs(x), -y)
    sector = 2.0 * math.pi / 5.0
    angle = np.abs(angle - sector * np.round(angle / sector))
    radius = np.hypot(x, y)
    tip = REACH["star"]
    corner_x, corner_y = _STAR_INNER * math.cos(math.pi / 5.0), _STAR_INNER * math.sin(math.pi / 5.0)
    length = math.hypot(corner_x - tip, corner_y)
    normal_x, normal_y = corner_y / length, (tip - corner_x) / length
    return radius * (np.cos(angle) * normal_x + np.sin(angle) * normal_y) - tip * normal_x * r
