"""Elements of a page from its characters and drawings: text, titles, lists, tables, figures.

Rules of thumb, for pages set by TeX. Lengths are in points, y down, edges are left, top, right, bottom.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from pgraft_fast.tasks.layouts.edges import Edges, area, around, clipped, clusters, grouped, shared

# A line that begins an item: a bullet, a dash, 1. (1) a) [12].
_ITEM = re.compile(r"^([•◦▪▸►‣∙·∗●○■□✓➢–—-]|\*|\(?\d{1,2}[.)]|\(?[a-zA-Z][.)]|\(?[ivx]{1,4}[.)]|\[[^\]\s]{1,12}\]) ?\S")
_NUMBER = re.compile(r"^[\W_]*(\d{1,4}|[ivxlc]{1,6})[\W_]*$")
_NUMBERING = re.compile(r"^(§ ?)?[\dA-Z]{1,2}(\.\d{1,2}){0,3}[.)]?$")
_LEADERS = re.compile(r"(\. ?){4,}")
# In sizes of the font: what is further apart is another piece of a line; a column begins there.
_GAP = 0.9
_NUMBERING_GAP = 2.5
# Share of the page's height, at the top and bottom: single lines there are running heads.
_MARGIN = 0.08
# As _MARGIN, of lines with the page's number.
_NUMBERED_MARGIN = 0.15


@dataclass
class Line:
    """A run of characters on one base line. bold, typed: of most of its characters; typed is a typewriter's font."""

    edges: Edges
    base: float
    size: float
    bold: bool
    typed: bool
    text: str


@dataclass(frozen=True)
class Marks:
    """What a page holds besides text. images: edges. rules: of thin lines and the sides of frames. drawings: edges, of
    paths with more than four sides.
    """

    images: list[Edges] = field(default_factory=list)
    rules: list[Edges] = field(default_factory=list)
    drawings: list[Edges] = field(default_factory=list)


def elements(lines: Sequence[Line], marks: Marks, width: float, height: float) -> list[tuple[str, Edges]]:
    """Labels (of PubLayNet's five) and edges of a page's elements, in points."""
    lines = joined([line for line in lines if _on_page(line.edges, width, height)])
    rows = _rows(lines)
    outer = (rows[0], rows[-1]) if rows else ()
    lines = [line for row in rows if not _is_margin(row, row in outer, height) for line in row]
    body = _usual_size(lines)
    parts: list[tuple[str, Edges]] = []
    for label, regions in (("figure", _figures(lines, marks, width, height)), ("table", _tables(lines, marks, height))):
        for region in regions:
            if all(shared(region, other) < 0.3 for _, other in parts):
                inside = [line for line in lines if shared(line.edges, region) > 0.5]
                lines = [line for line in lines if shared(line.edges, region) <= 0.5]
                parts.append((label, around([region, *(line.edges for line in inside if label == "table")])))
    blocks = [part for block in _blocks(lines) for part in _paragraphs(block)]
    labelled = [(_label(block, body), block) for block in _united(blocks)]
    parts += [(label, around([line.edges for line in block])) for label, block in _lists(labelled)]
    regions = [edges for label, edges in parts if label in ("list", "table", "figure")]
    parts = [part for part in parts if part[0] != "text" or all(shared(part[1], box) < 0.7 for box in regions)]
    return sorted(parts, key=lambda element: (element[1][1], element[1][0]))


def joined(lines: Sequence[Line]) -> list[Line]:
    """Pieces of one line that follow each other closely, as one."""
    merged: list[Line] = []
    for line in sorted(lines, key=lambda part: part.edges[0]):
        for other in reversed(merged):
            size = max(line.size, other.size)
            gap = _GAP if not _NUMBERING.match(other.text) or other.size < 0.9 * size else _NUMBERING_GAP
            if abs(line.base - other.base) < 0.45 * size and -size < line.edges[0] - other.edges[2] < gap * size:
                larger = max(other, line, key=lambda part: len(part.text))
                other.edges, other.text = around([other.edges, line.edges]), f"{other.text} {line.text}"
                other.base, other.size = larger.base, larger.size
                other.bold, other.typed = other.bold and line.bold, other.typed and line.typed
                break
        else:
            merged.append(line)
    return sorted(merged, key=lambda part: (part.base, part.edges[0]))


