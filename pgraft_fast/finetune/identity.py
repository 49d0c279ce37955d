"""What a run is, by content: digests, the settings that may change, and the line that says what has changed."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError

# Settings that may change between two starts of a run, those of every config in this one place; all others, and the
# contents of all that a config names, must be the same.
MAY_CHANGE = {
    "run": "where the run lies",
    "mode": "how it is computed; numbers agree to rounding",
    "log": "what is written down",
    "memory": "what a preset sets counts by itself",
    "shard": "how much each rank holds; numbers agree to rounding",
    "budget": "how far the run goes",
    "train.rounds": "how far the run goes",
    "policy": "what is done where a reward fails",
    "evaluate.samples": "both evaluations are drawn anew",
    "evaluate.batch_size": "how much is computed at once",
    "sample.batch_size": "how much is computed at once",
    "sample.overlap": "how much is computed at once",
    "train.micro_batch": "how much is computed at once",
    "train.checkpointing": "how much is kept in memory",
    "model.vae_slice": "how much is computed at once",
    "task.device": "where it is computed; numbers agree to rounding",
    "model.device": "where it is computed; numbers agree to rounding",
    "rewards.batch_size": "how much is computed at once",
    "rewards.start_seconds": "how long is waited",
    "save_every": "how often a fit is saved",
}
# Paths and names of files, in whose place their contents are compared.
BY_CONTENT = (
    "model.folder", "model.repository", "model.variant", "prompts", "rewards", "task.weights", "task.reward",
    "task.data", "evaluate.reference", "evaluate.inception",
)  # fmt: skip
_PACKAGES = ("pgraft_fast", "torch", "diffusers", "transformers", "peft")
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_CHUNK, _READERS, _SHOWN = 1 << 24, 8, 8


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that may change and those that are compared by content."""
    rest = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for name in (*MAY_CHANGE, *BY_CONTENT):
        table, _, key = name.partition(".")
        if not key:
            rest.pop(table, None)
        elif isinstance(rest.get(table), dict):
            rest[table].pop(key, None)
    return rest


def check_same(
    saved: Mapping[str, Any], current: Mapping[str, Any], what: str, defaults: Mapping[str, Any] | None = None
) -> None:
    """Raise InputError, which names what differs, unless both are the same.

    what: that must stay the same, and where, such as "the run in runs/a". defaults: of settings, at which
    those were that an earlier version did not know of.
    """
    saved = _filled(saved, defaults or {})
    old, new = _flat(saved), _flat(current)
    # Of tables that only one side has nothing can be said; in tables of both, what is left out is at its default.
    alone = saved.keys() ^ current.keys()
    keys = [key for key in sorted(old.keys() | new.keys()) if key.partition(".")[0] not in alone]
    differences = [
        f"{key}={_short(new, key)} differs from {_short(old, key)}" for key in keys
        if (key in old) != (key in new) or old.get(key) != new.get(key)
    ]  # fmt: skip
    if differences:
        more = f", and {len(differences) - _SHOWN} others" if len(differences) > _SHOWN else ""
        raise InputError(f"{', '.join(differences[:_SHOWN])}{more} of {what}; set it back or use another folder")
    if alone:
        raise InputError(
            f"{what} was begun by another version, which tells other things of it ({', '.join(sorted(alone))}): "
            "whether it is the same cannot be said; use another folder"
        )


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on; a change of them is told, not refused."""
    by_package = {}
    for name in _PACKAGES:
        try:
            by_package[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            by_package[name] = "none"
    return by_package


def changed_versions(saved: Mapping[str, str]) -> str:
    """One line, or ""."""
    changes = [f"{name} {saved[name]} -> {now}" for name, now in versions().items() if saved.get(name, now) != now]
    if not changes:
        return ""
    return f"begun with other versions ({', '.join(changes)}): what follows agrees with them to rounding"


def sha256_of(value: object) -> str:
    """Of anything that JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_texts(texts: Iterable[str], noun: str) -> str:
    """In words: "12 prompts, sha256 ..."."""
    rows = list(texts)
    return f"{len(rows)} {noun}, sha256 {sha256_of(rows)}"


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """Of names and contents. Raises InputError."""

    def digest_of(item: tuple[str, Path]) -> str:
        digest = hashlib.sha256()
        with item[1].open("rb") as stream:
            while part := stream.read(_CHUNK):
                digest.update(part)
        return digest.hexdigest()

    items = sorted(files.items())
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            digests = list(pool.map(digest_of, items))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return sha256_of([[name, digest] for (name, _), digest in zip(items, digests, strict=True)])


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and every value; called by all ranks where some are sharded."""

    def entry_of(item: tuple[str, Tensor]) -> list[object]:
        name, tensor = item
        flat = tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8)
        return [name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(flat.numpy().data).hexdigest()]

    items = sorted(tensors.items())
    if any(hasattr(tensor, "full_tensor") for _, tensor in items):
        from pgraft_fast.ranks.parts import whole_of

        # In one order on all ranks, and not more than one at once.
        return sha256_of([entry_of((name, whole_of(tensor))) for name, tensor in items])
    with ThreadPoolExecutor(min(_READERS, max(1, torch.get_num_threads()))) as pool:
        return sha256_of(list(pool.map(entry_of, items)))


def sha256_of_module(module: nn.Module) -> str:
    """Of the weights that a network has without LoRAs."""
    return sha256_of_tensors(base_weights(module))


def base_weights(module: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers under the names that they have without a LoRA."""
    own = getattr(module, "_orig_mod", module).state_dict()
    parts = {name: name.split(".") for name in own}
    return {
        ".".join(part for part in parts[name] if part != "base_layer"): weight
        for name, weight in own.items()
        if not any(part.startswith("lora_") for part in parts[name])
    }


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of all that is missing, within tables as well."""
    filled = dict(saved)
    for key, value in defaults.items():
        if key not in saved:
            filled[key] = value
        elif isinstance(value, Mapping) and isinstance(saved[key], Mapping):
            filled[key] = _filled(saved[key], value)
    return filled


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves by their dotted names; JSON has no tuples."""
    if isinstance(value, Mapping):
        items = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(child, dict) for child in value):
        items = [(str(number), child) for number, child in enumerate(value)]
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    leaves: dict[str, object] = {}
    for key, child in items:
        leaves |= _flat(child, f"{prefix}.{key}" if prefix else key)
    return leaves


def _short(values: Mapping[str, object], key: str) -> str:
    if key not in values:
        return "its default"
    text = _HASH.sub(r"\1", repr(values[key]))
    return text if len(text) <= 120 else f"{text[:100]}..."
