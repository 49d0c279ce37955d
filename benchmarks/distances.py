"""Distance against FLOPs of the digits flow and its correctors: `pgraft-fast correct` with several seeds.

Seed 0 is the shipped base; with the others a base is trained anew, and all that follows, so the seeds are whole
repetitions.
"""

import tempfile
from pathlib import Path
from typing import Any

import pgraft_fast
from pgraft_fast.commands.correct import correct
from pgraft_fast.commands.correct_config import read_correct_config
from pgraft_fast_benchmarks.harness import Row, Settings
from pgraft_fast_benchmarks.silent import Silent

_CONFIG = Path(pgraft_fast.__file__).parent / "configs" / "correct_digits.toml"
_SMOKE: dict[str, Any] = {
    "invert": {"samples": 64, "shard": 32},
    "corrector": {"interpolants": ["trigonometric", "linear", "affine"], "steps": 20, "integration_steps": 5},
    "evaluate": {"samples": 64, "base_steps": [5, 20], "splits": [[20, 5]]},
}


def distances(settings: Settings) -> list[Row]:
    """One row a seed, a sampler and its steps. FLOPs are counted."""
    rows = []
    for seed in range(settings.by_size(3, 1, 1)):
        with tempfile.TemporaryDirectory() as folder:
            more: dict[str, Any] = {"run": folder, "seed": seed, "data": {"kind": "digits", "shipped_base": seed == 0}}
            if settings.size == "smoke":
                more |= _SMOKE
            summary = correct(read_correct_config(_CONFIG, more), Silent())
        inversion = summary["inversion"]
        common = {
            "op": "distance", "case": "digits flow", "gate": "ok", "seed": seed,
            "batch": summary["config"]["evaluate"]["samples"],
            **{f"{name}_floor": summary["floor"][name] for name in ("fd", "swd", "nearest")},
            "inverted": inversion["samples"], "inversion_failed": inversion["failed"],
            **{name: inversion[name] for name in ("calls_per_sample", "contraction", "worst_round_trip")},
            "seconds": round(sum(summary["seconds"].values()), 3),
        }  # fmt: skip
        for row in summary["rows"]:
            rows.append(
                {
                    **common, "provider": row["name"], "steps": row["base_steps"],
                    "corrector_steps": row["corrector_steps"], "flops_per_image": row["flops_per_image"],
                    "fd_data": row["fd"], "swd": row["swd"], "nearest": row["nearest"],
                }
            )  # fmt: skip
    return rows
