"""Rounds inside a budget, each saved before the next begins."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgraft_fast.amounts import duration
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.files import check_space, remove_temporary
from pgraft_fast.finetune.budget import Budget
from pgraft_fast.finetune.checkpoint import KEEP, Checkpoint, History, load_newest, save_checkpoint
from pgraft_fast.finetune.energy import Energy
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.identity import changed_versions, check_same, sha256_of, sha256_of_module, versions
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.methods import Method, method_of
from pgraft_fast.finetune.rounds import Prompts
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.finetune.work import Work


class Trainer:
    """P-GRAFT: sample, score, accept, train on the accepted states above the cut; several rounds. Or DDPO.

    model(x, t[, condition]): the reference, an nn.Module that stays as it is. reward: see `Reward`. prompts: texts,
    with one `condition` row each where the model takes one. run: folder of checkpoints and ledger; the same call
    again goes on where the last finished round ended, bit for bit (same machine, same settings). identity: JSON that
    names model and reward by content, by default the model's weights; it, settings, prompts and schedule must be the
    same then, see `finetune.identity`. learner: what is trained; by default all weights of a copy of the model.

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
    ) -> None:
        self.settings = settings
        self.history = History()
        self.last_candidates: dict[str, torch.Tensor] = {}
        self.run = Path(run)
        self._log = log
        self._check = check
        self._on_round = on_round
        device = next(model.parameters()).device
        self._checkpoints = self.run / "checkpoints"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        prompts = Prompts([""]) if prompts is None else prompts
        self.identity: dict[str, Any] = {
            **({"model": sha256_of_module(model)} if identity is None else identity),
            "training prompts": prompts.contents(),
            "schedule": {"name": schedule.to_dict()["name"], "sha256": sha256_of(schedule.to_dict())},
            "parameterization": parameterization, "shape": list(shape), **settings.future(),
        }  # fmt: skip
        self.execution = Execution(settings.mode, device)
        self._learner = Learner(model, settings.train) if learner is None else learner
        for name in ("run", "frozen", "averaged", "sampled"):
            setattr(self._learner, name, self.execution.of(getattr(self._learner, name), trained=True))
        self.ledger = Ledger(self.run / "ledger.jsonl") if ledger is None else ledger
        self.budget = Budget(settings.budget, self.ledger)
        self.ledger.measure(Energy.of(device) if settings.budget.joules is None else Energy(device))
        training = settings.train.micro_batch or settings.train.batch_size
        self._method: Method = method_of(
            Work(
                model=model.eval(), schedule=schedule, reward=reward, settings=settings, shape=tuple(shape),
                prompts=prompts, parameterization=parameterization,
                learner=self._learner, execution=self.execution, ledger=self.ledger, device=device, log=log,
                sampling=BatchSize(settings.sample.batch_size, "sampling"), training=BatchSize(training, "training"),
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
        calls = self.calls_of_a_round()
        if self.rounds_done < self.settings.train.rounds:
            check_space(self._checkpoints, (KEEP + 1) * self._checkpoint_bytes())
        while self.rounds_done < self.settings.train.rounds:
            if self.rounds_done == 0:
                # Asked once: time that ends between two questions would end the run without a word.
                self.budget.check_first_round(calls)
            elif not self.budget.allows_round(calls):
                self._log(self.budget.why_not(calls))
                return
            try:
                self._round()
            except _OutOfTimeError:
                self._log(f"budget: the time is up in round {self.rounds_done + 1}, which is dropped")
                return

    def _round(self) -> None:
        number, began, joules = self.rounds_done, self.ledger.elapsed, self.ledger.joules_now()
        done = self._method.round(number, self._check, self._check_sampling, self.budget.time_is_up)
        self.history.append(
            {
                "reward": float(done.rewards.nanmean()),
                **done.entry,
                "loss": done.report.loss,
                "steps": done.report.steps,
                "rejected_steps": done.report.rejected,
                "model_calls": self.ledger.model_calls,
                "seconds": round(self.ledger.elapsed, 3),
            }
        )
        self.last_candidates = {"reward": done.rewards.cpu(), "accepted": done.accepted.cpu()}
        if done.copies is not None:
            self.last_candidates["copies"] = done.copies.cpu()
        with self.ledger.phase("save"):
            self._save()
        self.budget.round_took(self.ledger.elapsed - began, self.ledger.joules_now() - joules)
        entry = self.history[-1]
        self._on_round(self.rounds_done, entry)
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
            raise _OutOfTimeError

    def _save(self) -> None:
        state = {
            "settings": self.identity, "history": self.history, "steps_done": self._learner.steps_done,
            "method": self._method.state(), "versions": versions(),
        }  # fmt: skip
        tensors = {**self._learner.tensors(), "candidates": self.last_candidates}
        save_checkpoint(self._checkpoints, Checkpoint(self.rounds_done, state, tensors))
        self.ledger.commit(self.rounds_done)

    def _resume(self) -> None:
        remove_temporary(self._checkpoints)
        checkpoint = load_newest(self._checkpoints, self._log)
        if checkpoint is None:
            return
        check_same(checkpoint.state.get("settings") or {}, self.identity, f"the run in {self.run}")
        message = changed_versions(checkpoint.state.get("versions", {}))
        if message:
            self._log(f"{self.run}: {message}")
        with told_as_damage(self._checkpoints):
            self._learner.load(checkpoint.tensors, checkpoint.state["steps_done"])
            self._method.load(checkpoint.state.get("method", {}))
            self.history = History(checkpoint.state["history"])
            self.last_candidates = checkpoint.tensors["candidates"]
        finished = checkpoint.round >= self.settings.train.rounds
        self._log(f"{self.run} {'is finished:' if finished else 'goes on after'} round {checkpoint.round}")

    def _checkpoint_bytes(self) -> int:
        # Model, average and two moments.
        weights = self._learner.weights()["model"].values()
        return 4 * sum(weight.numel() * weight.element_size() for weight in weights) + 65536


class _OutOfTimeError(Exception):
    """The time budget ended while a later round was sampling."""
