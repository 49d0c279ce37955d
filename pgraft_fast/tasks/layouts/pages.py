"""The recipe of the shipped pages: layouts of the PDFs in a folder, read by pypdfium2 (extra `layouts`).

Shipped are pages of the TeX documentation of Debian 12: texlive-latex-base-doc, texlive-latex-recommended-doc,
texlive-science-doc, texlive-humanities-doc and texlive-publishers-doc, unpacked into one folder; only boxes and labels,
no text.
"""

import ctypes
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.extras import need
from pgraft_fast.tasks.layouts.archive import npz_bytes, read_npz
from pgraft_fast.tasks.layouts.blocks import Line, Marks, elements
from pgraft_fast.tasks.layouts.edges import Edges
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, PUBLAYNET, Layouts, cxcywh_from_ltrb
from pgraft_fast.tasks.layouts.readers import padded

SHIPPED = Path(__file__).parent / "data" / "tex_pages.npz"
PAGES = 4_000
# Of a document.
MOST_PAGES = 4
# Characters of a page; an index of a thousand entries has more.
_MOST_CHARACTERS = 12_000
# Share of the page that all boxes cover together; there is hardly anything on pages with less.
_LEAST_AREA = 0.04
# Width at least and height at most, in points: no cut figures and no posters.
_SIZES = (360, 900)
_BOLD = re.compile(r"bold|bx|black|heavy|demi|-b\b|medi", re.IGNORECASE)
_TYPED = re.compile(r"tt\d|mono|cour|type|consol|cmtt|sftt|-tt|txtt|code", re.IGNORECASE)


@lru_cache(maxsize=1)
def shipped() -> Layouts:
    """The pages of TeX documentation, with PubLayNet's five labels. Raises InputError."""
    return read_npz(SHIPPED, PUBLAYNET)


def subset_bytes(folder: Path, pages: int = PAGES, log: Callable[[str], None] = print) -> bytes:
    """The recipe of the shipped file. Raises InputError."""
    return npz_bytes(layouts_of(folder, pages, log=log))


def layouts_of(folder: Path, pages: int = PAGES, seed: int = 0, log: Callable[[str], None] = print) -> Layouts:
    """Pages of the PDFs in a folder, at any depth: documents in a drawn order, at most MOST_PAGES of each, drawn.

    Left out: pages wider than high, of no element or more than 25, with hardly anything on them, with the boxes of a
    page before. Raises InputError where pypdfium2 is not installed or no page is left.
    """
    need("reading PDFs", "pypdfium2", extra="layouts")
    paths = sorted(folder.rglob("*.pdf"), key=lambda path: path.relative_to(folder).as_posix())
    random.Random(seed).shuffle(paths)
    places: set[str] = set()
    chosen: list[list[tuple[str, Edges]]] = []
    for number, path in enumerate(paths, 1):
        for page in _pages_of(path, seed):
            place = str([(label, [round(64 * edge) for edge in edges]) for label, edges in page])
            if place not in places:
                places.add(place)
                chosen.append(page)
        if number % 100 == 0:
            log(f"{number} documents, {len(chosen)} pages")
        if len(chosen) >= pages:
            break
    if not chosen:
        raise InputError(f"{folder}: no page is left; PDFs with pages higher than wide are needed")
    chosen = chosen[:pages]
    count = torch.tensor([len(page) for page in chosen])
    labels = torch.tensor([PUBLAYNET.index(label) for page in chosen for label, _ in page])
    edges = torch.tensor([edges for page in chosen for _, edges in page], dtype=torch.float64)
    return padded(count, labels, cxcywh_from_ltrb(edges), PUBLAYNET)


