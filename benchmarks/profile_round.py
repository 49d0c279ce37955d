"""Where the time of a round goes, by operation: python -m pgraft_fast_benchmarks.profile_round.

A round of P-GRAFT on the shipped digits, and on a GPU one with a LoRA on a UNet of Stable Diffusion 2.1's size. Each is
run once before; the times are of the round under torch's profiler, which makes the host slower.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast_benchmarks import round_gpu
from pgraft_fast_benchmarks.bench_round import settings_of
from pgraft_fast_benchmarks.harness import Settings
from pgraft_fast_benchmarks.our_round import OurRound

_SHOWN = 15


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="pgraft_fast_benchmarks.profile_round", description=__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="of the round on digits")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, run in rounds(device, args.prompts).items():
        print(f"== {name}")
        print(profiled(run, device), flush=True)
    return 0


def rounds(device: torch.device, prompts: int) -> dict[str, Callable[[], object]]:
    """By name."""
    task = digits_task(DigitsSettings())
    task.model.to(device)
    config = settings_of("vp", prompts)
    modes = ("eager", "graph") if device.type == "cuda" else ("eager",)
    named = {f"digits, {mode}": OurRound(task, config, device, mode, task.reward("symmetry")).run for mode in modes}
    if device.type != "cuda":
        return dict(named)
    large = {provider.name: provider.run for provider in round_gpu.providers(4, Settings(device, size="quick"))}
    return {**named, **{f"a UNet of SD 2.1's size, {name}": large[name] for name in ("plain", "ours", "ours graph")}}


def profiled(run: Callable[[], object], device: torch.device) -> str:
    """A table of the operations that take the most of the device."""
    from torch.profiler import ProfilerActivity, profile

    run()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    averages: Any = seen.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(averages, key=lambda event: -getattr(event, key))
    device_ms, host_ms = (1e-3 * sum(getattr(event, f"self_{where}_time_total") for event in rows)
                          for where in ("device", "cpu"))  # fmt: skip
    lines = [f"{'device ms':>10} {'host ms':>10} {'calls':>7}  operation"]
    lines += [
        f"{1e-3 * event.self_device_time_total:>10.2f} {1e-3 * event.self_cpu_time_total:>10.2f} {event.count:>7}  "
        f"{event.key[:70]}"
        for event in rows[:_SHOWN]
    ]
    return "\n".join([*lines, f"{device_ms:>10.2f} {host_ms:>10.2f} {'':>7}  all"])


if __name__ == "__main__":
    sys.exit(main())
