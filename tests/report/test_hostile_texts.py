"""What a prompt or a name holds is shown, by pages, figures and terminals, and not obeyed."""

import io

import hostile
import numpy as np
import pytest
from PIL import Image
from taken_apart import Page

from pgraft_fast.errors import InputError, in_a_line, printable
from pgraft_fast.report import Section, Table, write_page
from pgraft_fast.report.plots import Curve, bars_png, curves_png, side_by_side_png
from pgraft_fast.runs.terminal import Terminal

HOSTILE = [*hostile.TERMINAL, *hostile.MARKUP]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_place_of_a_page(tmp_path, text):
    section = Section(text, [text], Table([text, text], [[text, text]], text))
    assert Page(write_page(tmp_path, text, text, [section])).text.count(printable(text)) == 10


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", HOSTILE)
def test_figures(text):
    """Neither as formulas nor with warnings, which would quote it."""
    picture = np.zeros((1, 4, 4), np.uint8)
    curve = Curve(text, [0.0, 1.0], [0.0, 1.0])
    for png in (
        side_by_side_png([text], {text: picture, "b": picture}, {text: [0.5], "b": [1.0]}),
        curves_png([curve, curve], "x", "y"), bars_png({text: 1.0}, "s"),
    ):  # fmt: skip
        assert Image.open(io.BytesIO(png)).size[0] > 100


@pytest.mark.parametrize("text", HOSTILE)
def test_terminals(text, capsys):
    terminal = Terminal()
    terminal.line(text)
    terminal.table(text, Table([text, "b"], [[text, "1"]], text))
    shown = capsys.readouterr().err
    assert shown.replace("\n", "").isprintable()
    # Rich's own markup is no exception.
    assert "".join(in_a_line(text).split()) in "".join(shown.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_errors(text):
    error = str(InputError(f"file {text}: wrong\nand more"))
    assert error.isprintable() and error.startswith("file ") and error.endswith(": wrong and more")
    assert in_a_line(f" {text}\n").isprintable()


def test_words_stay_as_they_are():
    """Joiners are part of Persian words and of emoji; accents, and letters of any script."""
    for text in (
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
        "e\u0301 猫 ü",
    ):
        assert printable(text) == text
