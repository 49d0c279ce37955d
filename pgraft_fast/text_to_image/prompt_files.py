"""Prompts from txt, csv, jsonl and the files of T2I-CompBench and GenEval."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgraft_fast.errors import InputError

_TEXT_KEYS, _CATEGORY_KEYS = ("prompt", "text", "caption"), ("category", "tag", "type")


@dataclass(frozen=True)
class PromptFile:
    """text: prompts, each once, in the order of the file. category: of each, or the name of its file."""

    text: tuple[str, ...]
    category: tuple[str, ...]


def read_prompts(path: Path) -> PromptFile:
    """Read a file, or all files of a folder as T2I-CompBench has them (color_val.txt: category "color").

    txt: one a line. csv, tsv: a column prompt, text or caption, and perhaps category, tag or type. jsonl, json: objects
    with such keys (GenEval's evaluation_metadata.jsonl), or strings. Empty lines and repeated prompts are left out.
    Raises InputError.
    """
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in _READERS)
        if not files:
            raise InputError(f"{path}: no prompt file in it ({', '.join(_READERS)})")
    elif path.suffix.lower() not in _READERS:
        raise InputError(f"{path}: prompts are read from {', '.join(_READERS)}")
    else:
        files = [path]
    found: dict[str, str] = {}
    for file in files:
        try:
            for text, category in _READERS[file.suffix.lower()](file):
                if text.strip():
                    found.setdefault(" ".join(text.split()), category or _category_of(file))
        except OSError as error:
            raise InputError(f"{file}: prompts cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not a text in UTF-8") from error
    if not found:
        raise InputError(f"{path}: no prompt in it")
    return PromptFile(tuple(found), tuple(found.values()))


def _category_of(file: Path) -> str:
    name = file.stem
    for end in ("_train", "_val", "_test"):
        name = name.removesuffix(end)
    return name


def _txt(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        # Some files of T2I-CompBench have more columns behind the prompt.
        yield line.split("\t")[0], ""


def _csv(file: Path) -> Iterator[tuple[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        key = next((name for name in _TEXT_KEYS if name in (rows.fieldnames or ())), None)
        if key is None:
            raise InputError(f"{file}: no column {', '.join(_TEXT_KEYS)} in its first line")
        for row in rows:
            yield row[key] or "", next((row[name] or "" for name in _CATEGORY_KEYS if name in row), "")


def _jsonl(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            try:
                yield _entry(json.loads(line))
            except ValueError as error:
                raise InputError(f"{file}, line {number}: {error}") from error


def _json(file: Path) -> Iterator[tuple[str, str]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(entries, list):
            raise ValueError("not a list")
        yield from [_entry(entry) for entry in entries]
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def _entry(value: object) -> tuple[str, str]:
    if isinstance(value, str):
        return value, ""
    if isinstance(value, dict):
        text = next((value[name] for name in _TEXT_KEYS if isinstance(value.get(name), str)), None)
        if text is not None:
            return text, str(next((value[name] for name in _CATEGORY_KEYS if name in value), ""))
    raise ValueError(f"neither a string nor an object with {', '.join(_TEXT_KEYS)}")


_READERS = {".txt": _txt, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json}