def _figures(lines: Sequence[Line], marks: Marks, width: float, height: float) -> list[Edges]:
    """Images, and clusters of drawings that hold little text."""
    whole = 0.8 * width * height
    drawn = clusters([edges for edges in marks.drawings if area(edges) < whole], 6.0)
    regions = clusters([*(edges for edges in marks.images if area(edges) < whole),
                         *(edges for edges in drawn if _covered(lines, edges) < 0.25)], 3.0)  # fmt: skip
    regions = [clipped(edges, width, height) for edges in regions]
    return [edges for edges in regions if edges[2] - edges[0] > 40 and edges[3] - edges[1] > 25]


def _tables(lines: Sequence[Line], marks: Marks, height: float) -> list[Edges]:
    """Three rules or more of the same ends with rows of text between, and rows of cells in columns."""
    stacks: list[list[Edges]] = []
    for rule in sorted((edges for edges in marks.rules if edges[2] - edges[0] > 60), key=lambda edges: edges[1]):
        for stack in stacks:
            if abs(stack[0][0] - rule[0]) < 2 and abs(stack[0][2] - rule[2]) < 2 and rule[1] - stack[-1][3] < 300:
                stack.append(rule)
                break
        else:
            stacks.append([rule])
    regions = []
    for stack in stacks:
        region = around(stack)
        rows = _rows([line for line in lines if shared(line.edges, region) > 0.5])
        if len(stack) >= 3 and len(rows) >= 2 and region[3] - region[1] < 0.75 * height and max(map(len, rows)) > 1:
            regions.append(region)
    return clusters(regions + _aligned(lines), 2.0)


def _aligned(lines: Sequence[Line]) -> list[Edges]:
    """Rows of at least three cells, the left edges of which agree from row to row."""
    regions, run = [], list[list[Line]]()
    for row in [*_rows(lines), []]:
        if run and row and _agree(run[-1], row):
            run.append(row)
            continue
        if len(run) >= 3:
            regions.append(around([cell.edges for cells in run for cell in cells]))
        run = [row] if len(row) >= 3 else []
    return regions


def _agree(row: Sequence[Line], other: Sequence[Line]) -> bool:
    near = 0 < other[0].base - row[0].base < 2.2 * max(row[0].size, other[0].size)
    matches = sum(any(abs(cell.edges[0] - place.edges[0]) < 2 for place in row) for cell in other)
    leaders = any(_LEADERS.search(cell.text) for cell in (*row, *other))
    return near and len(other) >= 3 and matches >= 2 and not leaders


def _rows(lines: Sequence[Line]) -> list[list[Line]]:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda part: part.base):
        if rows and abs(rows[-1][0].base - line.base) < 0.3 * line.size:
            rows[-1].append(line)
        else:
            rows.append([line])
    return rows


