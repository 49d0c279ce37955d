"""The package's own files of layouts."""

import io

import numpy as np
import pytest
import torch
from pages import TIDY, TIDY_LABELS, drawn, page

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.archive import npz_bytes, read_npz
from pgraft_fast.tasks.layouts.elements import PUBLAYNET, Layouts
from pgraft_fast.tasks.layouts.metrics import alignment

EDGES = np.array([[0, 0, 5000, 5000], [1000, 1000, 2000, 3000], [0, 0, 10000, 10000]], dtype=np.int16)


def saved(folder, **changed):
    whole = {"counts": np.array([1, 2]), "labels": np.array([0, 4, 3]), "boxes": EDGES, **changed}
    path, buffer = folder / "a.npz", io.BytesIO()
    np.savez(buffer, **{name: array for name, array in whole.items() if array is not None})
    path.write_bytes(buffer.getvalue())
    return path


def test_read_npz_reads_what_npz_bytes_wrote(tmp_path):
    labels, boxes, _ = drawn()
    path = tmp_path / "a.npz"
    data = npz_bytes(Layouts(labels, boxes, PUBLAYNET))
    path.write_bytes(data)
    layouts = read_npz(path, PUBLAYNET)
    assert torch.equal(layouts.labels, labels) and layouts.names == PUBLAYNET
    assert (layouts.boxes - boxes.nan_to_num()).abs().max() <= 1.01e-4
    # Once rounded, nothing changes.
    assert npz_bytes(layouts) == data
    wide = torch.nn.functional.pad(boxes, (0, 0, 0, 3)), torch.nn.functional.pad(labels, (0, 3), value=-1)
    assert npz_bytes(Layouts(wide[1], wide[0], PUBLAYNET)) == data


def test_what_a_file_holds():
    labels, boxes = page(TIDY, TIDY_LABELS)
    data = npz_bytes(Layouts(labels, boxes, PUBLAYNET))
    with np.load(io.BytesIO(data)) as archive:
        assert archive.files == ["counts", "labels", "boxes"]
        assert archive["counts"].tolist() == [5] and tuple(archive["labels"].tolist()) == TIDY_LABELS
        assert archive["boxes"].dtype == np.int16
        assert archive["boxes"].tolist() == (np.array(TIDY) * 10000).round().tolist()
    assert data == npz_bytes(Layouts(labels.clone(), boxes.clone(), PUBLAYNET))


def test_edges_that_agree_still_do(tmp_path):
    third = 1 / 3
    labels, boxes = page([(third, 0.1, 0.7, 0.3), (third, 0.5, 0.9001, 0.7), (third, 0.8, 0.51234, 0.9)])
    (tmp_path / "a.npz").write_bytes(npz_bytes(Layouts(labels, boxes, PUBLAYNET)))
    layouts = read_npz(tmp_path / "a.npz", PUBLAYNET)
    assert alignment(layouts.labels, layouts.boxes).item() < 1e-5


def test_boxes_as_floats(tmp_path):
    layouts = read_npz(saved(tmp_path, boxes=EDGES / 1e4), PUBLAYNET)
    assert layouts.labels.tolist() == [[0, -1], [4, 3]]
    assert torch.allclose(layouts.boxes[1], torch.tensor([[0.15, 0.2, 0.1, 0.2], [0.5, 0.5, 1.0, 1.0]]))
    assert torch.equal(read_npz(saved(tmp_path), PUBLAYNET).boxes, layouts.boxes)


FLOATS = EDGES / 1e4
RIGHT = "right or bottom come before left or top; boxes are left, top, right, bottom"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, ": no npz of layouts, or damaged (no array labels)"),
        ({"labels": np.array([0, 4, 5])}, ", layout 2, element 2: label 5 is unknown; 0 to 4 are known"),
        ({"labels": np.array([0, -1, 3])}, ", layout 2, element 1: label -1 is unknown; 0 to 4 are known"),
        ({"counts": np.array([0, 3])}, ", layout 1: 0 elements; 1 to 25 fit"),
        ({"counts": np.array([1, 200])}, ", layout 2: 200 elements; 1 to 25 fit"),
        ({"counts": np.array([1, 3])}, ": counts add up to 4 elements, labels has 3"),
        ({"counts": np.array([1.0, 2.0])}, ": counts and labels must be whole numbers, boxes numbers"),
        ({"boxes": EDGES.astype(np.int32)}, ": boxes are int32; int16 in steps of 0.0001 or floats are needed"),
        ({"boxes": EDGES[:2]}, ": shapes (2,), (3,), (2, 4); needed are (n,), (M,), (M, 4) with n >= 1"),
        ({"boxes": FLOATS * [1, 1, np.nan, 1]}, ", layout 1, element 1: a number of the box is not finite"),
        # Centre and size of a box in the lower right of the page.
        ({"boxes": FLOATS * 0 + [0.75, 0.75, 0.5, 0.5]}, f", layout 1, element 1: {RIGHT}"),
    ],
)  # fmt: skip
def test_an_npz_that_is_wrong(tmp_path, changed, message):
    path = saved(tmp_path, **changed)
    with pytest.raises(InputError) as error:
        read_npz(path, PUBLAYNET)
    assert str(error.value) == f"{path}{message}"


def test_an_npz_that_is_damaged(tmp_path):
    path = tmp_path / "a.npz"
    data = npz_bytes(Layouts(*page(TIDY, TIDY_LABELS), PUBLAYNET))
    for part in (b"", b"text", data[: len(data) // 2], data[:40] + b"\0" * 8 + data[48:], data[:-1]):
        path.write_bytes(part)
        with pytest.raises(InputError, match=r"a\.npz: no npz of layouts, or damaged \(\w+\)$"):
            read_npz(path, PUBLAYNET)
    with pytest.raises(InputError, match="layouts cannot be read"):
        read_npz(tmp_path / "none.npz", PUBLAYNET)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 4.0])
def test_boxes_that_int16_cannot_hold(value):
    labels, boxes = page(TIDY, TIDY_LABELS)
    boxes[0, 2, 0] = value
    with pytest.raises(InputError, match=r"^boxes are not finite or beyond 3\.2767 pages, the most that int16 holds$"):
        npz_bytes(Layouts(labels, boxes, PUBLAYNET))
