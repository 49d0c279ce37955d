"""Inversion of large sets: shard by shard to disk, each written whole with its hash, so that a run can go on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pgraft_fast.errors import CheckpointError, InputError, told_as_damage
from pgraft_fast.files import MANIFEST, json_of, read_folder, remove_temporary, to_json, write_file, write_folder
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.finetune.identity import check_same, sha256_of_files, sha256_of_module, sha256_of_tensors
from pgraft_fast.inverse_noise.invert import invert, is_faster_in_graphs
from pgraft_fast.inverse_noise.sources import Rows, Source
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling import GraphCache, Model

_PLAN, _DATA, _SUMMARY = "plan.json", "shard.safetensors", "summary.json"
# Samples that are drawn again to tell whether the data are the same.
_COMPARED = 64
# Samples of a trial of graphs.
_TRIED = 256


@dataclass(frozen=True)
class InverseNoise:
    """A folder of shards. total: samples asked for. failed: of those done, that did not invert. calls: of the network,
    for all samples. contraction: the largest of the shards.
    """

    folder: Path
    total: int
    failed: int
    calls: int
    contraction: float
    worst_round_trip: float

    def noise(self, most: int | None = None) -> Tensor:
        """(m, ...) float32: of every sample that inverted, or of the first `most`, in order. Raises CheckpointError for
        a damaged shard.
        """
        parts, left = [], self.total if most is None else most
        for path in shards(self.folder):
            parts.append(_read(path)[0]["noise"][:left])
            left -= parts[-1].shape[0]
            if left <= 0:
                break
        return torch.cat(parts)

    def source(self, in_memory: int = 1 << 31) -> Source:
        """The noise to learn from; sets of more bytes than `in_memory` are read from the disk row by row."""
        files = [path / _DATA for path in shards(self.folder)]
        if sum(path.stat().st_size for path in files) <= in_memory:
            return Rows(self.noise())
        return ShardRows.of(files)

    def sha256(self) -> str:
        """Of all shards, by what their manifests say of their files."""
        return sha256_of_files({path.name: path / MANIFEST for path in shards(self.folder)})

    def index(self) -> Tensor:
        """(m,) int64: which sample each row of `noise` belongs to."""
        return torch.cat([_read(path)[0]["index"] for path in shards(self.folder)])


@dataclass(frozen=True)
class ShardRows:
    """Rows of shards as a source, from files mapped into memory. ends: (k,) rows up to each shard's end."""

    parts: list[Tensor]
    ends: Tensor
    slow: bool = True

    @classmethod
    def of(cls, files: list[Path]) -> "ShardRows":
        """Safetensors files with `noise` (m, ...)."""
        parts = [load_file(path)["noise"] for path in files]
        return cls(parts, torch.tensor([part.shape[0] for part in parts]).cumsum(0))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, index: Tensor, step: int) -> Tensor:
        """See `Source`."""
        number = torch.searchsorted(self.ends, index, right=True)
        rows = torch.empty(index.numel(), *self.parts[0].shape[1:])
        for shard in number.unique().tolist():
            at = number == shard
            rows[at] = self.parts[shard][index[at] - (self.ends[shard] - self.parts[shard].shape[0])]
        return rows

    def identity(self) -> dict[str, Any]:
        """By content."""
        return {"sha256": sha256_of_tensors({f"{number:06d}": part for number, part in enumerate(self.parts)})}


