"""Drawn prompt files and configs: each is read as it was written, or refused with one line that names it.

A few hundred run with all other tests; `make test-faults` draws the rest of 5,000.
"""

import json
import random
import re
from pathlib import Path

import pytest

import pgraft_fast
from pgraft_fast.commands.correct_config import read_correct_config
from pgraft_fast.commands.pipeline_config import read_pipeline_config, read_run_config
from pgraft_fast.errors import InputError
from pgraft_fast.tasks.prompt_files import read_prompts

CONFIGS = [path.read_text() for path in sorted((Path(pgraft_fast.__file__).parent / "configs").glob("*.toml"))]
PIECES = [
    "a", "cat", "red", "STOP", "5'11\"", '"', '""', "'", ",", ";", "\\", "\\n", "{", "]", "#", "=", "$", "%s", "<b>",
    "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\xa0", "\u3000", "\ufeff", "\u202e", "é",
    "e\u0301", "猫", "😀", "\U000e0001", "\uffff", "prompt", "null", "NaN", "  ",
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "shift_jis"]
VALUES = [
    "inf", "-inf", "nan", "-1", "0", "1e400", "9" * 400, "true", '""', '"a\\u0000b"', "[]", "{}", "[[1]]", "1979-05-27",
    "07:32:00", "'''\n'''", "0x1F", '"\U0001f600"', "{ a.b = 1 }",
]  # fmt: skip
BYTES = [b'"', b",", b"\t", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"[" * 9]
# Between the pieces of one prompt, where the kind of file allows it.
BETWEEN = {"txt": ["\t", "\r"], "tsv": ["\r"], "csv": ["\t", "\r", "\n", "\r\n"], "jsonl": ["\t", "\r", "\n", "\0"]}


def drawn_prompts(draw, kind):
    between = [" ", " ", "", *BETWEEN[kind]]
    texts = []
    for _ in range(draw.randint(1, 6)):
        words = [draw.choice(PIECES) for _ in range(draw.randint(1, 7))]
        text = "".join(word + draw.choice(between) for word in words).strip()
        if text:
            texts.append(text)
    return texts or ["a cat"]


def quoted(draw, text):
    must = any(character in ',"\r\n' for character in text)
    return '"' + text.replace('"', '""') + '"' if must or draw.random() < 0.3 else text


def text_of(draw, kind, prompts):
    """A file of these prompts in any of the ways in which people write them."""
    end, key = draw.choice(["\n", "\r\n"]), draw.choice(["prompt", "text", "caption"])
    gap = [""] if draw.random() < 0.3 else []
    if kind == "txt":
        lines = [draw.choice(["", " ", "\t"]) + text + draw.choice(["", " ", "\t"]) for text in prompts]
    elif kind in ("tsv", "csv"):
        columns = draw.sample([key, "category", "id", "note"], 4)[: draw.randint(1, 4)]
        columns = columns if key in columns else [*columns, key]
        rows = [{key: text, "category": "c", "id": str(i), "note": "n"} for i, text in enumerate(prompts)]
        header = [draw.choice([str.upper, str.title, str, "{} ".format])(name) for name in columns]
        cell = (lambda text: text) if kind == "tsv" else (lambda text: quoted(draw, text))
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(header), *(mark.join(cell(row[name]) for name in columns) for row in rows)]
    else:
        plain = draw.random() < 0.5
        entries = [text if draw.random() < 0.3 else {"tag": 1, key: text, "n": [{"x": None}]} for text in prompts]
        lines = [json.dumps(entry, ensure_ascii=plain) for entry in entries]
    lines = [line for entry in lines for line in (entry, *gap)]
    return end.join(lines) + draw.choice(["", end])


def wanted(kind, prompts):
    texts = {}
    for text in prompts:
        cleaned = text.replace("\t", " ") if kind == "txt" else text
        texts.setdefault(" ".join(cleaned.split()), cleaned.strip())
    return tuple(texts.values())


