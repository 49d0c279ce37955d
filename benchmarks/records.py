"""The CSV of a device: the rows of all runs, one behind the other, and the newest of them."""

import csv
import hashlib
import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pgraft_fast.errors import InputError
from pgraft_fast.files import cache_folder, write_file

Row = dict[str, Any]

RESULTS = Path(__file__).resolve().parent / "results"
# What makes two rows the same measurement, made again.
_SAME = ("bench", "op", "case", "shape", "dtype", "batch", "steps", "device", "threads", "cut", "seed")
_FIRST = (
    "run", "bench", "size", "op", "case", "shape", "dtype", "batch", "steps", "provider", "gate", "p50_ms", "p20_ms",
    "p80_ms", "times_ours", "readings",
)  # fmt: skip
_LAST = (
    "note", "device", "driver", "threads", "backend", "python", "torch", "triton", "diffusers", "transformers",
    "xformers", "commit", "dirty",
)  # fmt: skip


def now() -> str:
    """The time as rows tell it, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows of a benchmark's result, each with where and of what it was measured."""
    where = {
        name: result.get(name) for name in ("run", "size", "device", "driver", "threads", "backend", "commit", "dirty")
    }
    where |= result["versions"]
    return [{"bench": result.get("bench"), **row, "shape": _shape(row.get("shape")), **where} for row in result["rows"]]


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a CSV, whole or not at all. Columns that it does not have yet are added. Raises InputError."""
    # Beside the file it would have to be deleted, and then two processes may hold two locks of one name.
    lock = cache_folder() / "locks" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        write_file(path, to_csv([*(read(path) if path.exists() else []), *rows]))


def to_csv(rows: list[Row]) -> bytes:
    """With a header: what is common to all first, where it was measured last."""
    names = dict.fromkeys(name for row in rows for name in row)
    middle = [name for name in names if name not in (*_FIRST, *_LAST)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIRST, *middle, *_LAST], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(path: Path) -> list[Row]:
    """All rows; numbers and truth values as such, empty cells left out. Raises InputError for another kind of file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error
    if lines and not {"bench", "case", "provider"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: not a table of this benchmark, it has no columns bench, case and provider")
    return [{name: _value(cell) for name, cell in line.items() if cell not in ("", None)} for line in lines]


def newest(rows: Iterable[Row], bench: str, size: str = "full") -> list[Row]:
    """The rows of the last run of each case, in the order in which the cases came last."""
    last: dict[tuple[Any, ...], str] = {}
    matching = [row for row in rows if row.get("bench") == bench and row.get("size") == size]
    for row in matching:
        last[key(row)] = str(row.get("run"))
    return [row for row in matching if last[key(row)] == str(row.get("run"))]


def key(row: Row) -> tuple[Any, ...]:
    """Equal for rows of the same case, by whatever provider."""
    return tuple(row.get(name) for name in _SAME)


def file_of(device: str, folder: Path = RESULTS) -> Path:
    """folder/<device>.csv."""
    return folder / f"{slug(device)}.csv"


def slug(device: str) -> str:
    """The device's name in small letters, digits and hyphens."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in device.lower()).split())


def all_rows(folder: Path = RESULTS) -> list[Row]:
    """Of every device."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read(path)]


def _shape(shape: Any) -> Any:
    return "x".join(map(str, shape)) if isinstance(shape, (list, tuple)) else shape


def _value(cell: str) -> Any:
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
