"""What a round does, by method: P-GRAFT and GRAFT train on states above the cut, the baselines on all noise levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.cost import evaluations_of
from pgraft_fast.finetune.cut_plan import CUTS, plan_from
from pgraft_fast.finetune.ddpo import PromptStatistics, advantages, train_ddpo
from pgraft_fast.finetune.divergence import divergence
from pgraft_fast.finetune.drawing import Drawn, draw_and_score
from pgraft_fast.finetune.nft import nft_advantages, train_nft
from pgraft_fast.finetune.prompts import PromptBatch
from pgraft_fast.finetune.rounds import collect
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.finetune.training import TrainReport, train
from pgraft_fast.finetune.work import Work
from pgraft_fast.sampling import calls_of, rollout
from pgraft_fast.sampling.recorded import Recorded, record


@dataclass(frozen=True)
class Round:
    """rewards: (P, N). accepted: (P, N) bool, what was learned from. entry: for the history. copies: (P, N) int64 of
    the rule that looks at them, see `copies_of`.
    """

    rewards: Tensor
    accepted: Tensor
    report: TrainReport
    entry: dict[str, Any]
    copies: Tensor | None = None


class Method(Protocol):
    """One way of learning from samples and their rewards."""

    @property
    def tuned(self) -> nn.Module:
        """The result."""
        ...

    @property
    def settings(self) -> FinetuneSettings:
        """Those of the run, with the cut where it was left open and has been chosen."""
        ...

    def calls(self) -> int:
        """Model calls of a round, a backward pass counted as two; at most."""
        ...

    def round(self, number: int, check: Callable[[], None], check_sampling: Callable[[], None],
              enough: Callable[[], bool]) -> Round:  # fmt: skip
        """Sample, score, choose and train. check() between batches and steps, may raise; enough(): train no further."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON that `load` needs to go on, beside the learner's weights."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        ...


def method_of(work: Work) -> Method:
    """The method that the settings name. Raises InputError where prompts are to be left out and cannot be."""
    share = work.settings.train.null_prompt
    if share > 0 and (work.prompts.condition is None or work.prompts.null is None):
        raise InputError(f"train.null_prompt={share}: this model is trained without prompts; set it to 0")
    makers: dict[str, Callable[[Work], Method]] = {"ddpo": Ddpo, "nft": Nft}
    return makers.get(work.settings.method, PGraft)(work)


