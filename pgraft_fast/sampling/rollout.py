"""Rollouts: batches of whole or partial trajectories, with the states at the cuts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling.answers import first_states
from pgraft_fast.sampling.graphs import GraphCache, weights_key
from pgraft_fast.sampling.guidance import Model, calls_of
from pgraft_fast.sampling.loop import Loop, Seen, StepInputs
from pgraft_fast.sampling.plan import Plan, make_plan
from pgraft_fast.sampling.solvers import Step, make_steps, make_table, model_evaluations
from pgraft_fast.threads import team_of


@dataclass
class Rollout:
    """What a rollout leaves behind, n samples in the order of `sample_id`.

    x_0: (n, *shape) final samples. x_cut: {cut: (n, *shape)} states at the first grid time at or below each cut.
    t_cut: {cut: time of that state}. sample_id: (n,) int64. seed: the run seed. final, t_final: states and time
    where the trajectories ended. model_calls: network evaluations times samples.
    """

    final: Tensor
    t_final: float
    x_cut: dict[float, Tensor]
    t_cut: dict[float, float]
    sample_id: Tensor
    seed: int
    model_calls: int

    @property
    def x_0(self) -> Tensor:
        """The final samples. Raises InputError where the trajectories stopped at a cut."""
        if self.t_final > 0.0:
            raise InputError(f"these trajectories stopped at t={self.t_final:g}: there is no x_0, see x_cut")
        return self.final


def rollout(
    model: Model,
    schedule: Schedule,
    *,
    shape: Sequence[int],
    n: int | None = None,
    steps: int = 50,
    solver: str = "ddpm",
    parameterization: str = "epsilon",
    cuts: Sequence[float] = (),
    seed: int = 0,
    sample_ids: Tensor | None = None,
    tuned: Model | None = None,
    cut: float | None = None,
    cut_logsnr: float | None = None,
    condition: Tensor | None = None,
    eta: float | None = None,
    clip_x_0: float | None = None,
    grid: Tensor | None = None,
    x_start: Tensor | None = None,
    start: float | None = None,
    stop: float | None = None,
    batch_size: int = 256,
    graphs: GraphCache | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] | None = None,
) -> Rollout:
    """Sample trajectories from noise (t = 1) to data (t = 0).

    model(x, t) or model(x, t, condition): x (B, *shape), t (B,) in [0, 1], returns (B, *shape) in `parameterization`,
    or `Guided`.
    n: number of samples, with ids 0 ... n - 1; or `sample_ids` (n,) int64. A sample's noise depends on
    (seed, its id, step) alone. `condition`: (n, ...), its rows go to the model with their samples.
    steps: equal shares of the schedule, or `grid` (S + 1,) falling times. `eta`: see `make_steps`.
    cuts: shares of the steps in [0, 1) at which states are kept.
    tuned + cut (share of the reference steps), or + cut_logsnr: `tuned` is used while the state is noisier
    than the cut, `model` from there. stop: end at this cut. x_start + start: go on from states at that cut
    (a multi-step solver starts anew there).
    graphs: on CUDA, each side of the handover runs as one captured graph, kept here for the next rollout; the models
    must be modules then; their weights may change in place, and what else is switched in them stands in a `graph_key`.
    clip_x_0: limit of |predicted x_0|. on_batch(model_calls): called after each batch, may raise.
    On a CPU a batch too small to share runs in one thread. One of a module with `thread_safe = True` (its calls write
    nothing that another one reads) is cut into parts with a thread each, where that is worth it; others share each
    operation. See `threads`.

    Raises InputError. Nothing in the loop reads a tensor back to the host.
    """
    ids = _sample_ids(n, sample_ids, x_start, device)
    condition = rows_of(condition, ids)
    if (tuned is None) != (cut is None and cut_logsnr is None):
        raise InputError("tuned and cut (or cut_logsnr) go together")
    if (x_start is None) != (start is None):
        raise InputError("x_start and start go together")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: it must be at least 1")
    grid = schedule.grid(steps, parameterization) if grid is None else grid.to("cpu", torch.float64)
    table = make_steps(schedule, grid, solver, parameterization, eta)
    plan = make_plan(schedule, grid, cuts=cuts, cut=cut, cut_logsnr=cut_logsnr, start=start, stop=stop)
    above = model if tuned is None else tuned
    team = team_of(above, min(batch_size, ids.numel()), tuple(shape), ids.device, model)
    run = _Trajectories(
        above=above,
        below=model,
        loop=Loop(make_table(table), seed, dtype, clip_x_0, check=team.check),
        plan=plan,
        shape=tuple(shape),
        initial_scale=float(schedule.sigma(table[0].t)),
        graphs=graphs,
    )
    calls = run.calls(table)

    def part(rows: slice) -> tuple[Tensor, dict[float, Tensor]]:
        return run.batch(ids[rows], _rows(condition, rows), _rows(x_start, rows))

    final, kept = [], []
    for count, done in team.batches(ids.numel(), batch_size, part):
        for x, states in done:
            final.append(x)
            kept.append(states)
        if on_batch is not None:
            on_batch(calls * count)
    return Rollout(
        final=torch.cat(final),
        t_final=float(grid[plan.last]),
        x_cut={share: torch.cat([states[share] for states in kept]) for share in kept[0]},
        t_cut={share: float(grid[index]) for index, shares in plan.keep.items() for share in shares},
        sample_id=ids,
        seed=seed,
        model_calls=calls * ids.numel(),
    )


@dataclass(frozen=True)
class _Trajectories:
    """Batches of trajectories. above: the model while the state is noisier than the cut; below: from there."""

    above: Model
    below: Model
    loop: Loop
    plan: Plan
    shape: tuple[int, ...]
    initial_scale: float
    graphs: GraphCache | None = None

    @torch.no_grad()
    def batch(
        self, sample_id: Tensor, condition: Tensor | None, x_start: Tensor | None
    ) -> tuple[Tensor, dict[float, Tensor]]:
        """Final states and the kept ones of one batch."""
        plan, dtype = self.plan, self.loop.dtype
        inputs = self.loop.inputs(sample_id, condition)
        if x_start is None:
            x = first_states(self.above, self.loop.seed, sample_id, condition, self.shape, self.initial_scale, dtype)
        else:
            x = x_start.to(dtype)
        kept: dict[float, Tensor] = dict.fromkeys(plan.keep.get(plan.first, ()), x)
        x_0: Tensor | None = None
        middle = min(max(plan.handover, plan.first), plan.last)
        for net, low, high in ((self.above, plan.first, middle), (self.below, middle, plan.last)):
            if low < high:
                x, x_0, states = self._side(net, low, high, x, x_0, inputs)
                for index, state in {**states, high: x}.items():
                    kept.update(dict.fromkeys(plan.keep.get(index, ()), state))
        return x, kept

    def _side(
        self, net: Model, low: int, high: int, x: Tensor, x_0: Tensor | None, inputs: StepInputs
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        """The steps low ... high - 1 with one model: state, last x_0 and the states to keep between them."""
        places = [index for index in range(low + 1, high) if index in self.plan.keep]
        if self.graphs is None or not self.graphs.captures(x.device) or not getattr(net, "can_be_captured", True):
            return self._steps(net, low, high, x, x_0, inputs)
        if not isinstance(net, torch.nn.Module):
            raise InputError(f"graphs= needs models that are torch modules, got {type(net).__name__}")
        optional = [x_0, inputs.condition]

        def function(tensors: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
            rest = iter(tensors[2:])
            last, condition = (None if value is None else next(rest) for value in optional)
            copied = inputs._replace(sample_id=tensors[1], condition=condition)
            end, last, states = self._steps(net, low, high, tensors[0], last, copied)
            return [end, *([] if last is None else [last]), *(states[index] for index in places)]

        rows = self.loop.rows
        key = (
            "rollout", weights_key(net), low, high, tuple(places), self.loop.seed, self.loop.clip, rows.multistep,
            rows.coefficients.numpy().tobytes(), rows.time.numpy().tobytes(),
            tuple(value is None for value in optional),
        )  # fmt: skip
        tensors = [x, inputs.sample_id, *(value for value in optional if value is not None)]
        outputs = self.graphs.run(key, function, tensors, keep=lambda: (inputs, net))
        if outputs is None:
            return self._steps(net, low, high, x, x_0, inputs)
        states = dict(zip(places, outputs[len(outputs) - len(places) :], strict=True))
        return outputs[0], outputs[1] if len(outputs) - len(places) > 1 else None, states

    def _steps(
        self, net: Model, low: int, high: int, x: Tensor, x_0: Tensor | None, inputs: StepInputs
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        states: dict[int, Tensor] = {}

        def keep(index: int, seen: Seen) -> Tensor:
            if index + 1 in self.plan.keep:
                states[index + 1] = seen.done.x_s
            return seen.done.x_s

        return *self.loop.run(net, low, high, x, x_0, inputs, keep), states

    def calls(self, table: list[Step]) -> int:
        """Forward passes of one sample."""
        plan = self.plan
        middle = min(max(plan.handover, plan.first), plan.last)
        above, below = model_evaluations(table[plan.first : middle]), model_evaluations(table[middle : plan.last])
        return above * calls_of(self.above) + below * calls_of(self.below)


def rows_of(condition: Tensor | None, ids: Tensor) -> Tensor | None:
    """The rows of the samples with these ids (n,), on their device. Raises InputError for another number of rows."""
    if condition is None:
        return None
    if condition.shape[0] != ids.numel():
        raise InputError(f"condition has {condition.shape[0]} rows for {ids.numel()} samples")
    return condition.to(ids.device)


def _rows(values: Tensor | None, rows: slice) -> Tensor | None:
    return None if values is None else values[rows]


def _sample_ids(
    n: int | None, sample_ids: Tensor | None, x_start: Tensor | None, device: torch.device | str | None
) -> Tensor:
    if sample_ids is None:
        if n is None or n < 1:
            raise InputError(f"n={n}: give the number of samples, at least 1, or sample_ids")
        sample_ids = torch.arange(n)
    sample_ids = torch.as_tensor(sample_ids)
    if sample_ids.ndim != 1 or sample_ids.numel() == 0 or sample_ids.is_floating_point():
        raise InputError("sample_ids must be a 1-D tensor of integers with at least one entry")
    if n is not None and n != sample_ids.numel():
        raise InputError(f"n={n} but sample_ids has {sample_ids.numel()} entries")
    if x_start is not None and x_start.shape[0] != sample_ids.numel():
        raise InputError(f"x_start has {x_start.shape[0]} rows for {sample_ids.numel()} samples")
    if device is None and x_start is not None:
        device = x_start.device
    return sample_ids.to(device=device, dtype=torch.int64)
