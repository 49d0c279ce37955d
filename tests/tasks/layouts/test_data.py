"""Layouts to train on and to hold out, of a user's own files."""

import json

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts import recipe
from pgraft_fast.tasks.layouts.archive import npz_bytes
from pgraft_fast.tasks.layouts.data import load_parts
from pgraft_fast.tasks.layouts.elements import RICO
from pgraft_fast.tasks.layouts.pages import shipped
from pgraft_fast.tasks.layouts.task import LayoutsSettings, layouts_task
from pgraft_fast.tasks.layouts.training import Amount


@pytest.fixture
def publaynet(tmp_path):
    """40 pages of one to three boxes, one of them wider than high."""
    images = [{"id": i, "width": 600 if i else 900, "height": 800, "file_name": f"{i}.jpg"} for i in range(41)]
    boxes = [
        {"image_id": i, "category_id": 1 + (i + j) % 5, "bbox": [60, 80 + 200 * j, 300 + i, 100]}
        for i in range(41)
        for j in range(1 + i % 3)
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": []}))
    return path


@pytest.fixture
def rico(tmp_path):
    folder = tmp_path / "rico"
    folder.mkdir()
    for i in range(20):
        children = [
            {"componentLabel": RICO[(i + j) % 25], "bounds": [100, 300 * j, 900, 300 * j + 200 + i]} for j in range(3)
        ]
        (folder / f"{i}.json").write_text(json.dumps({"bounds": [0, 0, 1440, 2560], "children": children}))
    return folder


def test_publaynet(publaynet):
    lines = []
    train, held_out = load_parts(str(publaynet), log=lines.append)
    assert (len(train), len(held_out)) == (38, 2) and train.names[0] == "text"
    assert lines == [f"{publaynet}: left out 1 pages wider than high; the first: image 0"]
    lines.clear()
    train, held_out = load_parts(str(publaynet), n_max=2, log=lines.append)
    assert int(train.count.max()) == 2 and len(lines) == 2 and "more than 2 boxes" in lines[1]


def test_rico_is_trained_on_and_drawn(rico, tmp_path):
    """The recipe and the task of another label set, from a folder to samples."""
    train, held_out = load_parts(str(rico))
    assert (len(train), len(held_out)) == (17, 2) and train.names == RICO
    sizes = {name: Amount(steps=1, batch=4) for name in recipe.PARTS}
    out = tmp_path / "weights"
    figures = recipe.train_all(out, log=lambda text: None, sizes=sizes, data=str(rico))
    assert figures["data"]["inside"] == 1.0
    task = layouts_task(LayoutsSettings(weights=str(out), data=str(rico), prompts="labels"))
    assert task.shape == (25, 29) and task.prompts.text[0].split(", ")[0] in RICO
    assert task.pictures(torch.zeros(1, 25, 29), task.prompts.condition[:1]).shape == (1, 220, 160, 3)


def test_an_npz_and_what_is_none(tmp_path):
    path = tmp_path / "pages.npz"
    path.write_bytes(npz_bytes(shipped().rows(torch.arange(20))))
    assert [len(part) for part in load_parts(str(path))] == [18, 2]
    with pytest.raises(InputError, match=r"pages\.txt: no data of layouts; give a \.json of PubLayNet"):
        load_parts(str(tmp_path / "pages.txt"))
    path.write_bytes(npz_bytes(shipped().rows(torch.arange(1))))
    with pytest.raises(InputError, match="1 layouts are too few to hold some out"):
        load_parts(str(path))