def invert_shards(
    model: Model,
    data: Callable[[Tensor], Tensor],
    total: int,
    folder: Path,
    *,
    shard: int = 1024,
    identity: dict[str, Any] | None = None,
    log: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    on_shard: Callable[[int], None] = lambda done: None,
    ranks: Ranks = ALONE,
    **how: Any,
) -> InverseNoise:
    """Invert samples data(index) (B, ...) for index 0 ... total - 1 into `folder`; the same call again goes on.

    how: arguments of `invert`, but for graphs, which are taken where they are faster. identity: JSON that names the
    data; it, `how`, the model's weights and the first samples must be the same for a folder to go on. A damaged shard
    is made anew. on_shard(done): samples done so far. ranks: each makes its share of the shards, in a folder that all
    of them see. Raises InputError, StorageError.
    """
    if total < 1 or shard < 1:
        raise InputError(f"total={total}, shard={shard}: both must be at least 1")
    paths = [folder / f"shard-{number:06d}" for number in range(-(-total // shard))]

    def begin() -> bool:
        _begin(model, data, total, folder, shard, how, identity or {})
        if all(path.exists() for path in paths):
            return False
        return is_faster_in_graphs(model, data(torch.arange(min(total, shard, _TRIED))), **how)

    # All ranks alike.
    graphs = GraphCache() if ranks.from_first(begin) else None
    with ranks.together():
        first, last = ranks.part(len(paths))
        for number in range(first, last):
            path, low = paths[number], number * shard
            high = min(low + shard, total)
            if not _is_done(path, log):
                ranks.check()
                _invert_shard(model, data, torch.arange(low, high), path, check, {**how, "graphs": graphs})
            on_shard(high)
    with ranks.together():
        return open_shards(folder)


def _begin(
    model: Model, data: Callable[[Tensor], Tensor], total: int, folder: Path, shard: int, how: dict[str, Any],
    identity: dict[str, Any],
) -> None:  # fmt: skip
    """Write what the shards are of, or see that it is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    plan = {
        "total": total, "shard": shard, **{key: _as_json(how[key]) for key in how if key != "batch_size"},
        **identity,
        "first samples": sha256_of_tensors({"rows": data(torch.arange(min(total, _COMPARED)))}),
        "model weights": sha256_of_module(model) if isinstance(model, nn.Module) else "a function",
    }  # fmt: skip
    path = folder / _PLAN
    if path.exists():
        check_same(read_plan(folder), json_of(to_json(plan)), f"the inversion in {folder}")
    else:
        write_file(path, to_json(plan))


def _invert_shard(
    model: Model, data: Callable[[Tensor], Tensor], index: Tensor, path: Path, check: Callable[[], None],
    how: dict[str, Any],
) -> None:  # fmt: skip
    inversion = invert(model, data(index), check=check, **how)
    kept = inversion.converged
    tensors = {"noise": inversion.noise[kept], "index": index[kept.cpu()], "round_trip": inversion.round_trip[kept]}
    summary = {
        "samples": index.numel(), "failed": int((~kept).sum()), "calls": inversion.calls,
        "contraction": _number(inversion.contraction), "worst_round_trip": _largest(inversion.round_trip[kept]),
    }  # fmt: skip
    write_folder(path, {_DATA: tensor_bytes(tensors), _SUMMARY: to_json(summary)})


def read_plan(folder: Path) -> dict[str, Any]:
    """What the shards of a folder are of. Raises CheckpointError."""
    try:
        return dict(json_of((folder / _PLAN).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: no inversion ({type(error).__name__} in {_PLAN})") from error


def open_shards(folder: Path) -> InverseNoise:
    """What `invert_shards` left. Raises CheckpointError where a shard is missing or damaged."""
    plan = read_plan(folder)
    with told_as_damage(f"{folder}: no inversion in {_PLAN}"):
        total, size = int(plan["total"]), int(plan["shard"])
        if min(total, size) < 1:
            raise ValueError(f"{total} samples in shards of {size}")
    paths = shards(folder)
    if len(paths) < -(-total // size):
        raise CheckpointError(f"{folder}: {len(paths)} of {-(-total // size)} shards; the same inversion again goes on")
    summaries = [_read(path)[1] for path in paths]
    with told_as_damage(folder):
        return InverseNoise(
            folder, total,
            sum(int(summary["failed"]) for summary in summaries), sum(int(summary["calls"]) for summary in summaries),
            max(float(summary["contraction"] or 0.0) for summary in summaries),
            max(float(summary["worst_round_trip"]) for summary in summaries),
        )  # fmt: skip


def shards(folder: Path) -> list[Path]:
    """The complete shards of a folder, in order."""
    return sorted(folder.glob("shard-*"))


def _as_json(value: Any) -> Any:
    """An argument of `invert` as JSON has it."""
    if isinstance(value, Tensor):
        return sha256_of_tensors({"values": value})
    return str(value) if isinstance(value, torch.dtype) else value


def _is_done(path: Path, log: Callable[[str], None]) -> bool:
    if not path.exists():
        return False
    try:
        _read(path)
    except CheckpointError as error:
        log(f"{error}; it is made anew")
        return False
    return True


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    files = read_folder(path)
    if {_DATA, _SUMMARY} - set(files):
        raise CheckpointError(f"{path}: incomplete")
    with told_as_damage(path):
        return tensors_from_bytes(files[_DATA], path / _DATA), dict(json_of(files[_SUMMARY]))


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value
