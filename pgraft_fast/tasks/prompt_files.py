"""Prompts from txt, csv, tsv, jsonl and json: the files of T2I-CompBench, PartiPrompts and GenEval, and anybody's."""

import csv
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.files import read_text

_TEXT_KEYS, _CATEGORY_KEYS = ("prompt", "text", "caption"), ("category", "tag", "type")
_NO_ENTRY = f"neither a string nor an object with {', '.join(_TEXT_KEYS)}"
_CSV_MEND = "put a prompt that holds a comma or a quote in quotes, and double the quotes in it"
_TSV_MEND = "a tab stands between two columns alone"
# The limit of a field is one of the whole process.
_HELD_OUT_SHARE = 0.1
_FIELD_LIMIT, _FIELD_LOCK = 2**31 - 1, threading.Lock()

# Text and category, "" where there is none, and all fields by their names.
Entry = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True)
class PromptFile:
    """text: prompts, each once, in the order of the file. category: of each, or the name of its file. columns: other
    fields that were asked for, a value for each prompt.
    """

    text: tuple[str, ...]
    category: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def rows(self, rows: Sequence[int]) -> "PromptFile":
        """Some of them."""
        columns = {name: tuple(values[row] for row in rows) for name, values in self.columns.items()}
        return PromptFile(
            tuple(self.text[row] for row in rows), tuple(self.category[row] for row in rows), columns
        )  # fmt: skip


def read_prompts(path: Path, columns: Sequence[str] = ()) -> PromptFile:
    """Read a file, or all files of a folder as T2I-CompBench has them (color_val.txt: category "color").

    txt: one a line; a tab is a space, but for a column in which every line of color_val.txt says "color". tsv: a first
    line with a column prompt, text or caption, and perhaps category, tag or type; a quote is part of the prompt. csv:
    the same with commas; a prompt that holds one stands in quotes. jsonl, json: objects with such keys (GenEval's
    evaluation_metadata.jsonl), or strings.

    The text is UTF-8, with or without a byte order mark; lines end at LF or CR LF alone. A prompt is taken as it stands
    but for white space at its ends. Left out are empty ones and repetitions, also those that differ in white space
    alone, which no text encoder sees; the first one's category counts. columns: other fields, which every prompt must
    have; of csv and tsv numbers and true or false are such, all else is text, and a prompt may come again with other
    values then. Raises InputError: file, line, mend.
    """
    prompts: dict[Any, tuple[str, str, tuple[Any, ...]]] = {}
    for file in _files(path):
        text, common = read_text(file, "prompts"), _category_of(file)
        if file.suffix.lower() == ".txt" and common != file.stem:
            text = _without_column(text, common)
        try:
            for prompt, category, fields in _READERS[file.suffix.lower()](text):
                if prompt.strip():
                    values = tuple(_field(fields, name, prompt) for name in columns)
                    key = " ".join(prompt.split()), repr(values)
                    prompts.setdefault(key, (prompt.strip(), category.strip() or common, values))
        except ValueError as error:
            raise InputError(f"{file}, {error}") from error
    if not prompts:
        raise InputError(f"{path}: no prompt in it")
    texts, categories, values = zip(*prompts.values(), strict=True)
    return PromptFile(texts, categories, dict(zip(columns, zip(*values, strict=True), strict=True)))


def _field(fields: Mapping[str, Any], name: str, prompt: str) -> Any:
    if name not in fields:
        raise ValueError(f"prompt {prompt.strip()[:60]!r}: it has no field {name!r}, which prompts.columns asks for")
    return fields[name]


def with_held_out(train: PromptFile, held_out: PromptFile | None, seed: int) -> tuple[PromptFile, PromptFile]:
    """Prompts to train and to evaluate on, without overlap: a drawn tenth of `train` where none are given."""
    if held_out is not None:
        taken = set(held_out.text)
        rows = [row for row, text in enumerate(train.text) if text not in taken]
        if not rows:
            raise InputError("prompts: all of train are held out, too; give others")
        return train.rows(rows), held_out
    n = len(train.text)
    if n < 2:
        raise InputError(f"prompts: {n} to train on; at least 2 are needed, or give held_out")
    order = torch.argsort(uniform(seed, torch.arange(n), 1 << 20, Stream.PROMPTS), stable=True).tolist()
    out = max(1, round(_HELD_OUT_SHARE * n))
    return train.rows(sorted(order[out:])), train.rows(sorted(order[:out]))


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder by name; hidden ones, which some systems write beside others, are no prompts."""
    try:
        if not path.is_dir():
            if path.suffix.lower() not in _READERS:
                raise InputError(f"{path}: prompts are read from {', '.join(_READERS)}")
            return [path]
        files = sorted(
            file for file in path.iterdir()
            if file.suffix.lower() in _READERS and not file.name.startswith(".") and not file.is_dir()
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"{path}: prompts cannot be read ({error.strerror})") from error
    if not files:
        raise InputError(f"{path}: no prompt file in it ({', '.join(_READERS)})")
    return files


def _category_of(file: Path) -> str:
    name = file.stem
    for end in ("_train", "_val", "_test"):
        name = name.removesuffix(end)
    return name


def _without_column(text: str, category: str) -> str:
    """A txt whose lines, every one, end with a tab and the category in the name of the file, without that."""
    lines = [line.rstrip() for _, line in _lines(text) if line.strip()]
    end = f"\t{category}"
    return "\n".join(line.removesuffix(end) for line in lines) if all(line.endswith(end) for line in lines) else text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered from 1, without their ends. str.splitlines would also end one at U+2028, a form feed and others."""
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _txt(text: str) -> Iterator[Entry]:
    for _, line in _lines(text):
        yield line.replace("\t", " "), "", {}


