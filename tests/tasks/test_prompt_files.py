"""Prompts from every kind of file."""

import json
import re

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.prompt_files import read_prompts, with_held_out

WANTED = ("a red cube", "two, green cats")
# What str.splitlines takes for ends of lines beside LF, CR LF and CR.
INNER = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def written(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


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
        for ends in ("\n", "\r\n"):
            written(tmp_path, name, text.replace("\n", ends), "utf-8-sig")
            assert read_prompts(tmp_path / name).text == WANTED
    assert read_prompts(tmp_path / "d.jsonl").category == ("colors", "counting")
    assert read_prompts(tmp_path / "b.csv").category == ("colors", "counting")
    assert read_prompts(tmp_path / "a.txt").category == ("a", "a")


def test_folder_of_t2i_compbench(tmp_path):
    written(tmp_path, "color_val.txt", "a red bench\tcolor\n")
    written(tmp_path, "spatial_val.txt", "a cat left of a dog\na red bench\n")
    # Neither is a file of prompts: what macOS writes beside a file, and a folder.
    (tmp_path / "._color_val.txt").write_bytes(b"\0\x05\x16\x07\0")
    (tmp_path / "more.txt").mkdir()
    prompts = read_prompts(tmp_path)
    assert prompts.text == ("a red bench", "a cat left of a dog") and prompts.category == ("color", "spatial")


@pytest.mark.parametrize(
    "text",
    [
        '"STOP" on a sign',
        'an open " quote',
        '"an open quote',
        'a closing quote"',
        "'single' ones, and a comma",
        r"a back\slash",
        '""',
        "5'11\" tall",
    ],
)
def test_quotes_in_a_tsv(tmp_path, text):
    """One line is one row, and quotes are text."""
    rows = [text, "the next one", '"another" open "', "the last"]
    file = written(tmp_path, "a.tsv", "Prompt\tCategory\tNote\n" + "".join(f'{row}\tsigns\t"\n' for row in rows))
    assert read_prompts(file).text == tuple(rows)
    assert set(read_prompts(file).category) == {"signs"}


def test_one_open_quote_in_a_long_tsv(tmp_path):
    rows = ['"open', *(f"prompt {number} {'x' * 100}" for number in range(6000))]
    file = written(tmp_path, "a.tsv", "prompt\n" + "\n".join(rows))
    assert read_prompts(file).text == tuple(rows)


def test_tabs_in_a_txt(tmp_path):
    """A tab is a space; a column is one where all of a file of T2I-CompBench's name say the category in its name."""
    file = written(tmp_path, "a.txt", "bold colours,\tnapkins\nx\ta\n\ta cat\t\n")
    assert read_prompts(file).text == ("bold colours, napkins", "x a", "a cat")
    file = written(tmp_path, "color_val.txt", "a red bench\tcolor\r\n\r\na bold\tcolor\r\n")
    assert read_prompts(file).text == ("a red bench", "a bold")
    file = written(tmp_path, "color_val.txt", "a red bench\tcolor\na blue bench\tfaded\n")
    assert read_prompts(file).text == ("a red bench color", "a blue bench faded")


@pytest.mark.parametrize("inner", [*INNER, "\r", "\xa0", "\ufeff", "\0", "  ", "\u3000", "\u202e", "$5 and $"])
@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl", "json"])
def test_a_prompt_as_it_stands(tmp_path, kind, inner):
    rows = [f"a{inner}b", "the next"]
    text = {
        "txt": "\n".join(rows),
        "tsv": "prompt\tcategory\n" + "".join(f"{row}\tx\n" for row in rows),
        "csv": "category,prompt\n" + "".join(f'x,"{row}"\n' for row in rows),
        "jsonl": "".join(json.dumps({"prompt": row}, ensure_ascii=inner in "\r\0") + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=inner in "\r\0"),
    }[kind]
    assert read_prompts(written(tmp_path, f"a.{kind}", text)).text == tuple(rows)


def test_repetitions(tmp_path):
    """They differ in white space at most; the first one stays, with its category."""
    file = written(tmp_path, "a.csv", "prompt,type\na  cat,one\na cat,two\n a cat ,\nA cat,\n")
    assert read_prompts(file).text == ("a  cat", "A cat") and read_prompts(file).category == ("one", "a")


def test_quotes_in_a_csv(tmp_path):
    text = '\n , \nprompt, Category \r\n"a ""red"" cube, one\ntwo",x\n\na "blue" cube,"y"\r\n,z\n" spaced ",\n'
    prompts = read_prompts(written(tmp_path, "a.csv", text))
    assert prompts.text == ('a "red" cube, one\ntwo', 'a "blue" cube', "spaced") and prompts.category == ("x", "y", "a")


def test_a_wide_field(tmp_path):
    """The csv module has a limit of 131,072 characters, and one for all of a process, which stays."""
    import csv

    limit = csv.field_size_limit()
    file = written(tmp_path, "a.csv", f"picture,prompt\n{'x' * 300_000},a cat\n,{'y' * 200_000}\n")
    assert read_prompts(file).text == ("a cat", "y" * 200_000) and csv.field_size_limit() == limit


def test_categories(tmp_path):
    rows = [{"prompt": "a", "category": 3}, {"prompt": "b", "category": None}, {"caption": "d", "type": "x"}]
    text = json.dumps(rows)[:-1] + ', {"prompt": "c", "category": NaN, "tag": "y", "include": [{"class": 1}]}]'
    assert read_prompts(written(tmp_path, "a_val.json", text)).category == ("3", "a", "x", "y")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", ": no prompt in it"),
        ("a.txt", "", ": no prompt in it"),
        ("a.csv", "name\nx\n", ", line 1: no column prompt, text, caption in its first line"),
        ("a.csv", "", ", line 1: no column prompt"),
        ("a.csv", "prompt;category\nx;y\n", ", line 1: no column prompt"),
        ("a.csv", "prompt,category\n\nb,c\na cat, a dog,animals\n", ", line 4: 3 fields under 2 columns; put a prompt"),
        ("a.csv", "id,prompt,category\n1,a cat,x\na dog,x\n", ", line 3: 2 fields under 3 columns; put a prompt"),
        ("a.csv", 'prompt\na, "b"\n', ", line 2: 2 fields under 1 columns; put a prompt"),
        ("a.csv", 'prompt\na cat\n"STOP" on a sign\n', ", line 3: .*; put a prompt that holds a comma or a quote in"),
        ("a.csv", 'prompt\n"a\nb"\n"open\nc\nd\n', ", line 4: unexpected end of data; put a prompt"),
        ("a.csv", "prompt\na\rb\n", ", line 2: new-line character"),
        ("a.csv", "prompt, Prompt \na,b\n", ", line 1: 2 columns prompt; keep one"),
        ("a.csv", "prompt,tag,tag\na,b,c\n", ", line 1: 2 columns tag; keep one"),
        ("a.tsv", "prompt\tcategory\na\tb\nc\td\te\n", ", line 3: 3 fields under 2 columns; a tab stands between"),
        ("a.tsv", "a cat\nprompt\n", ", line 1: no column prompt"),
        ("a.jsonl", '{"prompt": "x"}\n{"a": 1}\n', ", line 2: neither a string nor an object"),
        ("a.jsonl", '"x"\n["y"]\n', ", line 2: neither a string nor an object"),
        ("a.jsonl", '"x"\n{\n', ", line 2: Expecting property name .* at column 2"),
        ("a.jsonl", '"x" "y"\n', ", line 1: Extra data at column 5"),
        ("a.jsonl", '{"prompt": 5, "text": "x"}\n', ", line 1: prompt is 5, not a text"),
        ("a.jsonl", '{"prompt": ["x"]}\n', r', line 1: prompt is \["x"\], not a text'),
        ("a.jsonl", '{"prompt": null}\n', ", line 1: neither a string nor an object"),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}\n', ", line 1: the key 'prompt' stands twice"),
        ("a.jsonl", '{"prompt": "x", "tag": [1]}\n', r", line 1: tag is \[1\], neither a text nor a number"),
        ("a.jsonl", '"\\ud83d\\ude00"\n"\\ud83d"\n', ", line 2: half of a surrogate pair"),
        ("a.jsonl", '{"prompt": "x", "tag": "\\udc00"}\n', ", line 1: half of a surrogate pair"),
        ("a.jsonl", "[" * 100_000, ", line 1: nested too deeply"),
        ("a.jsonl", "9" * 5000, ", line 1: Exceeds the limit"),
        ("a.json", '{"prompt": "x"}', ", line 1: not a list"),
        ("a.json", '["x",\n"y",\n]', ", line 3: "),
        ("a.json", '["x", {"prompt": "y"}, null]', ", entry 3: neither a string nor an object"),
        ("a.json", "[" * 100_000, ", nested too deeply"),
        ("a.xml", "<a/>", ": prompts are read from .txt, .csv"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, name, text, message):
    file = written(tmp_path, name, text)
    with pytest.raises(InputError, match=re.escape(str(file)) + message) as caught:
        read_prompts(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl", "json"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "not a text in UTF-8 but UTF-16; save it as UTF-8"),
        ("utf-16-le", "not a text in UTF-8 but UTF-16, or no text at all; save it as UTF-8"),
        ("utf-32", "not a text in UTF-8 but UTF-32; save it as UTF-8"),
        ("cp1252", r"not a text in UTF-8 \(line 2 has the byte 0xe9\); save it as UTF-8"),
    ],
)
def test_other_encodings(tmp_path, kind, encoding, message):
    file = written(tmp_path, f"a.{kind}", "prompt\na café\n", encoding)
    with pytest.raises(InputError, match=re.escape(str(file)) + ": " + message):
        read_prompts(file)


