"""Layouts as pictures: a white page, coloured boxes with the names of their labels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pgraft_fast.tasks.layouts.conditions import counts_of
from pgraft_fast.tasks.layouts.elements import NO_ELEMENT, PUBLAYNET, ltrb_from_cxcywh, unpack

# px, of a page as high as A4.
HEIGHT, WIDTH = 220, 160
_EDGE = (120, 120, 120)
_FIRST_COLOURS = ((47, 110, 189), (192, 57, 43), (39, 140, 75), (200, 130, 10), (125, 70, 170))


def layout_pictures(samples: Tensor, condition: Tensor, names: Sequence[str] = PUBLAYNET) -> np.ndarray:
    """(n, 220, 160, 3) uint8 of samples (n, N, 4 + L) with their condition (n, N, 6).

    Larger elements are drawn before smaller ones. What is off the page is cut; a box that is not finite is not drawn.
    """
    labels, boxes = unpack(samples.detach().cpu(), counts_of(condition).cpu())
    edges = ltrb_from_cxcywh(boxes.double()).clamp(-1.0, 2.0).numpy()
    pages = [_page(kinds, places, names) for kinds, places in zip(labels.numpy(), edges, strict=True)]
    return np.stack(pages) if pages else np.zeros((0, HEIGHT, WIDTH, 3), dtype=np.uint8)


def _page(labels: np.ndarray, edges: np.ndarray, names: Sequence[str]) -> np.ndarray:
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(page, "RGBA")
    font = ImageFont.load_default()
    drawn = (labels != NO_ELEMENT) & np.isfinite(edges).all(axis=1)
    area = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    for slot in sorted(np.flatnonzero(drawn), key=lambda slot: -area[slot]):
        left, top, right, bottom = (edges[slot] * (WIDTH - 1, HEIGHT - 1, WIDTH - 1, HEIGHT - 1)).round().astype(int)
        if right < left or bottom < top:
            continue
        colour = _colour(int(labels[slot]), len(names))
        draw.rectangle((left, top, right, bottom), fill=(*colour, 70), outline=(*colour, 255))
        name = names[int(labels[slot])]
        for text in (name, name[:1]):
            _, _, wide, high = draw.textbbox((0, 0), text, font=font)
            if wide + 3 < right - left and high < bottom - top + 2:
                draw.text((left + 2, top + min(1, (bottom - top - high) // 2)), text, font=font, fill=(*colour, 255))
                break
    draw.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline=_EDGE)
    return np.asarray(page)


def _colour(label: int, n_labels: int) -> tuple[int, int, int]:
    if label < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[label]
    red, green, blue = colorsys.hsv_to_rgb(label / n_labels, 0.75, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)
