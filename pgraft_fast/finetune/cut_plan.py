"""Where to cut, measured before training: branches from the states that a rollout kept, and a short pilot at cut 0."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pgraft_fast.diagnostics.cut import Estimate, KeptGain, LearnedLevels, grown_gain, within_share
from pgraft_fast.diagnostics.quality import student
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.branches import Trials
from pgraft_fast.finetune.candidates import Candidates
from pgraft_fast.finetune.cost import evaluations_of
from pgraft_fast.finetune.cut_choice import FALLBACK, LEAST_ACCEPTED, CutOutlook, choose
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.pilot import Pilot, run_pilot
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.rounds import collect
from pgraft_fast.finetune.settings import PLAN_SHARE, FinetuneSettings
from pgraft_fast.finetune.work import Work
from pgraft_fast.sampling import calls_of, make_steps

CUTS = (0.1, 0.25, 0.5)
BRANCHES = 200
# Half of a 95 % interval in standard errors.
_NORMAL = 1.96
# Share of the plan's calls for the candidates of one without a run; of what is left then, the branches may take theirs
# and the pilot has the rest.
_FOR_SAMPLES = 0.5
_FOR_BRANCHES = 0.45


@dataclass(frozen=True)
class CutPlan:
    """cut: the one to take. reason: a sentence that says why. outlooks: of cut 0 and those that were tried. levels: of
    the pilot, or None. lowest: its t* as a share of the steps. base: mean reward of the candidates. within: share of
    the reward's variance within prompts. accepted: how many. pilot_steps: of its training. model_calls: spent, share:
    of a run's.
    """

    cut: float
    reason: str
    outlooks: tuple[CutOutlook, ...]
    levels: LearnedLevels | None
    lowest: float | None
    base: float
    within: float
    accepted: int
    pilot_steps: int
    model_calls: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _finite(asdict(self))


def plan_from(
    work: Work, candidates: Candidates, *, cuts: Sequence[float] = CUTS, share: float = PLAN_SHARE,
    branches: int = BRANCHES, spent: int = 0, run: FinetuneSettings | None = None,
    check: Callable[[], None] = lambda: None,
) -> CutPlan:  # fmt: skip
    """Choose a cut from the candidates of a round, which kept their states at 0 and at cuts.

    At each cut, accepted states get one fresh continuation each, at most `branches`: s(t), see `kept_gain`. The pilot
    is a short training at cut 0 with a tenth of the groups held out: its loss on these against the base's tells t*, see
    `learned_levels`; its samples at the candidates' own noise tell what a run will reach. The learner is left as it
    was. share: of a round's model calls that all this may cost. run: settings of the run that is planned, where the
    candidates are fewer than in a round of it; then the share is of the whole run, less what was `spent` already.

    See `cut_choice.choose` for which is taken. Where nothing can be told, the paper's 0.25, and the plan says so.
    """
    trials = Trials(work, candidates, Ledger(), check)
    run = work.settings if run is None else run
    of_run = run.calls(trials.evaluations(), calls_of(work.model)) * (1 if run is work.settings else run.train.rounds)
    allowed = share * of_run - spent
    accepted = int(candidates.acceptance.count)
    why_not = _why_not(work, candidates, accepted)
    # On a short grid a cut may have no step of its own below it.
    cuts = [cut for cut in cuts if candidates.rollout.t_cut[cut] > candidates.rollout.t_cut[0.0]]
    kept: dict[float, KeptGain | None] = {}
    pilot = None
    if not why_not:
        many = int(_FOR_BRANCHES * allowed / (max(sum(cuts), 1e-9) * trials.trajectory_calls()))
        kept = trials.kept_gains(tuple(cuts), max(2, min(branches, many)))
        pilot = run_pilot(trials, allowed - trials.ledger.model_calls, run)
    calls = trials.ledger.model_calls
    work.ledger.add_calls(calls)
    outlooks = tuple(_outlook(work, candidates, cut, kept, pilot) for cut in (0.0, *cuts))
    lowest = None if pilot is None else share_of(work.schedule, pilot.levels.lowest)
    cut, reason = choose(outlooks, lowest, accepted * run.sample.prompts // work.settings.sample.prompts)
    if why_not:
        cut, reason = FALLBACK, f"The plan cannot tell: {why_not}; the cut is the paper's, {FALLBACK}."
    return CutPlan(
        cut=cut, reason=reason, outlooks=outlooks, levels=None if pilot is None else pilot.levels, lowest=lowest,
        base=float(candidates.rewards.nanmean()), within=within_share(candidates.rewards), accepted=accepted,
        pilot_steps=0 if pilot is None else pilot.steps, model_calls=spent + calls,
        share=(spent + calls) / of_run,
    )  # fmt: skip


def plan_cut(
    model: nn.Module, schedule: Schedule, reward: Callable[..., object], settings: FinetuneSettings, *,
    shape: Sequence[int], parameterization: str = "epsilon", prompts: Prompts | None = None,
    learner: Learner | None = None, cuts: Sequence[float] = CUTS, share: float = PLAN_SHARE,
    check: Callable[[], None] = lambda: None, log: Callable[[str], None] = lambda line: None,
) -> CutPlan:  # fmt: skip
    """Choose the cut of a run before it is made, for at most a `share` of its model calls.

        plan = pgraft_fast.plan_cut(model, schedule, reward, settings, shape=(1, 8, 8), parameterization="v")
        print(plan.reason)
        settings = settings.with_cut(plan.cut)

    As many prompts as half of these calls allow are sampled, with the states at `cuts` (rising shares in (0, 1)) kept;
    then see `plan_from`. With train.cut="auto" a run does it on its own first round, which costs less. The other
    arguments are those of `Trainer`. Raises InputError where the share has no room for 2 prompts, RewardError.
    """
    if not cuts or list(cuts) != sorted(set(cuts)) or not 0.0 < min(cuts) <= max(cuts) < 1.0:
        raise InputError(f"cuts={tuple(cuts)}: rising shares of the steps in (0, 1) are needed")
    device = next(model.parameters()).device
    evaluations, each = evaluations_of(schedule, settings, parameterization), calls_of(model)
    of_run = settings.train.rounds * settings.calls(evaluations, each)
    prompt_count = int(_FOR_SAMPLES * share * of_run / (settings.sample.candidates * evaluations * each))
    if prompt_count < 2:
        raise InputError(
            f"plan: {share:.0%} of a run of {of_run:,} model calls have no room for two prompts; plan a larger run"
        )
    sample = settings.sample.model_copy(update={"prompts": min(prompt_count, settings.sample.prompts)})
    few, ledger, execution = settings.model_copy(update={"sample": sample}), Ledger(), Execution(settings.mode, device)
    training = settings.train.micro_batch or settings.train.batch_size
    work = Work(
        model=model.eval(), schedule=schedule, reward=reward, settings=few, shape=tuple(shape),
        prompts=Prompts([""]) if prompts is None else prompts, parameterization=parameterization,
        learner=Learner(model, settings.train) if learner is None else learner, execution=execution, ledger=ledger,
        device=device, sampling=BatchSize(sample.batch_size, "sampling"), training=BatchSize(training, "training"),
        log=log,
    )  # fmt: skip
    candidates = collect(
        execution.of(model), schedule, reward, work.prompts, few, shape=shape, parameterization=parameterization,
        cuts=(0.0, *cuts), memory=work.sampling, ledger=ledger, check=check, device=device, graphs=execution.graphs,
    )  # fmt: skip
    return plan_from(work, candidates, cuts=cuts, share=share, spent=ledger.model_calls, run=settings, check=check)


def share_of(schedule: Schedule, t: float) -> float:
    """The share of the reference steps that lie below a time."""
    shares = np.linspace(0.0, 1.0, 2001)
    return float(np.interp(t, schedule.t_of_share(torch.as_tensor(shares)).numpy(), shares))


def _outlook(
    work: Work, candidates: Candidates, cut: float, kept: dict[float, KeptGain | None], pilot: Pilot | None
) -> CutOutlook:
    base, t = float(candidates.rewards.nanmean()), candidates.rollout.t_cut[cut]
    outlook = CutOutlook(cut, t, float(work.schedule.logsnr(t)), kept.get(cut))
    share = Estimate(1.0) if cut == 0.0 else None
    if outlook.kept is not None:
        share = Estimate(outlook.kept.share, _normal(outlook.kept.error, outlook.kept))
    # The accepted rows are the same at every cut.
    whole = next((gain for gain in kept.values() if gain is not None), None)
    if share is None or whole is None:
        return outlook
    training = work.settings.train
    # What training goes towards: the accepted law, or beyond it.
    strength = max(1.0, training.strength) if training.objective == "contrast" else 1.0
    limit = Estimate(strength * whole.gain, strength * _normal(whole.gain_error, whole))
    outlook = replace(outlook, ceiling=base + share.value * whole.gain)
    if pilot is None:
        return outlook
    gain = grown_gain(Estimate(pilot.gain, pilot.error), limit, share, pilot.longer)
    # A mean lies among its rewards.
    finite = candidates.rewards[candidates.rewards.isfinite()]
    least, most = float(finite.min()), float(finite.max())
    predicted, low, high = (min(max(base + change, least), most) for change in (gain.mean, gain.low, gain.high))
    return replace(outlook, predicted=predicted, low=low, high=high)


def _normal(error: float, kept: KeptGain) -> float:
    """The error of a normal law whose 95 % interval is that of Student's, of few groups."""
    return error * student(kept.groups - 1) / _NORMAL


def _why_not(work: Work, candidates: Candidates, accepted: int) -> str:
    """Why nothing can be told; empty where something can."""
    sample = work.settings.sample
    grid = work.schedule.grid(sample.steps, work.parameterization)
    if not any(step.d for step in make_steps(work.schedule, grid, sample.solver, work.parameterization, sample.eta)):
        return f"the solver ({sample.solver}) draws no noise, so that s is 1 at every cut"
    finite = candidates.rewards[candidates.rewards.isfinite()]
    if finite.numel() == 0 or bool(finite.min() == finite.max()):
        return "the rewards are all the same"
    if accepted < LEAST_ACCEPTED:
        return f"only {accepted} candidates were accepted, {LEAST_ACCEPTED} are needed"
    if accepted == int(candidates.rewards.isfinite().sum()):
        return "every candidate was accepted"
    return ""


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return _known(value) if isinstance(value, float) else value
