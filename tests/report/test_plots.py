"""Plots of what users wrote."""

import io

import numpy as np
import pytest
from PIL import Image

from pgraft_fast.report.plots import Curve, curves_png, line_of, side_by_side_png


def test_many_curves_can_be_told_apart():
    assert len({tuple(line_of(index).values()) for index in range(18)}) == 18
    curves = [Curve(f"a method with a long name {index}", [0.0, 1.0], [0.0, float(index)]) for index in range(9)]
    few, many = (
        np.asarray(Image.open(io.BytesIO(curves_png(curves[:count], "x", "y"))).convert("L")) for count in (4, 9)
    )
    # The left axis begins where the labels end.
    few, many = ((image < 128)[:, (image < 128).sum(axis=0).argmax()].argmax() for image in (few, many))
    assert many > few + 60


@pytest.mark.parametrize("text", ["$5 and $", "$\\frac{$", "$$", "a\ncat\r\n\tand \x0c more", "\u2028", "x" * 3000])
def test_prompts_above_pictures(text):
    """They are no formulas, stand on one line, and leave the page as it is."""
    columns, rewards = {"base": np.zeros((1, 8, 8, 3), np.uint8)}, {"base": [0.5]}
    pages = [Image.open(io.BytesIO(side_by_side_png([prompt], columns, rewards))) for prompt in ("a cat", text)]
    assert pages[0].size == pages[1].size
