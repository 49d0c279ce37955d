"""Checkpoints of a run: one folder a round, the two newest kept, hashes checked on reading."""

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from pgraft_fast.errors import CheckpointError, StorageError, told_as_damage
from pgraft_fast.files import (
    json_of,
    read_folder,
    remove_temporary,
    storage_error,
    to_json,
    to_line,
    write_folder,
)
from pgraft_fast.ranks.ranks import Ranks

KEEP = 2
_STATE, _HISTORY = "state.json", "history.jsonl"
_NAME = re.compile(r"round-(\d{6,})")


class History(list[dict[str, Any]]):
    """What is told of each round. Entries are appended and stay as they are: each is made JSON once, not again in each
    of thousands of rounds.
    """

    def __init__(self, entries: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(entries)
        self._text, self._n_lines = bytearray(), 0

    def text(self) -> bytes:
        """A line of JSON an entry."""
        for entry in self[self._n_lines :]:
            self._text += to_line(entry)
        self._n_lines = len(self)
        return bytes(self._text)


@dataclass(frozen=True)
class Checkpoint:
    """round: rounds finished. state: JSON, its "history" of any length, a `History` or none. tensors: {"model": {...},
    "ema": {...}, ...}.
    """

    round: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then drop all but the two newest. Raises StorageError."""
    files = {f"{name}.safetensors": tensor_bytes(group) for name, group in checkpoint.tensors.items()}
    state = {**checkpoint.state, "round": checkpoint.round}
    if isinstance(state.get("history"), History):
        files[_HISTORY] = state.pop("history").text()
    files[_STATE] = to_json(state)
    path = folder / f"round-{checkpoint.round:06d}"
    write_folder(path, files)
    for _, old in _complete(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named through `warn` and passed over.

    None where there never was one. Raises CheckpointError where there are some and all are damaged.
    """
    damaged = None
    for number, path in reversed(_complete(folder)):
        try:
            return _read(path, number)
        except CheckpointError as error:
            damaged = error
            warn(f"{error}; falling back to the checkpoint before")
    if damaged is not None:
        raise CheckpointError(f"{damaged}; no whole checkpoint is left, start again in another run folder")
    return None


def newest_for_all(
    ranks: Ranks, folder: Path, warn: Callable[[str], None], only: Collection[str] | None = None
) -> Checkpoint | None:
    """As the first rank finds it in a folder, which is made where it is missing; see `load_newest`. only: tensors that
    go to all ranks; others stay with the first one.
    """
    newest_here: list[Checkpoint] = []

    def read() -> list[Any] | None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporary(folder)
        newest = load_newest(folder, warn)
        newest_here.extend([] if newest is None else [newest])
        return None if newest is None else [newest.round, newest.state]

    round_and_state = ranks.from_first(read)
    if round_and_state is None:
        return None
    tensors = newest_here[0].tensors if newest_here else {}
    groups = {name: group for name, group in tensors.items() if only is None or name in only}
    number, state = round_and_state
    return Checkpoint(number, state, {**tensors, **ranks.tensors_from_first(groups)})


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: str | None = None) -> bytes:
    """Safetensors bytes, the same for the same tensors. metadata: JSON text under the key "pgraft_fast"."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: the order of several is not fixed in the file.
    return safetensors.torch.save(plain, None if metadata is None else {"pgraft_fast": metadata})


def tensors_from_bytes(data: bytes, source: Path) -> dict[str, Tensor]:
    """Inverse of `tensor_bytes`. Raises CheckpointError."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source}: not a safetensors file ({error})") from error


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run folder for one process. Raises StorageError if another has it or it cannot be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        if (run / ".lock").is_symlink():
            # What it leads to would be emptied.
            raise StorageError(f"{run / '.lock'}: is a link; remove it")
        lock = FileLock(run / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StorageError(f"{run}: another process is using this run folder") from error
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(run, error) from error
    except NotImplementedError as error:
        raise StorageError(f"{run}: cannot be locked ({error}); take a run folder on another file system") from error
    try:
        yield
    finally:
        lock.release()


def _complete(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("round-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _read(path: Path, number: int) -> Checkpoint:
    files = read_folder(path)
    if _STATE not in files:
        raise CheckpointError(f"{path}: {_STATE} is missing")
    with told_as_damage(path):
        state = dict(json_of(files.pop(_STATE)))
        if _HISTORY in files:
            state["history"] = [dict(json_of(line)) for line in files.pop(_HISTORY).splitlines()]
    tensors = {name.removesuffix(".safetensors"): tensors_from_bytes(data, path / name) for name, data in files.items()}
    return Checkpoint(number, state, tensors)
