"""Trials on the candidates of a round: fresh continuations of their states, and other models at their own noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics.cut import KeptGain, base_rewards, kept_gain
from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.candidates import Candidates
from pgraft_fast.finetune.cost import evaluations_of
from pgraft_fast.finetune.drawing import draw_and_score
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.prompts import PromptBatch
from pgraft_fast.finetune.work import Work
from pgraft_fast.sampling import calls_of, rollout

# Sample ids of continuations lie above those of evaluations; those of each cut are 2^32 apart.
_FIRST_ID = 3 << 40


@dataclass(frozen=True)
class Trials:
    """candidates: of round 0, with the states at 0 and at the cuts. ledger: counts the calls. check: may raise."""

    work: Work
    candidates: Candidates
    ledger: Ledger
    check: Callable[[], None]

    def evaluations(self) -> int:
        """Network calls of a trajectory."""
        return evaluations_of(self.work.schedule, self.work.settings, self.work.parameterization)

    def trajectory_calls(self) -> int:
        """Model calls of a sample."""
        return self.evaluations() * calls_of(self.work.model)

    def kept_gains(self, cuts: tuple[float, ...], most: int) -> dict[float, KeptGain | None]:
        """s(t) of each cut, from at most so many accepted states, each continued once; None where it is not known."""
        candidates, settings = self.candidates, self.work.settings
        index = candidates.acceptance.index.cpu()
        order = uniform(settings.seed, candidates.rollout.sample_id.cpu()[index], 0, Stream.PILOT)
        rows = index[torch.argsort(order, stable=True)][:most]
        base = base_rewards(candidates.rewards, settings.select.rule).flatten()[rows]
        group, reward = rows // settings.sample.candidates, candidates.rewards.flatten().cpu()[rows]
        gains: dict[float, KeptGain | None] = {}
        for number, cut in enumerate(cuts):
            fresh = self.continued(rows, cut, _FIRST_ID + (number << 32))
            try:
                gains[cut] = kept_gain(reward, fresh, base, group)
            except InputError:
                gains[cut] = None
        return gains

    def continued(self, rows: Tensor, cut: float, first_id: int) -> Tensor:
        """(m,) rewards of continuations of these candidates from their states at a cut, with new noise."""
        work, kept = self.work, self.candidates.rollout
        states = kept.x_cut[cut][rows.to(kept.sample_id.device)]

        def draw(*, sample_ids: Tensor, **more: Any) -> Any:
            place = (sample_ids - first_id).to(states.device)
            return self._rollout(work.model)(sample_ids=sample_ids, x_start=states[place], start=cut, **more)

        prompt = PromptBatch.of_round(work.prompts, work.settings, 0).prompt[rows]
        return self._scored(draw, PromptBatch.of(work.prompts, prompt, torch.arange(rows.numel()) + first_id))

    def changes(self, model: nn.Module, most: int) -> Tensor:
        """(m,) rewards of a model's samples less those of the candidates at the same noise and prompts."""
        work, settings = self.work, self.work.settings
        n, groups = settings.sample.candidates, settings.sample.prompts
        # As many prompts as there are, before a second candidate of any.
        rows = torch.arange(groups * n).view(groups, n).T.flatten()[:most]
        whole = PromptBatch.of_round(work.prompts, settings, 0)
        prompt_batch = PromptBatch.of(work.prompts, whole.prompt[rows], whole.sample_id[rows])
        change = self._scored(self._rollout(model.eval()), prompt_batch) - self.candidates.rewards.flatten().cpu()[rows]
        return change[change.isfinite()].to(torch.float64)

    def _rollout(self, model: nn.Module) -> Callable[..., Any]:
        work, sample = self.work, self.work.settings.sample
        return partial(
            rollout, work.execution.of(model), work.schedule, shape=work.shape, steps=sample.steps,
            solver=sample.solver, eta=sample.eta, parameterization=work.parameterization, seed=work.settings.seed,
            device=work.device, graphs=work.execution.graphs,
        )  # fmt: skip

    def _scored(self, draw: Callable[..., Any], prompt_batch: PromptBatch) -> Tensor:
        work, sample = self.work, self.work.settings.sample
        _, rewards = draw_and_score(
            draw,
            work.reward,
            prompt_batch,
            sample,
            work.sampling,
            self.ledger,
            self.check,
            ("plan", "plan"),
            ranks=work.ranks,
        )
        return rewards.cpu()