def prompt_files(folder, seeds):
    for seed in seeds:
        draw = random.Random(seed)
        kind = draw.choice(list(BETWEEN))
        prompts = drawn_prompts(draw, kind)
        file = folder / f"drawn-{seed}.{kind}"
        text = text_of(draw, kind, prompts)
        # A mark that stands first is no text.
        file.write_bytes(text.encode("utf-8-sig" if text[0] == "\ufeff" or draw.random() < 0.5 else "utf-8"))
        assert read_prompts(file).text == wanted(kind, prompts), seed
        if kind == "jsonl":
            listed = file.with_suffix(".json")
            listed.write_text(json.dumps(prompts, ensure_ascii=draw.random() < 0.5), encoding="utf-8")
            assert read_prompts(listed).text == wanted(kind, prompts), seed


def damaged(draw, data):
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(data))
        what = draw.randrange(3)
        if what == 0:
            data = data[:at] + draw.choice(BYTES) + data[at:]
        elif what == 1:
            data = data[:at] + data[at + draw.randint(1, 5) :]
        else:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return data


def refused_or(read, file):
    try:
        return read(file)
    except InputError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
        return None


def damaged_files(folder, seeds):
    for seed in seeds:
        draw = random.Random(seed)
        kind = draw.choice([*BETWEEN, "json"])
        prompts = drawn_prompts(draw, "txt")
        text = json.dumps(prompts) if kind == "json" else text_of(draw, kind, prompts)
        data = text.encode(draw.choice(ENCODINGS), errors="replace")
        file = folder / f"damaged-{seed}.{kind}"
        file.write_bytes(damaged(draw, data) if draw.random() < 0.8 else data)
        accepted = refused_or(read_prompts, file)
        if accepted is not None:
            assert len(accepted.text) == len(accepted.category) >= 1
            assert all(text.strip() == text != "" and text.encode() for text in accepted.text)


def configs(folder, seeds):
    for seed in seeds:
        draw = random.Random(seed)
        text = draw.choice(CONFIGS)
        if draw.random() < 0.5:
            # One value of the config becomes something odd.
            keys = list(re.finditer(r"(?m)^(\w+ = )(.*?)( *#.*)?$", text))
            key = draw.choice(keys)
            text = text[: key.start(2)] + draw.choice(VALUES) + text[key.end(2) :]
        if draw.random() < 0.3:
            text = text.replace("\n", "\r\n")
        data = text.encode(draw.choice(ENCODINGS), errors="replace")
        file = folder / f"c-{seed}.toml"
        file.write_bytes(damaged(draw, data) if draw.random() < 0.5 else data)
        for read in (
            lambda path: read_run_config(path, "r", None),
            lambda path: read_correct_config(path, {"run": "r"}),
        ):
            refused_or(read, file)


def texts_in_configs(folder, seeds):
    """A text in a config is read as it stands, in any way of writing the file."""
    for seed in seeds:
        draw = random.Random(seed)
        text = drawn_prompts(draw, "jsonl")[0]
        ascii_only = draw.random() < 0.5
        line = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        if ascii_only:
            line = "".join(c if c.isascii() else f"\\U{ord(c):08x}" for c in line)
        config = CONFIG.format(line).replace("\n", draw.choice(["\n", "\r\n"]))
        file = folder / f"t-{seed}.toml"
        file.write_bytes(config.encode(draw.choice(["utf-8", "utf-8-sig"])))
        assert read_pipeline_config(file, {}).model.negative_prompt == text


CONFIG = 'run = "r"\n[model]\nshipped = "sd"\nnegative_prompt = {}\n[[rewards]]\nkind = "jpeg_size"\n'
SWEEPS = {prompt_files: 2600, damaged_files: 1200, configs: 700, texts_in_configs: 500}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_some_drawn_files(tmp_path, sweep):
    sweep(tmp_path, range(SWEEPS[sweep] // 20))


@pytest.mark.faults
@pytest.mark.parametrize("sweep", SWEEPS)
def test_drawn_files(tmp_path, sweep):
    sweep(tmp_path, range(SWEEPS[sweep] // 20, SWEEPS[sweep]))