def _tsv(text: str) -> Iterator[Entry]:
    return _table(((number, line.split("\t")) for number, line in _lines(text)), _TSV_MEND)


def _csv(text: str) -> Iterator[Entry]:
    return _table(_csv_rows(text), _CSV_MEND)


def _csv_rows(text: str) -> list[tuple[int, list[str]]]:
    """(first line, fields) of each row."""
    rows = []
    # strict: without it, text behind a closing quote is taken and the quotes are lost, and so is an open quote.
    reader = csv.reader((f"{line}\n" for line in text.split("\n")), strict=True)
    with _FIELD_LOCK:
        limit = csv.field_size_limit(_FIELD_LIMIT)
        try:
            while True:
                number = reader.line_num + 1
                try:
                    rows.append((number, next(reader)))
                except StopIteration:
                    return rows
                except csv.Error as error:
                    raise ValueError(f"line {number}: {error}; {_CSV_MEND}") from error
        finally:
            csv.field_size_limit(limit)


def _table(rows: Iterable[tuple[int, list[str]]], mend: str) -> Iterator[Entry]:
    """Entries of rows under a header. Raises ValueError where a row has another number of fields."""
    filled = ((number, fields) for number, fields in rows if any(field.strip() for field in fields))
    number, header = next(filled, (1, []))
    names = [name.strip().casefold() for name in header]
    text_at, category_at = _place(_TEXT_KEYS, names, number), _place(_CATEGORY_KEYS, names, number)
    if text_at is None:
        raise ValueError(f"line {number}: no column {', '.join(_TEXT_KEYS)} in its first line")
    for number, fields in filled:
        if len(fields) != len(names):
            raise ValueError(f"line {number}: {len(fields)} fields under {len(names)} columns; {mend}")
        of_row = {name.strip(): _value(value) for name, value in zip(header, fields, strict=True)}
        yield fields[text_at], "" if category_at is None else fields[category_at], of_row


def _value(text: str) -> Any:
    """A number, true or false, or the text as it stands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else text


def _place(keys: Sequence[str], names: Sequence[str], number: int) -> int | None:
    key = next((key for key in keys if key in names), None)
    if key is None:
        return None
    if names.count(key) > 1:
        raise ValueError(f"line {number}: {names.count(key)} columns {key}; keep one")
    return names.index(key)


def _jsonl(text: str) -> Iterator[Entry]:
    for number, line in _lines(text):
        if line.strip():
            try:
                yield _entry(_parsed(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg} at column {error.colno}") from error
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _json(text: str) -> Iterator[Entry]:
    try:
        entries = _parsed(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg} at column {error.colno}") from error
    if not isinstance(entries, list):
        raise ValueError("line 1: not a list")
    for number, entry in enumerate(entries, start=1):
        try:
            yield _entry(entry)
        except ValueError as error:
            raise ValueError(f"entry {number}: {error}") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in an object")
    return fields


def _entry(value: object) -> Entry:
    fields = {_TEXT_KEYS[0]: value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise ValueError(_NO_ENTRY)
    key = next((key for key in _TEXT_KEYS if fields.get(key) is not None), None)
    if key is None:
        raise ValueError(_NO_ENTRY)
    if not isinstance(fields[key], str):
        raise ValueError(f"{key} is {json.dumps(fields[key])[:60]}, not a text")
    category = next((_category(key, fields[key]) for key in _CATEGORY_KEYS if not _is_nothing(fields.get(key))), "")
    for text in (fields[key], category):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("half of a surrogate pair, which is no character; write both halves, or neither")
    return fields[key], category, fields


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _category(key: str, value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key} is {json.dumps(value)[:60]}, neither a text nor a number")
    return str(value)


_READERS: dict[str, Callable[[str], Iterator[Entry]]] = {
    ".txt": _txt, ".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json,
}  # fmt: skip
