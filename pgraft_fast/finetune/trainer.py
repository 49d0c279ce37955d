"""Rounds inside a budget, each saved before the next begins."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgraft_fast.amounts import duration
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, OutOfTimeError, told_as_damage
from pgraft_fast.files import check_space
from pgraft_fast.finetune.budget import Budget
from pgraft_fast.finetune.checkpoint import KEEP, Checkpoint, History, newest_for_all, save_checkpoint
from pgraft_fast.finetune.energy import Energy
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.identity import changed_versions, check_same, sha256_of, sha256_of_module, versions
from pgraft_fast.finetune.kernel_choice import round_kernels
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.methods import Method, method_of
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.settings import BudgetSettings, FinetuneSettings
from pgraft_fast.finetune.work import Work
from pgraft_fast.ranks.ranks import ALONE, Ranks

# Share of a round that is worth a line.
_NOTABLE_WAIT = 0.2
_CANDIDATES = "candidates"


class Trainer:
    """P-GRAFT: sample, score, accept, train on the accepted states above the cut; several rounds. Or DDPO.

    model(x, t[, condition]): the reference, an nn.Module that stays as it is. reward: see `Reward`. prompts: texts,
    with one `condition` row each where the model takes one. run: folder of checkpoints and ledger; the same call
    again goes on where the last finished round ended, bit for bit (same machine, same settings). identity: JSON that
    names model and reward by content, by default the model's weights; it, settings, prompts and schedule must be the
    same then, see `finetune.identity`. learner: what is trained; by default all weights of a copy of the model. ranks:
    of a run on several; the first one writes, all have the result.

        trainer = Trainer(model, schedule, reward, settings, shape=(1, 8, 8), parameterization="v", run="runs/a")
        trainer.run_rounds()
        tuned = trainer.tuned    # above chosen.cut; the reference model below it

    Raises InputError, RewardError, CheckpointError, StorageError, StoppedError; a finished round is never lost.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        reward: Callable[..., object],
        settings: FinetuneSettings,
        *,
        shape: Sequence[int],
        parameterization: str = "epsilon",
        prompts: Prompts | None = None,
        run: Path | str,
        identity: dict[str, Any] | None = None,
        learner: Learner | None = None,
        ledger: Ledger | None = None,
        log: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
        on_round: Callable[[int, dict[str, Any]], None] = lambda number, entry: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings = settings = settings.in_fixed_batches()
        if ranks.size > settings.sample.prompts:
            raise InputError(
                f"sample.prompts={settings.sample.prompts} for {ranks.size} ranks: each needs a group of candidates"
            )
        self.ranks = ranks
        self.history = History()
        self.last_candidates: dict[str, torch.Tensor] = {}
        self.run = Path(run)
        self._log = log
        self._check = check
        self._on_round = on_round
        self._device = device = next(model.parameters()).device
        self._checkpoints = self.run / "checkpoints"
        prompts = Prompts([""]) if prompts is None else prompts
        self.identity: dict[str, Any] = {
            **({"model": sha256_of_module(model)} if identity is None else identity),
            "training prompts": prompts.contents(),
            "schedule": {"name": schedule.to_dict()["name"], "sha256": sha256_of(schedule.to_dict())},
            "parameterization": parameterization, "shape": list(shape), **settings.future(),
        }  # fmt: skip
        self.execution = Execution(settings.mode, device)
        self._check_equal_runs()
        self._learner = Learner(model, settings.train) if learner is None else learner
        if self._learner.sharded and settings.deterministic:
            raise InputError("deterministic = true: gradients of a sharded network are added up by rank; leave it out")
        for name in ("run", "frozen", "averaged", "sampled"):
            setattr(self._learner, name, self.execution.of(getattr(self._learner, name), trained=True))
        ranks.once(lambda: self.run.mkdir(parents=True, exist_ok=True))
        if ledger is None:
            ledger = Ledger(self.run / "ledger.jsonl" if ranks.first else None, ranks=ranks.size)
        self.ledger = ledger
        # The first rank's clock decides.
        self.budget = Budget(settings.budget if ranks.first else BudgetSettings(), self.ledger)
        self.ledger.measure(Energy.of(device) if settings.budget.joules is None else Energy(device))
        training = settings.train.micro_batch or settings.train.batch_size
        self._method: Method = method_of(
            Work(
                model=model.eval(), schedule=schedule, reward=reward, settings=settings, shape=tuple(shape),
                prompts=prompts, parameterization=parameterization,
                learner=self._learner, execution=self.execution, ledger=self.ledger, device=device, log=log,
                sampling=BatchSize(settings.sample.batch_size, "sampling"), training=BatchSize(training, "training"),
                ranks=ranks,
            )
        )  # fmt: skip
        self._resume()

    @property
    def tuned(self) -> nn.Module:
        """The result: averaged weights, of DDPO the raw ones; for noise levels above the cut."""
        return self._method.tuned

    @property
    def chosen(self) -> FinetuneSettings:
        """The settings, with the cut that the first round chose where it was left to it."""
        return self._method.settings

    @property
    def plan(self) -> dict[str, Any] | None:
        """Of the cut, see `CutPlan.to_dict`; None where it was given."""
        return self._method.state().get("plan")

    @property
    def rounds_done(self) -> int:
        """Finished rounds, those of earlier processes included."""
        return len(self.history)

    def calls_of_a_round(self) -> int:
        """Model calls that one round needs, at most."""
        return self._method.calls()

    def run_rounds(self) -> None:
        """Run until `settings.train.rounds` are done or the budget allows no further one."""
        calls, ranks = self.calls_of_a_round(), self.ranks
        with ranks.together():
            if ranks.first and self.rounds_done < self.settings.train.rounds:
                check_space(self._checkpoints, (KEEP + 1) * self._checkpoint_bytes())
        while self.rounds_done < self.settings.train.rounds:
            why_not = ranks.from_first(lambda: self._why_not(calls))
            if why_not is not None:
                self._log(why_not)
                return
            try:
                with round_kernels(self._device, self.settings.deterministic):
                    self._round()
            except OutOfTimeError:
                self._log(f"budget: the time is up in round {self.rounds_done + 1}, which is dropped")
                return

    def _why_not(self, calls: int) -> str | None:
        """What keeps the budget from a further round. Raises InputError for the first one."""
        if self.rounds_done == 0:
            # Asked once: time that ends between two questions would end the run without a word.
            self.budget.check_first_round(calls)
            return None
        return None if self.budget.allows_round(calls) else self.budget.why_not(calls)

    def _round(self) -> None:
        ranks = self.ranks
        number, began, joules = self.rounds_done, self.ledger.elapsed, self.ledger.joules_now()
        waited = ranks.waited
        outcome = self._method.round(number, self._check, self._check_sampling, self.budget.time_is_up)
        self.history.append(
            {
                "reward": float(outcome.rewards.nanmean()),
                **outcome.entry,
                "loss": outcome.report.loss,
                "steps": outcome.report.steps,
                "rejected_steps": outcome.report.rejected,
                "model_calls": self.ledger.model_calls,
                "seconds": round(self.ledger.elapsed, 3),
            }
        )
        if ranks.size > 1:
            took = max(self.ledger.elapsed - began, 1e-9)
            shares = ranks.gather(round((ranks.waited - waited) / took, 3))
            self.history[-1]["waited"] = shares
            slow = _slow_rank(shares)
            if slow is not None:
                self._log(f"round {number + 1}: {slow}")
        self.last_candidates = {"reward": outcome.rewards.cpu(), "accepted": outcome.accepted.cpu()}
        if outcome.copies is not None:
            self.last_candidates["copies"] = outcome.copies.cpu()
        with self.ledger.phase("save"):
            self._save()
        self.budget.round_took(self.ledger.elapsed - began, self.ledger.joules_now() - joules)
        entry = self.history[-1]
        ranks.once(lambda: self._on_round(self.rounds_done, entry))
        self._log(
            f"round {number + 1}/{self.settings.train.rounds}: reward {entry['reward']:.4f}, "
            f"accepted {entry['accepted']} at {entry['reward_accepted']:.4f}, loss {entry['loss']:.4f}, "
            f"{self.ledger.model_calls:,} model calls, {duration(self.ledger.elapsed)}"
        )

    def _check_sampling(self) -> None:
        self._check()
        if self.budget.time_is_up():
            if self.rounds_done == 0:
                raise InputError(
                    "budget: the time is up before the first round has sampled; raise it or lower [sample]"
                )
            raise OutOfTimeError("budget: the time is up")

    def _save(self) -> None:
        state = {
            "settings": self.identity, "history": self.history, "steps_done": self._learner.steps_done,
            "method": self._method.state(), "versions": versions(),
        }  # fmt: skip
        tensors = self._learner.gathered()
        self.ranks.check_equal(self._learner.alike(), "the trained weights")
        joules = self.ranks.gather(self.ledger.take_joules())
        with self.ranks.together():
            if self.ranks.first:
                checkpoint = Checkpoint(self.rounds_done, state, {**tensors, _CANDIDATES: self.last_candidates})
                save_checkpoint(self._checkpoints, checkpoint)
                self.ledger.add_joules(joules)
                self.ledger.commit(self.rounds_done)

    def _resume(self) -> None:
        # Of a sharded network the learner deals what it has.
        only = (_CANDIDATES,) if self._learner.sharded else None
        checkpoint = newest_for_all(self.ranks, self._checkpoints, self._log, only)
        if checkpoint is None:
            return
        saved = checkpoint.state.get("settings") or {}
        check_same(saved, self.identity, f"the run in {self.run}", self.settings.defaults())
        message = changed_versions(checkpoint.state.get("versions", {}))
        if message:
            self._log(f"{self.run}: {message}")
        with told_as_damage(self._checkpoints):
            self._learner.load(checkpoint.tensors, checkpoint.state["steps_done"])
            self._method.load(checkpoint.state.get("method", {}))
            self.history = History(checkpoint.state["history"])
            self.last_candidates = checkpoint.tensors[_CANDIDATES]
        finished = checkpoint.round >= self.settings.train.rounds
        self._log(f"{self.run} {'is finished:' if finished else 'goes on after'} round {checkpoint.round}")

    def _check_equal_runs(self) -> None:
        """Raise InputError where the ranks were given different models, prompts or settings."""
        own = {name: sha256_of(value) for name, value in self.identity.items()}
        for rank, other in enumerate(self.ranks.gather(own)):
            different = [name for name in own if other.get(name) != own[name]]
            if different:
                raise InputError(f"rank {rank} was given other values than rank {self.ranks.rank} for {different[0]!r}")

    def _checkpoint_bytes(self) -> int:
        # Model, average and two moments.
        weights = self._learner.weights()["model"].values()
        return 4 * sum(weight.numel() * weight.element_size() for weight in weights) + 65536


def _slow_rank(waited: Sequence[float]) -> str | None:
    """A line where the others wait for one rank: shares of a round that each has waited."""
    least = min(waited)
    others = sum(waited) - least
    mean = others / max(1, len(waited) - 1)
    if mean - least < _NOTABLE_WAIT:
        return None
    return f"rank {waited.index(least)} is the slowest: the others waited {mean:.0%} of the time, it {least:.0%}"
