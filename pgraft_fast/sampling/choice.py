"""Choosing the fastest of several ways to do the same by a timed trial, once for each device and model."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pgraft_fast.files import cache_folder, json_of
from pgraft_fast.sampling.rounding import off
from pgraft_fast.sampling.timing import median_time

_LOG = logging.getLogger(__name__)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def model_name(model: Any, device: torch.device) -> str:
    """Device, class, number of weights and dtype: what decides which way to run a model is the fastest."""
    weights = list(model.parameters())
    size = sum(weight.numel() for weight in weights)
    return f"{device_name(device)}: {type(model).__name__} {size} {weights[0].dtype}"


def choose(
    what: str,
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    store: Path | None = None,
    *,
    allowed: float | None = None,
) -> str:
    """The name of the fastest way; ways that raise, for want of memory or support, are left out.

    allowed: where ways return a tensor or a list of them, how far off (see `rounding.off`) from the first way's these
    may be; a way that gives others is left out.

    what: names the question, with device, model and shapes; the answer is kept under it in `store` (default
    choices.json in the cache folder) and the trial is not repeated. Each way runs once to warm up, then three times;
    the medians are logged.
    """
    if len(ways) == 1:
        return next(iter(ways))
    store = cache_folder() / "choices.json" if store is None else store
    known = _read(store).get(what)
    if isinstance(known, str) and known in ways:
        return known
    seconds = {}
    last: Exception | None = None
    expected: object = None
    for name, run in ways.items():
        try:
            seconds[name], answers = median_time(run, device)
            if allowed is not None:
                expected = answers if expected is None else expected
                _check_alike(answers, expected, allowed)
        except Exception as error:
            last = error
            seconds.pop(name, None)
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            _LOG.warning("%s: %s is left out: %s", what, name, first_line)
    if not seconds:
        raise RuntimeError(f"{what}: none of {', '.join(ways)} runs") from last
    best = min(seconds, key=lambda name: seconds[name])
    timings = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    _LOG.info("%s: %s is taken (%s)", what, best, timings)
    _write(store, what, best)
    return best


def _check_alike(answers: Any, expected: Any, allowed: float) -> None:
    """Raise RuntimeError for another answer than the first way's."""
    tensors = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (answers, expected))
    far = max(off(*pair) for pair in zip(*tensors, strict=True))
    if far > allowed:
        raise RuntimeError(f"its answer is off by {far:.2g}")


def _read(store: Path) -> dict[str, Any]:
    try:
        choices = json_of(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def _write(store: Path, what: str, best: str) -> None:
    """Add one answer. A folder that cannot be written costs a trial next time, nothing else."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(store.with_suffix(".lock")):
            text = json.dumps(_read(store) | {what: best}, indent=1, sort_keys=True)
            with tempfile.TemporaryDirectory(dir=store.parent) as folder:
                whole = Path(folder) / store.name
                whole.write_text(text, encoding="utf-8")
                os.replace(whole, store)
    except OSError as error:
        _LOG.info("%s cannot be written (%s): the trial will be repeated", store, error)