def _blocks(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that stand below each other at the distance of the page's lines, of one size and weight."""
    steps = [step for i, line in enumerate(lines) for step in _steps(line, lines[i + 1 : i + 12])]
    usual = min(max(median(steps), 1.1), 1.9) if steps else 1.25

    def follows(line: Line, other: Line) -> bool:
        size = max(line.size, other.size)
        alike = size < 1.2 * min(line.size, other.size) and line.bold == other.bold
        return alike and _over(line, other) > 0.2 and 0.3 < abs(other.base - line.base) / size < 1.18 * usual

    return grouped(lines, follows)


def _steps(line: Line, others: Sequence[Line]) -> list[float]:
    """Distance of the next line below, in sizes."""
    below = [(other.base - line.base) / line.size for other in others if _over(line, other) > 0.5]
    return [step for step in below if 1.0 < step < 2.2][:1]


def _paragraphs(block: list[Line]) -> list[list[Line]]:
    """A block cut before lines that are indented more than those around them."""
    block = sorted(block, key=lambda line: (line.base, line.edges[0]))
    left = min(line.edges[0] for line in block)
    parts = [block[:1]]
    for before, line, after in zip(block, block[1:], [*block[2:], None], strict=False):
        indent = (line.edges[0] - left) / line.size
        alone = before.edges[0] - left < 0.4 * line.size and (after is None or after.edges[0] - left < 0.4 * line.size)
        item = _ITEM.match(line.text) is not None
        alone = alone and not _ITEM.match(before.text)
        if not line.typed and line.base > before.base + 2 and ((0.7 < indent < 3.5 and alone) or item):
            parts.append([line])
        else:
            parts[-1].append(line)
    return parts


def _united(blocks: Sequence[list[Line]]) -> list[list[Line]]:
    """Blocks that lie on each other, as pieces of formulas do, as one."""
    while True:
        parts = [(block, around([line.edges for line in block])) for block in blocks]
        groups = grouped(parts, lambda part, other: _belong(*part, *other))
        if len(groups) == len(blocks):
            return list(blocks)
        blocks = [[line for block, _ in group for line in block] for group in groups]


def _belong(block: Sequence[Line], place: Edges, other: Sequence[Line], edges: Edges) -> bool:
    """Blocks lie on each other, or are short pieces of one row."""
    if max(shared(place, edges), shared(edges, place)) > 0.2:
        return True
    short = max(len(block), len(other)) <= 2 and min(len(block[0].text), len(other[0].text)) <= 25
    apart = max(place[0], edges[0]) - min(place[2], edges[2])
    common = min(place[3], edges[3]) - max(place[1], edges[1])
    level = common > 0.5 * min(place[3] - place[1], edges[3] - edges[1])
    return short and level and apart < 2.0 * block[0].size and not block[0].bold and not other[0].bold


def _label(block: Sequence[Line], body: float) -> str:
    size, text = median(line.size for line in block), block[0].text
    short = len(block) <= 3 and sum(len(line.text) for line in block) < 200
    if short and (size > 1.15 * body or (all(line.bold for line in block) and size > 0.9 * body)) and len(text) > 1:
        return "title"
    return "list" if _ITEM.match(text) else "text"


def _lists(blocks: Sequence[tuple[str, list[Line]]]) -> list[tuple[str, list[Line]]]:
    """Items below each other as one list; one item alone, if it is no bullet, is text."""
    items = [block for label, block in blocks if label == "list"]

    def follow(block: list[Line], other: list[Line]) -> bool:
        first, second = (around([line.edges for line in part]) for part in (block, other))
        apart = max(first[1], second[1]) - min(first[3], second[3])
        return abs(first[0] - second[0]) < 0.8 * block[0].size and apart < 1.5 * block[0].size

    lists = grouped(items, follow)
    labelled = [block for block in blocks if block[0] != "list"]
    for parts in lists:
        bullet = not parts[0][0].text[:1].isalnum() and parts[0][0].text[:1] not in "([-–—"
        labelled.append(("list" if len(parts) > 1 or bullet else "text", [line for part in parts for line in part]))
    return labelled


def _is_margin(row: Sequence[Line], outer: bool, height: float) -> bool:
    """A running head or foot, or a page's number. outer: the first or last row of the page."""
    middle = sum(line.edges[1] + line.edges[3] for line in row) / 2 / len(row) / height
    if outer and len(row) == 1 and _NUMBER.match(row[0].text):
        return True
    numbered = outer and any(_NUMBER.match(line.text) for line in row)
    return min(middle, 1.0 - middle) < (_NUMBERED_MARGIN if numbered else _MARGIN)


def _usual_size(lines: Sequence[Line]) -> float:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[round(2 * line.size) / 2] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 10.0


def _covered(lines: Sequence[Line], region: Edges) -> float:
    return sum(area(line.edges) for line in lines if shared(line.edges, region) > 0.5) / max(area(region), 1e-6)


def _over(line: Line, other: Line) -> float:
    """Width that two lines have in common, as a share of the narrower."""
    common = min(line.edges[2], other.edges[2]) - max(line.edges[0], other.edges[0])
    return common / max(min(line.edges[2] - line.edges[0], other.edges[2] - other.edges[0]), 1e-6)


def _on_page(edges: Edges, width: float, height: float) -> bool:
    return edges[0] >= 0 and edges[1] >= 0 and edges[2] <= width and edges[3] <= height
