"""Files of layouts: PubLayNet's and RICO's, good ones and damaged ones."""

import json

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.comparison import max_iou
from pgraft_fast.tasks.layouts.elements import PUBLAYNET, RICO, pack
from pgraft_fast.tasks.layouts.readers import (
    PUBLAYNET_PARTS,
    RICO_PARTS,
    read_publaynet,
    read_rico,
    split_rows,
)

IMAGE = {"id": 7, "width": 600, "height": 800, "file_name": "a.jpg"}
BOX = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [60, 80, 300, 400]}


def coco(folder, images=(IMAGE,), annotations=(BOX,), **changed):
    path = folder / "val.json"
    whole = {"info": {}, "images": list(images), "annotations": list(annotations), "categories": [{"id": 1}]}
    path.write_text(json.dumps({**whole, **changed}))
    return path


def boxes_of(*boxes, image=7):
    return [{**BOX, "image_id": image, "bbox": list(box)} for box in boxes]


def node(label=None, bounds=(0, 0, 100, 100), *children):
    return {"bounds": list(bounds), "children": list(children), **({"componentLabel": label} if label else {})}


def screens(folder, **trees):
    for name, tree in trees.items():
        (folder / f"{name}.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return folder


def root(*children):
    return node(None, (0, 0, 1440, 2560), *children)


def test_a_page_of_publaynet(tmp_path):
    table = {**BOX, "category_id": 4, "bbox": [0, 0, 600.0, 800]}
    reading = read_publaynet(coco(tmp_path, annotations=[BOX, table]))
    layouts = reading.layouts
    assert layouts.labels.tolist() == [[0, 3]] and layouts.names[3] == "table"
    expected = torch.tensor([[0.35, 0.35, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    assert layouts.boxes.dtype == torch.float32 and torch.allclose(layouts.boxes[0], expected)
    assert reading.dropped.lines == []


def test_boxes_and_pages_that_are_left_out(tmp_path):
    images = [{**IMAGE, "id": number} for number in (7, 3, 5, 9, 2)]
    images[1]["width"] = 900
    many = boxes_of(*[(10, 10, 20, 20)] * 200, image=9)
    annotations = [
        *boxes_of((60, 80, 0, 400), (60, 80, 300, -1), (-1, 0, 10, 10), (500, 0, 101, 10), (0, 790, 5, 11)),
        *boxes_of((1, 1, 5, 5), (-1, 0, 5, 5), image=3), BOX, *many, *boxes_of((9, 9, 0, 9), image=5),
        *boxes_of((60, 80, 30, 40), (0, 0, 60, 80), image=2),
    ]  # fmt: skip
    # The annotations of the real files come after the images; nothing depends on it.
    path = coco(tmp_path, images=images, annotations=annotations)
    turned = json.dumps(dict(reversed(json.loads(path.read_text()).items())))
    reading = read_publaynet(path)
    assert reading.layouts.count.tolist() == [2, 1]
    assert reading.layouts.boxes[0, 1].tolist() == pytest.approx([0.05, 0.05, 0.1, 0.1])
    assert reading.dropped.lines == [
        "3 boxes without an area; the first: annotations, entry 1",
        "3 boxes that leave the page; the first: annotations, entry 3",
        "1 pages wider than high; the first: image 3",
        "1 pages without a box; the first: image 5",
        "1 pages of more than 25 boxes; the first: image 9",
    ]
    path.write_text(turned)
    assert torch.equal(read_publaynet(path).layouts.boxes, reading.layouts.boxes)
    assert read_publaynet(path, n_max=200).layouts.count.tolist() == [2, 1, 200]


def test_a_class_without_an_element(tmp_path):
    layouts = read_publaynet(coco(tmp_path, annotations=[BOX, {**BOX, "category_id": 5}])).layouts
    assert layouts.names == PUBLAYNET and layouts.labels.tolist() == [[0, 4]]
    samples = pack(layouts.labels, layouts.boxes, len(layouts.names))
    assert samples.shape == (1, 25, 9) and not samples[:, :, 5:8].any()
    assert max_iou(layouts.labels, layouts.boxes, layouts.labels, layouts.boxes).tolist() == pytest.approx([1.0])


def test_left_top_right_bottom_read_as_a_bbox_is_left_out(tmp_path):
    with pytest.raises(InputError, match=r"no page is left; 1 boxes that leave the page; the first: annotations, entr"):
        read_publaynet(coco(tmp_path, annotations=boxes_of((310, 80, 590, 400))))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"category_id": 0}, "category_id 0 is unknown; 1 to 5 are text, title, list, table, figure"),
        ({"category_id": 6}, "category_id 6 is unknown; 1 to 5 are text, title, list, table, figure"),
        ({"category_id": 1.0}, "'1.0' is not a whole number"),
        ({"category_id": True}, "'True' is not a whole number"),
        ({"bbox": [1, 2, 3]}, "bbox is '[1, 2, 3]'; four numbers are needed"),
        ({"bbox": [1, 2, 3, "4"]}, "'4' is not a finite number"),
        ({"bbox": [1, 2, 3, float("nan")]}, "'nan' is not a finite number"),
        ({"bbox": [1, 2, 3, 10**400]}, "int too large to convert to float"),
        ({"image_id": 8}, "no image has the id 8"),
        ({"image_id": 2**70}, f"'{2**70}' is not a whole number"),
        ({"bbox": ...}, "it has no 'bbox'"),
    ],
)
def test_an_annotation_that_is_wrong(tmp_path, changed, message):
    wrong = {key: value for key, value in {**BOX, **changed}.items() if value is not ...}
    path = coco(tmp_path, annotations=[BOX, wrong])
    with pytest.raises(InputError) as error:
        read_publaynet(path)
    assert str(error.value) == f"{path}: annotations, entry 2: {message}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": 7}, "the id 7 is that of an image before"),
        ({"width": 0}, "width and height are 0 and 800"),
        ({"height": None}, "'None' is not a finite number"),
        ([], "not as the format has it"),
    ],
)
def test_an_image_that_is_wrong(tmp_path, changed, message):
    wrong = {**IMAGE, "id": 8, **changed} if changed else changed
    path = coco(tmp_path, images=[IMAGE, wrong])
    with pytest.raises(InputError) as error:
        read_publaynet(path)
    assert str(error.value) == f"{path}: images, entry 2: {message}"