class PGraft:
    """Accept candidates by their rewards, train on their states at the cut; GRAFT is the cut at 0.

    With train.cut="auto" the first round chooses the cut, from the states of its own candidates.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._plan: dict[str, Any] | None = None
        # What `select.copies` of the whole run must not accept again.
        self._taken: Tensor | None = None

    @property
    def settings(self) -> FinetuneSettings:
        return self._work.settings if self._plan is None else self._work.settings.with_cut(self._plan["cut"])

    @property
    def tuned(self) -> nn.Module:
        return self._work.learner.ema

    def calls(self) -> int:
        work = self._work
        evaluations = evaluations_of(work.schedule, work.settings, work.parameterization)
        plan = work.settings.run_calls(evaluations, calls_of(work.model)) - work.settings.train.rounds * work.calls()
        return work.calls() + (plan if self._plan is None else 0)

    def round(
        self, number: int, check: Callable[[], None], check_sampling: Callable[[], None], enough: Callable[[], bool]
    ) -> Round:
        work, run = self._work, self._work.execution
        pending = self.settings.plans_cut
        cuts = (0.0, *CUTS) if pending else (self.settings.cut,)
        candidates = collect(
            run.of(work.model), work.schedule, work.reward, work.prompts, self.settings, shape=work.shape,
            parameterization=work.parameterization, round_=number, cuts=cuts,
            # The first round samples the reference itself: the tuned model still equals it.
            tuned=run.of(work.learner.ema.eval()) if number else None,
            memory=work.sampling, ledger=work.ledger, check=check_sampling, device=work.device, graphs=run.graphs,
            taken=self._taken, ranks=work.ranks,
        )  # fmt: skip
        accepted = int(candidates.acceptance.count)
        if accepted == 0:
            raise InputError(
                f"round {number + 1}: no candidate was accepted by rule {work.settings.select.rule!r}; "
                "loosen [select] or set select.empty='best'"
            )
        if pending:
            with work.ledger.phase("plan"):
                plan = plan_from(work, candidates.whole(), check=check_sampling)
            self._plan = work.ranks.from_first(plan.to_dict)
            work.log(plan.reason)
        settings, cut = self.settings, self.settings.cut
        if number and settings.train.frozen == "ema":
            work.learner.freeze()
            work.learner.frozen = run.of(work.learner.frozen, trained=True)  # type: ignore[arg-type]
        kept = candidates.kept_for(cut, settings.train)
        if kept.rows == 0:
            work.log(f"round {number + 1}: no group has accepted and rejected candidates: nothing is learned")
        report = train(
            work.learner, kept, work.schedule, seed=settings.seed,
            parameterization=work.parameterization, null_condition=work.prompts.null, memory=work.training,
            ledger=work.ledger, check=check, enough=enough, graphs=work.execution.training_graphs, ranks=work.ranks,
            ordered=settings.deterministic,
        )  # fmt: skip
        rewards = candidates.rewards[candidates.acceptance.mask]
        if candidates.copies is not None and settings.select.copies == "run":
            taken = candidates.copies[candidates.acceptance.mask].cpu()
            self._taken = taken if self._taken is None else torch.cat((self._taken, taken))
        entry: dict[str, Any] = {
            "reward_accepted": float(rewards.mean()), "accepted": accepted, "t_cut": candidates.rollout.t_cut[cut],
        }  # fmt: skip
        if report.change is not None:
            entry |= {"change": report.change, "excess": report.excess}
        warning = divergence(report)
        if warning is not None:
            entry["warning"] = warning
            work.log(f"round {number + 1}: {warning}")
        return Round(candidates.rewards, candidates.acceptance.mask, report, entry, candidates.copies)

    def state(self) -> dict[str, Any]:
        state = {"plan": self._plan, "taken": None if self._taken is None else self._taken.tolist()}
        return {name: value for name, value in state.items() if value is not None}

    def load(self, state: dict[str, Any]) -> None:
        self._plan = state.get("plan")
        self._taken = torch.tensor(state["taken"], dtype=torch.int64) if "taken" in state else None


class _AllSamples:
    """What methods without a cut have in common: they draw a round's samples and train on all of them."""

    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def settings(self) -> FinetuneSettings:
        return self._work.settings

    def calls(self) -> int:
        return self._work.calls()

    def _scored(
        self, draw: Callable[..., Drawn], prompt_batch: PromptBatch, check: Callable[[], None]
    ) -> tuple[list[Drawn], Tensor]:
        """The batches of a round that this rank drew, and the rewards (P, N) of all."""
        work, sample = self._work, self._work.settings.sample
        parts, flat = draw_and_score(
            draw, work.reward, prompt_batch, sample, work.sampling, work.ledger, check, ranks=work.ranks,
            unit=sample.candidates,
        )  # fmt: skip
        return parts, flat.view(sample.prompts, sample.candidates)

    def _of_all(self, own: Tensor) -> Tensor:
        """(n, ...) rows of all ranks, of those that this one drew."""
        ranks, sample = self._work.ranks, self._work.settings.sample
        return ranks.rows(own, ranks.counts(sample.prompts * sample.candidates, sample.candidates))


