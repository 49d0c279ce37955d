"""The shipped pages, and the recipe that made them."""

import math

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts import pages
from pgraft_fast.tasks.layouts.archive import npz_bytes
from pgraft_fast.tasks.layouts.elements import PUBLAYNET, ltrb_from_cxcywh
from pgraft_fast.tasks.layouts.metrics import alignment, inside, overlap


def test_the_shipped_pages():
    layouts = pages.shipped()
    assert len(layouts) == 4_000 and layouts.names == PUBLAYNET
    assert (int(layouts.count.min()), int(layouts.count.max())) == (1, 25)
    assert torch.bincount(layouts.labels[layouts.labels >= 0]).tolist() == [37_302, 8_073, 1_828, 598, 553]
    size = pages.SHIPPED.stat().st_size
    assert size < 500_000 and npz_bytes(layouts) == pages.SHIPPED.read_bytes()


def test_their_metrics():
    """As real pages have them; boxes drawn at random have an alignment of 0.6 and an overlap of 0.4."""
    layouts = pages.shipped()
    assert float(alignment(layouts.labels, layouts.boxes).mean()) == pytest.approx(0.113, abs=1e-3)
    assert float(overlap(layouts.labels, layouts.boxes).mean()) == pytest.approx(0.0025, abs=1e-4)
    assert float(inside(layouts.labels, layouts.boxes).mean()) == 1.0


def test_the_metrics_of_a_page_by_hand():
    """A title, a figure that reaches into a text, and a text below. In steps of 1e-4 of the page:

    The nearest lines are the centres of the title and of the lower text, 5724 and 5677; the tops of the figure and of
    the upper text, 4569 and 5279; the right edges of both texts, 8947. Figure and text share 1080 x 684.
    """
    layouts = pages.shipped()
    labels, boxes = layouts.labels[1722:1723, :4], layouts.boxes[1722:1723, :4]
    assert labels[0].tolist() == [1, 4, 0, 0] and layouts.count[1722] == 4
    assert (ltrb_from_cxcywh(boxes[0].double()) * 1e4).round().tolist() == [
        [2639, 3841, 8809, 4300],
        [1680, 4569, 3486, 5963],
        [2406, 5279, 8947, 7454],
        [2407, 7519, 8947, 9098],
    ]
    by_hand = 25 * (-math.log(1 - 0.0047) - math.log(1 - 0.0710) - math.log(1) - math.log(1))
    assert float(alignment(labels, boxes)) == pytest.approx(by_hand, abs=1e-6)
    by_hand = 1080 * 684 * (1 / (1806 * 1394) + 1 / (6541 * 2175)) / 4
    assert float(overlap(labels, boxes)) == pytest.approx(by_hand, abs=1e-6)


def test_a_missing_reader_of_pdfs_says_which_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^reading PDFs needs pypdfium2, not installed: pip install 'pgraft-fast\[lay"
    ):
        pages.layouts_of(tmp_path)


def write(figure, words):
    """Lines at (left, base) in points of A4, y up, with a size in points."""
    for left, base, size, text in words:
        figure.text(left / 595, base / 842, text, fontsize=size, family="DejaVu Sans")


@pytest.fixture
def folder(tmp_path):
    """Two PDFs, one of them a copy; a page of a title, two paragraphs and a picture, and one that is wider."""
    plt = pytest.importorskip("matplotlib.pyplot")
    backend = pytest.importorskip("matplotlib.backends.backend_pdf")
    lines = [(80, 600 - 13 * row, 10, "words that fill a line of a paragraph to its end") for row in range(6)]
    below = [(80, 380 - 13 * row, 10, "other words that fill a line of another paragraph") for row in range(5)]
    for name in ("a.pdf", "b.pdf"):
        with backend.PdfPages(tmp_path / name, metadata={"CreationDate": None}) as file:
            for size in ((595 / 72, 842 / 72), (842 / 72, 595 / 72)):
                figure = plt.figure(figsize=size)
                write(figure, [(80, 660, 20, "A title"), *lines, *below])
                figure.figimage(torch.arange(150.0 * 60).view(60, 150).numpy(), xo=150, yo=150)
                file.savefig(figure)
                plt.close(figure)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 not a document")
    return tmp_path


def test_a_page_is_read_from_its_pdf(folder):
    pytest.importorskip("pypdfium2")
    layouts = pages.layouts_of(folder, log=lambda text: None)
    # The second document is a copy, the second page of the first is wider than high.
    assert len(layouts) == 1
    assert [PUBLAYNET[label] for label in layouts.labels[0]] == ["title", "text", "text", "figure"]
    title, first, second, picture = ltrb_from_cxcywh(layouts.boxes[0]) * torch.tensor([595.0, 842.0] * 2)
    for box, left, top, bottom in ((title, 80, 842 - 676, 842 - 658), (first, 80, 842 - 608, 842 - 533),
                                   (second, 80, 842 - 388, 842 - 326)):  # fmt: skip
        assert box[[0, 1, 3]].tolist() == pytest.approx([left, top, bottom], abs=3)
    # 150 x 60 pixels.
    assert float(picture[2] - picture[0]) == pytest.approx(2.5 * float(picture[3] - picture[1]), rel=0.02)


def test_a_folder_without_pages(tmp_path):
    pytest.importorskip("pypdfium2")
    with pytest.raises(InputError, match=r"no page is left; PDFs with pages higher than wide are needed$"):
        pages.layouts_of(tmp_path)