def test_files_that_are_damaged(tmp_path):
    path = coco(tmp_path)
    text = path.read_text()
    for size in range(len(text)):
        path.write_text(text[:size])
        with pytest.raises(InputError) as error:
            read_publaynet(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_publaynet(path).layouts) == 1
    path.write_bytes(text.encode().replace(b"a.jpg", b"\xff.jpg"))
    with pytest.raises(InputError, match="not a text in UTF-8"):
        read_publaynet(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="no images in it"):
        read_publaynet(path)
    with pytest.raises(InputError, match="layouts cannot be read"):
        read_publaynet(tmp_path / "none.json")
    with pytest.raises(InputError, match="no page is left; 1 pages without a box; the first: image 7"):
        read_publaynet(coco(tmp_path, annotations=[]))


def test_screens_of_rico(tmp_path):
    inner = node("Card", (0, 0, 720, 1280), node("Text", (144, 256, 288, 512)), None, node("Icon", (0, 0, 144, 256)))
    folder = screens(tmp_path, b=root(inner, node("On/Off Switch", (720, 1280, 1440, 2560))), a=root(node("Video")))
    reading = read_rico(folder)
    layouts = reading.layouts
    assert layouts.count.tolist() == [1, 4] and layouts.names is RICO
    assert [RICO[label] for label in layouts.labels[1].tolist()] == ["Card", "Text", "Icon", "On/Off Switch"]
    expected = [[0.25, 0.25, 0.5, 0.5], [0.15, 0.15, 0.1, 0.1], [0.05, 0.05, 0.1, 0.1], [0.75, 0.75, 0.5, 0.5]]
    assert torch.allclose(layouts.boxes[1], torch.tensor(expected)) and reading.dropped.lines == []


def test_screens_and_elements_that_are_left_out(tmp_path):
    wrong = [node("Text", (5, 5, 5, 9)), node("Text", (9, 9, 3, 12)), node("Text", (-1, 0, 5, 5)), node("Cloud")]
    folder = screens(
        tmp_path, a=root(*wrong, node("Text", (0, 0, 1441, 5)), node(), node("Icon")), b=root(), c=root(*wrong),
        d=root(*[node("Text")] * 200), e=node(None, (0, 0, 2560, 1440), node("Text")),
        f=node(None, (0, 84, 1440, 2560), node("Text")), g=node(None, (0, 0, 0, 0), node("Text")),
    )  # fmt: skip
    reading = read_rico(folder)
    assert reading.layouts.count.tolist() == [1]
    assert reading.dropped.lines == [
        "4 boxes without an area; the first: a.json, element 1",
        "3 boxes that leave the page; the first: a.json, element 3",
        "3 elements without a label of the set; the first: a.json, element 4",
        "2 pages without a box; the first: b.json",
        "1 pages of more than 25 boxes; the first: d.json",
        "1 pages wider than high; the first: e.json",
        "2 screens that do not begin at 0, 0 or have no size; the first: f.json",
    ]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ('{"bounds": [0, 0, 1440, 25', "damaged JSON, or cut short (Expecting ',' delimiter, line 1)"),
        ("", "damaged JSON, or cut short (Expecting value, line 1)"),
        ("[1]", "not as the format has it"),
        ("[" * 200_000, "nested too deeply"),
        ({"children": []}, "it has no 'bounds'"),
        (node(None, (0, 84, 10)), "bounds is '[0, 84, 10]'; four numbers are needed"),
        (root(node("Text"), node("Text", (1, 2, 3))), "bounds of element 2 is '[1, 2, 3]'; four numbers are needed"),
        (root({"componentLabel": "Text"}), "it has no 'bounds'"),
        (root("Text"), "not as the format has it"),
    ],
)
def test_a_screen_that_is_wrong(tmp_path, tree, message):
    folder = screens(tmp_path, a=root(node("Text")), b=tree)
    with pytest.raises(InputError) as error:
        read_rico(folder)
    assert str(error.value) == f"{folder / 'b.json'}: {message}"


def test_a_screen_that_is_no_text(tmp_path):
    (screens(tmp_path, a=root(node("Text"))) / "b.json").write_bytes(json.dumps(root()).encode("utf-16"))
    with pytest.raises(InputError, match=r"b\.json: not a text in UTF-8 but UTF-16; save it as UTF-8$"):
        read_rico(tmp_path)


def test_folders_without_a_screen(tmp_path):
    with pytest.raises(InputError, match=r"no \.json in it"):
        read_rico(tmp_path / "none")
    with pytest.raises(InputError, match=r"no screen is left; 1 pages without a box; the first: a\.json"):
        read_rico(screens(tmp_path, a=root()))


def test_splits():
    parts = split_rows(1001, RICO_PARTS)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 850, "validation": 50, "test": 101}
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(list(parts.values())), order)
    assert [len(rows) for rows in split_rows(335_703, PUBLAYNET_PARTS).values()] == [318_917, 16_786]