def _pages_of(path: Path, seed: int) -> Iterator[list[tuple[str, Edges]]]:
    """Of one document; none where it cannot be read."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError:
        return
    try:
        numbers = list(range(len(document)))
        random.Random(f"{seed} {path.name}").shuffle(numbers)
        n = 0
        for number in numbers[: 3 * MOST_PAGES]:
            try:
                page = page_elements(document[number])
            except pypdfium2.PdfiumError:
                continue
            if page is not None and n < MOST_PAGES:
                n += 1
                yield page
            if n == MOST_PAGES:
                return
    finally:
        document.close()


def page_elements(page: Any) -> list[tuple[str, Edges]] | None:
    """Labels and edges, as shares of a page of pypdfium2; None where the page is left out."""
    width, height = page.get_size()
    if width > height or page.get_rotation() or not (_SIZES[0] < width and height < _SIZES[1]):
        return None
    left, bottom, _, _ = page.get_cropbox()

    def moved(edges: Edges) -> Edges:
        """From y up, at the corner of the crop box."""
        return edges[0] - left, height + bottom - edges[3], edges[2] - left, height + bottom - edges[1]

    text = page.get_textpage()
    lines = _lines(text, moved)
    parts = elements(lines, _marks(page, moved), width, height) if lines is not None else []
    shares = [(label, _shares(edges, width, height)) for label, edges in parts]
    area = sum((edges[2] - edges[0]) * (edges[3] - edges[1]) for _, edges in shares)
    flat = any(edges[2] <= edges[0] or edges[3] <= edges[1] for _, edges in shares)
    return shares if 1 <= len(shares) <= MAX_ELEMENTS and area >= _LEAST_AREA and not flat else None


def _shares(edges: Edges, width: float, height: float) -> Edges:
    left, top, right, bottom = edges
    return tuple(min(max(edge, 0.0), 1.0) for edge in (left / width, top / height, right / width, bottom / height))  # type: ignore[return-value]


def _lines(text: Any, moved: Callable[[Edges], Edges]) -> list[Line] | None:
    """Runs of characters in the order of the file; None where there are too many."""
    from pypdfium2 import raw

    n = raw.FPDFText_CountChars(text)
    if n > _MOST_CHARACTERS:
        return None
    left, right, bottom, top, x, y = (ctypes.c_double() for _ in range(6))
    fonts: dict[int | None, tuple[float, bool, bool, bool]] = {}
    lines: list[Line] = []
    counts = [0, 0, 0]
    for index in range(n):
        code = raw.FPDFText_GetUnicode(text, index)
        if code <= 32 or not raw.FPDFText_GetCharBox(text, index, left, right, bottom, top):
            continue
        raw.FPDFText_GetCharOrigin(text, index, x, y)
        handle = raw.FPDFText_GetTextObject(text, index)
        key = ctypes.cast(handle, ctypes.c_void_p).value
        if key not in fonts:
            fonts[key] = _font(handle, raw)
        size, bold, typed, upright = fonts[key]
        edges = moved((left.value, bottom.value, right.value, top.value))
        base = moved((x.value, y.value, x.value, y.value))[1]
        if not upright or edges[2] - edges[0] > 4 * size or edges[3] - edges[1] > 3 * size:
            continue
        letter = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "?"
        if lines:
            line = lines[-1]
            gap, most = edges[0] - line.edges[2], max(size, line.size)
            if abs(base - line.base) < 0.5 * most and -0.6 * most < gap < 0.9 * most:
                around = line.edges
                line.edges = (min(around[0], edges[0]), min(around[1], edges[1]),
                              max(around[2], edges[2]), max(around[3], edges[3]))  # fmt: skip
                line.text += f" {letter}" if gap > 0.2 * size else letter
                if size > line.size * 1.02 and counts[0] < 3:
                    line.size, line.base = size, base
                counts = [counts[0] + 1, counts[1] + bold, counts[2] + typed]
                line.bold, line.typed = counts[1] > 0.8 * counts[0], counts[2] > 0.6 * counts[0]
                continue
        lines.append(Line(edges, base, size, bold, typed, letter))
        counts = [1, int(bold), int(typed)]
    return lines


def _font(handle: Any, raw: Any) -> tuple[float, bool, bool, bool]:
    """Size in points, bold, a typewriter's, upright."""
    size, matrix = ctypes.c_float(), raw.FS_MATRIX()
    if not handle or not raw.FPDFTextObj_GetFontSize(handle, size) or not raw.FPDFPageObj_GetMatrix(handle, matrix):
        return 10.0, False, False, False
    buffer = ctypes.create_string_buffer(128)
    raw.FPDFFont_GetBaseFontName(raw.FPDFTextObj_GetFont(handle), buffer, 128)
    name = buffer.value.decode("latin-1").split("+")[-1]
    upright = abs(matrix.b) < 0.01 * abs(matrix.d)
    points = size.value * abs(matrix.d)
    return max(points, 1.0), _BOLD.search(name) is not None, _TYPED.search(name) is not None, upright


def _is_stroked(path: Any, raw: Any) -> bool:
    """Not a filled area alone, which is a background."""
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    return bool(raw.FPDFPath_GetDrawMode(path, fill, stroke)) and stroke.value != 0


def _marks(page: Any, moved: Callable[[Edges], Edges]) -> Marks:
    """Images and included drawings; thin paths, which are rules; rectangles, as four rules; other paths."""
    from pypdfium2 import raw

    marks = Marks()
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    for index in range(min(raw.FPDFPage_CountObjects(page), 20_000)):
        item = raw.FPDFPage_GetObject(page, index)
        kind = raw.FPDFPageObj_GetType(item)
        if kind == raw.FPDF_PAGEOBJ_TEXT or not raw.FPDFPageObj_GetBounds(item, left, bottom, right, top):
            continue
        edges = moved((left.value, bottom.value, right.value, top.value))
        width, height = edges[2] - edges[0], edges[3] - edges[1]
        if kind in (raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM):
            marks.images.append(edges)
        elif kind == raw.FPDF_PAGEOBJ_PATH and min(width, height) < 3:
            marks.rules.append(edges)
        elif kind == raw.FPDF_PAGEOBJ_PATH and raw.FPDFPath_CountSegments(item) > 5:
            marks.drawings.append(edges)
        elif kind == raw.FPDF_PAGEOBJ_PATH and _is_stroked(item, raw):
            marks.rules.append((edges[0], edges[1], edges[2], edges[1]))
            marks.rules.append((edges[0], edges[3], edges[2], edges[3]))
    return marks
