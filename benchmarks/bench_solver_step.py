"""solver_step with guidance against the same work by diffusers, by torch.compile and by plain torch."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.ops import solver_step
from pgraft_fast_benchmarks import gates
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.peers import GUIDANCE, PEERS, Peer
from pgraft_fast_benchmarks.providers import compiled, copy, draw, eager, missing, ours, plain

_SEED = 3


def cases(settings: Settings) -> Iterator[Case]:
    """All noise laws at one size, the smallest batch, narrow dtypes; on a GPU also what no cache holds."""
    many, single = ((2, 4, 8, 8), (1, 4, 8, 8)) if settings.small else ((16, 4, 64, 64), (1, 4, 64, 64))
    for name in PEERS:
        yield _case(name, many)
    yield _case("ddim", single)
    for dtype in (torch.bfloat16, torch.float16):
        yield _case("ddim", many, dtype)
    if settings.device.type == "cuda" and not settings.small:
        for name in ("ddim", "ddpm"):
            yield _case(name, (256, 4, 128, 128))


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Case:
    peer = PEERS[name]
    # x, out and out_null read, x_s written; with a history also x_0 read and written.
    tensors = 6 if peer.stateful else 4
    return Case(
        "solver_step", name, shape, str(dtype).removeprefix("torch."),
        tensors * torch.Size(shape).numel() * dtype.itemsize, partial(_providers, peer, shape, dtype),
    )  # fmt: skip


def _providers(peer: Peer, shape: tuple[int, ...], dtype: torch.dtype, settings: Settings) -> Sequence[Provider]:
    x, null, change = draw(shape, settings, 3)
    inputs = {"x": x.to(dtype), "text": (null + 0.1 * change).to(dtype), "null": null.to(dtype)}
    inputs["table"] = peer.table(settings.device)
    counters = [torch.tensor(step, device=settings.device) for step in peer.timed]
    steps = len(counters)

    def work(x: Tensor, text: Tensor, null: Tensor, table: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        x_0 = None
        for step in counters:
            done = solver_step(
                x, text, table, step, out_null=null, guidance=GUIDANCE, previous=x_0, noise=noise, seed=_SEED,
                return_x_0=peer.stateful,
            )  # fmt: skip
            x, x_0 = done.x_s, done.x_0
        return [x]

    providers = [ours(work, inputs, settings, steps)]
    if dtype is torch.float32:
        providers.append(_diffusers(peer, work, inputs, steps))
        if not settings.short:
            providers.append(_compile(peer, work, inputs, counters))
    return [*providers, eager(work, inputs, steps), copy(inputs["x"])]


def _diffusers(peer: Peer, work: gates.Work, inputs: gates.Inputs, steps: int) -> Provider:
    generator = torch.Generator(inputs["x"].device)
    try:
        run = peer.run(inputs["x"], inputs["text"], inputs["null"], generator)
    except ImportError as error:
        return missing("diffusers", error)

    def gate() -> str | None:
        noise = _seeded_noise(inputs["x"], generator) if peer.noisy else None
        generator.manual_seed(_SEED)
        return gates.near(run(), gates.reference(work, inputs, double=True, noise=noise))

    return Provider("diffusers", run, gate, steps=steps, reset=run.reset if peer.stateful else None)


def _seeded_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """What a scheduler draws first from the generator that starts at the seed."""
    generator.manual_seed(_SEED)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _compile(peer: Peer, work: gates.Work, inputs: gates.Inputs, counters: Sequence[Tensor]) -> Provider:
    step_of = compiled(partial(_expression, noisy=peer.noisy, multistep=peer.stateful))
    start = torch.zeros_like(inputs["x"])

    def run() -> list[Tensor]:
        x, x_0 = inputs["x"], start
        for step in counters:
            x, x_0 = step_of(x, inputs["text"], inputs["null"], x_0, inputs["table"], step)
        return [x]

    def noise_gate() -> str | None:
        """The compiler draws its own noise: what is left over the mean, by its deviation, must be normal."""
        mean = gates.reference(work, inputs, double=True, noise=torch.zeros_like(start))[0]
        return gates.standard_normal(((run()[0] - mean) / inputs["table"][counters[0], 5]).float())

    if peer.noisy:
        return Provider("compile", run, noise_gate, optional=True)
    return plain("compile", run, work, inputs, steps=len(counters), optional=True)


def _expression(
    x: Tensor, text: Tensor, null: Tensor, previous: Tensor, table: Tensor, step: Tensor, noisy: bool, multistep: bool
) -> tuple[Tensor, Tensor | None]:
    """As a user would write it, without what the case does not need."""
    p, q, a, b, c, d, _, _ = table.index_select(0, step.view(1)).squeeze(0).unbind()
    x_0 = p * x + q * (null + GUIDANCE * (text - null))
    x_s = a * x + b * x_0
    if multistep:
        return x_s + c * previous, x_0
    return (x_s + d * torch.randn_like(x) if noisy else x_s), None
