"""Prompts from every kind of file."""

import json

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.text_to_image import read_prompts

WANTED = ("a red cube", "two, green cats")


def test_every_kind_of_file(tmp_path):
    rows = [{"prompt": WANTED[0], "tag": "colors"}, {"prompt": WANTED[1], "tag": "counting"}]
    files = {
        "a.txt": "a red cube\n\ntwo, green cats\na  red cube\n",
        "b.csv": 'prompt,category\na red cube,colors\n"two, green cats",counting\n',
        "c.tsv": "id\tcaption\n1\ta red cube\n2\ttwo, green cats\n",
        "d.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "e.json": json.dumps([WANTED[0], {"text": WANTED[1]}]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_prompts(tmp_path / name).text == WANTED
    assert read_prompts(tmp_path / "d.jsonl").category == ("colors", "counting")
    assert read_prompts(tmp_path / "b.csv").category == ("colors", "counting")
    assert read_prompts(tmp_path / "a.txt").category == ("a", "a")


def test_folder_of_t2i_compbench(tmp_path):
    (tmp_path / "color_val.txt").write_text("a red bench\tcolor\n")
    (tmp_path / "spatial_val.txt").write_text("a cat left of a dog\na red bench\n")
    found = read_prompts(tmp_path)
    assert found.text == ("a red bench", "a cat left of a dog") and found.category == ("color", "spatial")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "no prompt in it"),
        ("a.csv", "name\nx\n", "no column prompt, text, caption in its first line"),
        ("a.jsonl", '{"prompt": "x"}\n{"a": 1}\n', r"a.jsonl, line 2: neither a string nor an object"),
        ("a.jsonl", "{\n", r"a.jsonl, line 1: "),
        ("a.json", '{"prompt": "x"}', "not a list"),
        ("a.xml", "<a/>", r"prompts are read from .txt, .csv"),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match=r"none.txt: prompts cannot be read \(No such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no prompt file in it"):
        read_prompts(tmp_path)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not a text in UTF-8"):
        read_prompts(tmp_path / "x.txt")