def test_missing_file_and_empty_folder(tmp_path):
    for name in ("none.txt", "a/none.txt", "x" * 300 + ".txt", "a\0b.txt"):
        with pytest.raises(InputError, match=r"(?s)\.txt: (prompts cannot be read \(|embedded null)"):
            read_prompts(tmp_path / name)
    with pytest.raises(InputError, match=r"none.txt: prompts cannot be read \(No such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no prompt file in it"):
        read_prompts(tmp_path)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not a text in UTF-8"):
        read_prompts(tmp_path / "x.txt")
    (tmp_path / "x.txt").unlink()
    (tmp_path / "x.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"x.txt: prompts cannot be read \(No such file"):
        read_prompts(tmp_path)


def test_columns(tmp_path):
    """Fields that were asked for: numbers and words of a table, anything of json; the same prompt with other values."""
    rows = ("prompt,strength,style", 'a cat,0.5,"oil, dark"', "a cat,0.75,ink", 'a  cat,0.5,"oil, dark"')
    (tmp_path / "a.csv").write_text("\n".join(rows))
    prompts = read_prompts(tmp_path / "a.csv", ["strength", "style"])
    assert prompts.text == ("a cat", "a cat")
    assert prompts.columns == {"strength": (0.5, 0.75), "style": ("oil, dark", "ink")}
    assert read_prompts(tmp_path / "a.csv").columns == {} and read_prompts(tmp_path / "a.csv").text == ("a cat",)
    (tmp_path / "b.json").write_text('[{"prompt": "a", "sizes": [1, 2]}, {"prompt": "b", "sizes": []}]')
    assert read_prompts(tmp_path / "b.json", ["sizes"]).columns == {"sizes": ([1, 2], [])}
    (tmp_path / "c.tsv").write_text("prompt\tflag\nx\ttrue\ny\tNaN\n")
    assert read_prompts(tmp_path / "c.tsv", ["flag"]).columns == {"flag": (True, "NaN")}
    (tmp_path / "d.txt").write_text("a cat\n")
    with pytest.raises(InputError, match=r"d.txt, prompt 'a cat': it has no field 'style', which prompts.columns asks"):
        read_prompts(tmp_path / "d.txt", ["style"])
    train, held_out = with_held_out(prompts, None, 0)
    assert sorted(train.columns["strength"] + held_out.columns["strength"]) == [0.5, 0.75]