class Ddpo(_AllSamples):
    """Policy gradients on all recorded steps; see `finetune.ddpo`. The raw weights are the result."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._statistics = PromptStatistics(work.settings.ddpo.buffer_size)

    @property
    def tuned(self) -> nn.Module:
        return self._work.execution.original(self._work.learner.sampled)

    def round(
        self, number: int, check: Callable[[], None], check_sampling: Callable[[], None], enough: Callable[[], bool]
    ) -> Round:
        work, settings = self._work, self._work.settings
        prompt_batch = PromptBatch.of_round(work.prompts, settings, number)
        policy: Any = work.learner.sampled
        policy.eval()
        draw = partial(
            record, work.execution.of(policy), work.schedule, shape=work.shape, steps=settings.sample.steps,
            solver=settings.sample.solver, eta=settings.sample.eta, parameterization=work.parameterization,
            seed=settings.seed, device=work.device,
        )  # fmt: skip
        parts, rewards = self._scored(draw, prompt_batch, check_sampling)
        with work.ledger.phase("accept"):
            groups = prompt_batch.prompt.view_as(rewards)[:, 0]
            weight = advantages(rewards, groups, self._statistics, settings.ddpo)
        report = train_ddpo(
            work.learner, self._joined(parts), weight.flatten(), prompt_batch.condition, settings.ddpo,
            seed=settings.seed, memory=work.training, ledger=work.ledger, check=check, enough=enough, ranks=work.ranks,
            ordered=settings.deterministic,
        )  # fmt: skip
        used = weight != 0
        entry = {**_entry(rewards, used), "clipped": report.clipped, "kl": report.kl}
        return Round(rewards, used, report, entry)

    def _joined(self, parts: Sequence[Recorded]) -> Recorded:
        """The trajectories of all batches and ranks."""
        states = torch.cat([part.states for part in parts], dim=1)
        log_prob = torch.cat([part.log_prob for part in parts], dim=1)
        return replace(
            parts[0],
            states=self._of_all(states.transpose(0, 1)).transpose(0, 1),
            log_prob=self._of_all(log_prob.T).T,
            sample_id=self._of_all(torch.cat([part.sample_id for part in parts])),
            x_0=self._of_all(torch.cat([part.x_0 for part in parts])),
            model_calls=sum(part.model_calls for part in parts),
        )

    def state(self) -> dict[str, Any]:
        return {"statistics": self._statistics.state()}

    def load(self, state: dict[str, Any]) -> None:
        self._statistics.load(state["statistics"])


class Nft(_AllSamples):
    """Rewards contrasted on the forward process at all steps' noise levels; see `finetune.nft`."""

    @property
    def tuned(self) -> nn.Module:
        return self._work.learner.ema

    def round(
        self, number: int, check: Callable[[], None], check_sampling: Callable[[], None], enough: Callable[[], bool]
    ) -> Round:
        work, settings, run = self._work, self._work.settings, self._work.execution
        prompt_batch = PromptBatch.of_round(work.prompts, settings, number)
        draw = partial(
            rollout, run.of(work.learner.ema.eval()), work.schedule, shape=work.shape, steps=settings.sample.steps,
            solver=settings.sample.solver, eta=settings.sample.eta, parameterization=work.parameterization,
            seed=settings.seed, device=work.device, graphs=run.graphs,
        )  # fmt: skip
        parts, rewards = self._scored(draw, prompt_batch, check_sampling)
        with work.ledger.phase("accept"):
            weight = nft_advantages(rewards)
        times = work.schedule.grid(settings.sample.steps, work.parameterization)[:-1]
        report = train_nft(
            work.learner, work.schedule, self._of_all(torch.cat([part.x_0 for part in parts])),
            prompt_batch.sample_id.to(parts[0].x_0.device), weight.flatten(), prompt_batch.condition, times,
            settings.nft, parameterization=work.parameterization, seed=settings.seed, memory=work.training,
            ledger=work.ledger, check=check, enough=enough, elements=work.prompts.elements_of(prompt_batch.condition),
            ranks=work.ranks, ordered=settings.deterministic,
        )  # fmt: skip
        better = weight > 0
        return Round(rewards, better, report, _entry(rewards, better))

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


def _entry(rewards: Tensor, used: Tensor) -> dict[str, Any]:
    """For the history: rewards (P, N), and which of them were learned from."""
    mean = float(rewards[used].mean()) if bool(used.any()) else float(rewards.nanmean())
    return {"reward_accepted": mean, "accepted": int(used.sum()), "t_cut": 0.0}
