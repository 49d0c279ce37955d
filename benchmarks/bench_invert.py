"""Inversion of the shipped flow against plain fixed-point iteration of the whole batch, at the same tolerance.

On CUDA ours is one graph, and "no graph" is ours without.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.inverse_noise import generate, invert
from pgraft_fast.sampling import GraphCache
from pgraft_fast.sampling.timing import timed
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow
from pgraft_fast_benchmarks.goal_kinds import Goal, NotSlower, Times
from pgraft_fast_benchmarks.harness import Case, Each, Provider, Row, Settings, run_cases

SHOWN = ("plain", "no graph")
DETAILS = {
    "calls_per_sample": "calls", "inverted": "inverted", "round_trip": "worst round trip",
    "samples_per_hour": "samples/h",
}  # fmt: skip
DETAILS_NOTE = "calls: of the network, for a sample; inverted: share of the samples; round trip: relative."

_STEPS, _TOLERANCE, _SAMPLES = 20, 1e-6, 2048
_MOST = 200
# At most three quarters of the plain calls.
GOALS: tuple[Goal, ...] = (
    Times("digits euler", _SAMPLES, _STEPS, peers=("plain",), column="calls_per_sample", factor=4.0 / 3.0),
    NotSlower("digits euler", _SAMPLES, _STEPS, peers=("plain",)),
)


def cases(settings: Settings) -> Iterator[Case]:
    """The flow of dequantised digits, by Euler steps."""
    n = 32 if settings.small else _SAMPLES
    yield Case(
        "invert", "digits euler", (n, 1, 8, 8), "float32", None, partial(_providers, n),
        columns={"batch": n, "steps": _STEPS}, budget=settings.by_size(15.0, 3.0, 0.3),
    )  # fmt: skip


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the label and the rows of a case when it is done."""
    return run_cases(cases(settings), settings, each)


def _providers(n: int, settings: Settings) -> Sequence[Provider]:
    model, x = load_mlp_flow().to(settings.device), dequantised("train", n, 5).to(settings.device)
    columns: dict[str, Row] = {}
    graph_cache = GraphCache() if settings.device.type == "cuda" else None

    def ours(name: str, graphs: GraphCache | None) -> Tensor:
        inversion = invert(model, x, _STEPS, tolerance=_TOLERANCE, batch_size=n, graphs=graphs)
        share = float(inversion.converged.float().mean())
        columns[name] = {
            "calls_per_sample": round(inversion.calls / n, 2), "inverted": share,
            "round_trip": float(f"{float(inversion.round_trip.max()):.3g}"),
        }  # fmt: skip
        return inversion.noise

    def plain() -> Tensor:
        noise, calls = plain_inverse(model, x, _STEPS, _TOLERANCE)
        columns["plain"] = {"calls_per_sample": calls, "inverted": 1.0}
        return noise

    expected = cache(plain)

    def gate(run: Callable[[], Tensor]) -> str | None:
        noise = run()
        off = float((noise - expected()).norm() / expected().norm())
        back = float((generate(model, noise, _STEPS) - x).norm() / x.norm())
        if off <= 1e-4 and back <= 1e-5:
            return None
        return f"the noise is {off:.1e} off the plain one, the samples come back {back:.1e} off"

    ways: dict[str, Callable[[], Tensor]] = {"ours": partial(ours, "ours", graph_cache), "plain": plain}
    if graph_cache is not None:
        ways["no graph"] = partial(ours, "no graph", None)
    return [
        Provider(
            name, partial(timed, run, settings.device), partial(gate, run), own_clock=True,
            columns=lambda name=name: columns[name], per_hour={"samples_per_hour": n},
        )
        for name, run in ways.items()
    ]  # fmt: skip


def plain_inverse(model: nn.Module, x: Tensor, steps: int, tolerance: float) -> tuple[Tensor, float]:
    """The inverse of Euler steps as the method is told: y <- x + h v(y) for all samples until the last one is done.

    Returns the noise and the network calls of a sample.
    """
    times, calls = torch.linspace(1.0, 0.0, steps + 1).tolist(), 0
    for t, s in reversed(list(pairwise(times))):
        y = x
        for _ in range(_MOST):
            following = x + (t - s) * model(y, torch.full((x.shape[0],), t, device=x.device))
            change = (following - y).flatten(1).norm(dim=1) / following.flatten(1).norm(dim=1)
            y, calls = following, calls + 1
            if float(change.max()) <= tolerance:
                break
        x = y
    return x, calls
