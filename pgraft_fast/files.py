"""Files that are written whole or not at all, folders that prove what they hold, and texts of users.

A folder is written under a temporary name, its files and itself flushed to disk, a manifest with the SHA-256 of
every file last, then renamed, and the parent flushed. So a name without ".tmp" in front always stands for a complete
folder, whatever was killed when.
"""

import codecs
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgraft_fast.errors import CheckpointError, InputError, StorageError
from pgraft_fast.sizes import megabytes

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def cache_folder() -> Path:
    """$PGRAFT_FAST_CACHE, or pgraft_fast under $XDG_CACHE_HOME or ~/.cache: libraries, choices by trial, logs."""
    chosen = os.environ.get("PGRAFT_FAST_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "pgraft_fast"


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the one before untouched. Raises StorageError."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        _write_flushed(temporary, data)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error, len(data)) from error


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a whole folder, or nothing. Raises StorageError."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in files.items():
            _write_flushed(temporary / name, data)
        _write_flushed(temporary / MANIFEST, to_json({"sha256": hashes}))
        flush_folder(temporary)
        if path.exists():
            aside = path.with_name(f"{_TEMPORARY}old-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        os.rename(temporary, path)
        flush_folder(path.parent)
        shutil.rmtree(path.with_name(f"{_TEMPORARY}old-{path.name}"), ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise storage_error(path, error, sum(map(len, files.values()))) from error


def read_folder(path: Path) -> dict[str, bytes]:
    """All files of a folder written by `write_folder`. Raises CheckpointError where one byte differs."""
    try:
        manifest = (path / MANIFEST).read_bytes()
        hashes = json_of(manifest)["sha256"]
        if to_json({"sha256": hashes}) != manifest:
            raise ValueError("not as it was written")
        # Nothing beside the folder is read, whatever the manifest names.
        files = {name: (path / Path(name).name).read_bytes() for name in hashes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: incomplete or damaged ({type(error).__name__})") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise CheckpointError(f"{path / name}: damaged, its hash differs from the manifest")
    return files


def read_text(path: Path, what: str = "") -> str:
    """A text that a user wrote, with the line ends it has. what: is read from it, for messages. Raises InputError."""
    try:
        return text_of(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read ({error.strerror})".replace("  ", " ")) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def text_of(data: bytes) -> str:
    """UTF-8, without the byte order mark that it may begin with. Raises ValueError: what it is instead, the mend."""
    kind = next((name for mark, name in _OTHER_MARKS.items() if data.startswith(mark)), None)
    # Every second byte of a Latin text in UTF-16 is zero; no text in UTF-8 is like that.
    if kind is None and data[:4096].count(0) * 4 > len(data[:4096]):
        kind = "UTF-16, or no text at all"
    if kind is not None:
        raise ValueError(f"not a text in UTF-8 but {kind}; save it as UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(f"not a text in UTF-8 (line {line} has the byte 0x{byte:02x}); save it as UTF-8") from error


def remove_temporary(folder: Path) -> None:
    """Delete what a killed writer left behind."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def to_json(value: Any) -> bytes:
    """Readable JSON with a fixed order of keys; numbers that are not finite, which JSON has not, are null."""
    return (json.dumps(_finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def to_line(value: Any) -> bytes:
    """As `to_json`, on one line."""
    return (json.dumps(_finite(value), sort_keys=True, allow_nan=False) + "\n").encode()


def json_of(data: bytes | str) -> Any:
    """Inverse of `to_json`, of a file that anybody may have written. Raises ValueError."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _finite(value: Any) -> Any:
    """nan is a measure that there was nothing to take of, inf an interval of one value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def check_space(folder: Path, need: int) -> None:
    """Raise StorageError unless `need` bytes are free where the folder is."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StorageError(f"{folder}: needs {megabytes(need)} free, has {megabytes(free)}; free some or move run=")


def flush_folder(folder: Path) -> None:
    """fsync of a folder, so that the names in it survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError, need: int | None = None) -> StorageError:
    """One line for a failed write."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(_existing(path)).free
        wants = "" if need is None else f" needs {megabytes(need)},"
        return StorageError(f"{path}:{wants} no space left ({megabytes(free)} free); the state before is whole")
    return StorageError(f"{path}: cannot be written ({error.strerror or error})")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def inside(folder: Path, path: Path) -> Path:
    """The path, which is in the folder also where links lead. Raises InputError.

    A folder that came from elsewhere may hold links to any place of this machine.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: leads out of {folder} by a link; remove the link")
    return path


def _write_flushed(path: Path, data: bytes) -> None:
    # What a killed writer left, or a link that would be followed.
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
