"""Elements of pages that are set by hand: A4, ten-point text, lines twelve points apart."""

import pytest

from pgraft_fast.tasks.layouts.blocks import Line, Marks, elements, joined

WIDTH, HEIGHT = 595.0, 842.0


def line(left, base, right, text="words of a paragraph", size=10.0, bold=False, typed=False):
    return Line((left, base - 0.7 * size, right, base + 0.2 * size), base, size, bold, typed, text)


def paragraph(left, base, right, n, **kind):
    return [line(left, base + 12 * row, right, **kind) for row in range(n)]


def found(lines, marks=None):
    return [
        (label, [round(edge) for edge in edges]) for label, edges in elements(lines, marks or Marks(), WIDTH, HEIGHT)
    ]


def test_a_title_over_two_columns():
    lines = [
        line(100, 100, 500, "A title", size=17),
        *paragraph(60, 150, 290, 5),
        *paragraph(302, 150, 535, 8),
    ]
    assert found(lines) == [
        ("title", [100, 88, 500, 103]),
        ("text", [60, 143, 290, 200]),
        ("text", [302, 143, 535, 236]),
    ]


def test_bold_and_numbered_titles():
    lines = [line(60, 100, 68, "2", size=12, bold=True), line(85, 100, 200, "Methods", size=12, bold=True)]
    assert found([*lines, *paragraph(60, 118, 500, 4)]) == [
        ("title", [60, 92, 200, 102]),
        ("text", [60, 111, 500, 156]),
    ]


def test_paragraphs_by_indentation_and_by_distance():
    lines = paragraph(60, 100, 500, 3)
    lines += [line(75, 136, 500), *paragraph(60, 148, 500, 2)]
    lines += paragraph(60, 190, 500, 2)
    assert [edges[1::2] for _, edges in found(lines)] == [[93, 126], [129, 162], [183, 204]]


@pytest.mark.parametrize("marks", [("• ", "• "), ("1. ", "2. "), ("(a) ", "(b) "), ("[1] ", "[2] "), ("– ", "– ")])
def test_items_are_one_list(marks):
    lines = [
        line(80, 100, 500, marks[0] + "item"),
        line(90, 112, 400, "goes on"),
        line(80, 124, 480, marks[1] + "item"),
    ]
    assert found([*lines, *paragraph(60, 160, 500, 3)]) == [("list", [80, 93, 500, 126]), ("text", [60, 153, 500, 186])]


def test_a_table_by_its_rules():
    rows = [line(left, base, left + 40, "cell") for base in (220, 234, 248) for left in (110, 250)]
    marks = Marks(rules=[(100, y, 400, y + 0.5) for y in (208, 224, 254)])
    assert found([*paragraph(60, 100, 500, 3), *rows], marks)[1:] == [("table", [100, 208, 400, 254])]


def test_a_table_by_its_columns():
    rows = [line(left, base, left + 40, "cell") for base in (220, 234, 248) for left in (110, 200, 300)]
    assert found(rows) == [("table", [110, 213, 340, 250])]
    leaders = [line(left, base, left + 40, ". . . . . .") for base in (220, 234, 248) for left in (110, 200, 300)]
    assert "table" not in {label for label, _ in found(leaders)}


def test_figures_are_images_and_drawings_without_text():
    marks = Marks(
        images=[(100.0, 200.0, 300.0, 350.0)],
        drawings=[(100.0, 400.0, 200.0, 500.0), (203.0, 420.0, 300.0, 520.0), (50.0, 600.0, 70.0, 610.0)],
    )
    label = line(120, 300, 160, "axis")
    assert found([label, *paragraph(60, 100, 500, 3)], marks)[1:] == [
        ("figure", [100, 200, 300, 350]),
        ("figure", [100, 400, 300, 520]),
    ]
    framed = Marks(drawings=[(55.0, 90.0, 505.0, 140.0)])
    assert [name for name, _ in found(paragraph(60, 100, 500, 3), framed)] == ["text"]


def test_running_heads_and_page_numbers_are_left_out():
    lines = [line(60, 50, 300, "Journal of pages"), line(290, 800, 300, "12"), *paragraph(60, 100, 500, 3)]
    assert [label for label, _ in found(lines)] == ["text"]
    assert found([line(290, 700, 300, "xii"), *paragraph(60, 100, 500, 3)])[0][0] == "text"
    assert len(found([line(290, 700, 300, "xii"), *paragraph(60, 100, 500, 3)])) == 1


def test_text_that_lies_on_a_list_is_a_part_of_it():
    items = [line(80, 100 + 22 * row, 500, f"{row}. item") for row in (1, 2, 3)]
    aside = line(300, 133, 400, "aside", size=6)
    assert [label for label, _ in found([*items, aside, *paragraph(60, 300, 500, 3)])] == ["list", "text"]


def test_a_page_of_nothing():
    assert found([]) == [] and joined([]) == []


def test_pieces_of_a_line():
    pieces = [line(60, 100, 100, "a"), line(104, 103, 110, "2", size=7), line(130, 100, 150, "b")]
    assert [part.text for part in joined(pieces)] == ["a 2", "b"]
