"""Plots of what users wrote."""

import io

import numpy as np
import pytest
from PIL import Image

from pgraft_fast.report.plots import side_by_side_png


@pytest.mark.parametrize("text", ["$5 and $", "$\\frac{$", "$$", "a\ncat\r\n\tand \x0c more", "\u2028", "x" * 3000])
def test_prompts_above_pictures(text):
    """They are no formulas, stand on one line, and leave the page as it is."""
    columns, rewards = {"base": np.zeros((1, 8, 8, 3), np.uint8)}, {"base": [0.5]}
    pages = [Image.open(io.BytesIO(side_by_side_png([one], columns, rewards))) for one in ("a cat", text)]
    assert pages[0].size == pages[1].size
