"""The README's list of pipelines is that of the tests."""

import textwrap
from pathlib import Path

from every_pipeline import SERVED, build

README = Path(__file__).parent.parent.parent / "README.md"
BEGIN, END = "<!-- classes: tests/pipelines/test_readme_classes.py -->\n", "<!-- end of classes -->"


def test_readme_names_what_is_built():
    names = sorted({type(build(name)).__name__.removesuffix("Pipeline") for name in SERVED}, key=str.lower)
    expected = textwrap.fill(f"{len(names)} classes: {', '.join(names)}.", 120, break_long_words=False) + "\n"
    assert README.read_text().partition(BEGIN)[2].partition(END)[0] == expected
