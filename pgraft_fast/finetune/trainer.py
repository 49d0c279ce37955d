"""Rounds of P-GRAFT inside a budget, each saved before the next begins."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.files import check_space, remove_temporary
from pgraft_fast.finetune.budget import CALLS_OF_A_TRAINED_SAMPLE, Budget
from pgraft_fast.finetune.checkpoint import KEEP, Checkpoint, load_newest, save_checkpoint
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.rounds import Candidates, Prompts, collect
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.finetune.training import Learner, train
from pgraft_fast.sampling import make_steps, model_evaluations


class Trainer:
    """P-GRAFT: sample, score, accept, train on the accepted states above the cut; several rounds.

    model(x, t[, condition]): the reference, an nn.Module that stays as it is. reward: see `Reward`. prompts: texts,
    with one `condition` row each where the model takes one. run: folder of checkpoints and ledger; the same call
    again goes on where the last finished round ended, bit for bit (same machine, same settings).

        trainer = Trainer(model, schedule, reward, settings, shape=(1, 8, 8), parameterization="v", run="runs/a")
        trainer.run_rounds()
        tuned = trainer.tuned    # above settings.train.cut; the reference model below it

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
        ledger: Ledger | None = None,
        log: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
        on_round: Callable[[int, dict[str, Any]], None] = lambda number, entry: None,
    ) -> None:
        self.settings = settings
        self.history: list[dict[str, Any]] = []
        self.last_candidates: dict[str, torch.Tensor] = {}
        self.run = Path(run)
        self._model = model.eval()
        self._schedule = schedule
        self._reward = reward
        self._shape = tuple(shape)
        self._parameterization = parameterization
        self._prompts = Prompts([""]) if prompts is None else prompts
        self._log = log
        self._check = check
        self._on_round = on_round
        self._device = next(model.parameters()).device
        self._checkpoints = self.run / "checkpoints"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._identity = {**(identity or {}), **settings.future()}
        self.execution = Execution(settings.mode, self._device)
        self._learner = Learner(model, settings.train)
        self._learner.run = self.execution.of(self._learner.model)
        self.ledger = Ledger(self.run / "ledger.jsonl") if ledger is None else ledger
        self.budget = Budget(settings.budget, self.ledger)
        self._resume()

    @property
    def tuned(self) -> nn.Module:
        """The averaged tuned weights: for noise levels above the cut."""
        return self._learner.ema

    @property
    def rounds_done(self) -> int:
        """Finished rounds, those of earlier processes included."""
        return len(self.history)

    def calls_of_a_round(self) -> int:
        """Model calls that one round needs."""
        sample, training = self.settings.sample, self.settings.train
        grid = self._schedule.grid(sample.steps, self._parameterization)
        steps = make_steps(self._schedule, grid, sample.solver, self._parameterization, sample.eta)
        sampling = sample.prompts * sample.candidates * model_evaluations(steps)
        return sampling + CALLS_OF_A_TRAINED_SAMPLE * training.steps * training.batch_size

    def run_rounds(self) -> None:
        """Run until `settings.train.rounds` are done or the budget allows no further one."""
        calls = self.calls_of_a_round()
        if self.rounds_done < self.settings.train.rounds:
            check_space(self._checkpoints, (KEEP + 1) * self._checkpoint_bytes())
            if self.rounds_done == 0:
                self.budget.check_first_round(calls)
        while self.rounds_done < self.settings.train.rounds:
            if not self.budget.allows_round(calls):
                self._log(self.budget.why_not(calls))
                return
            try:
                self._round()
            except _OutOfTimeError:
                self._log(f"budget: the time is up in round {self.rounds_done + 1}, which is dropped")
                return

    def _round(self) -> None:
        number, began = self.rounds_done, self.ledger.elapsed
        cut, objective = self.settings.train.cut, self.settings.train.objective
        candidates = self._collect(number)
        accepted = int(candidates.acceptance.count)
        if accepted == 0:
            raise InputError(
                f"round {number + 1}: no candidate was accepted by rule {self.settings.select.rule!r}; "
                "loosen [select] or set select.empty='best'"
            )
        result = train(
            self._learner,
            candidates.kept(cut, objective),
            self._schedule,
            parameterization=self._parameterization,
            seed=self.settings.seed,
            ledger=self.ledger,
            check=self._check,
            enough=self.budget.time_is_up,
        )
        kept_rewards = candidates.rewards[candidates.acceptance.mask]
        self.history.append(
            {
                "reward": float(candidates.rewards.nanmean()),
                "reward_accepted": float(kept_rewards.mean()),
                "accepted": accepted,
                "loss": result.loss,
                "steps": result.steps,
                "rejected_steps": result.rejected,
                "t_cut": candidates.rollout.t_cut[cut],
                "model_calls": self.ledger.model_calls,
                "seconds": round(self.ledger.elapsed, 3),
            }
        )
        self.last_candidates = {"reward": candidates.rewards, "accepted": candidates.acceptance.mask}
        with self.ledger.phase("save"):
            self._save()
        self.budget.round_took(self.ledger.elapsed - began)
        self._on_round(self.rounds_done, self.history[-1])
        self._log(
            f"round {number + 1}/{self.settings.train.rounds}: reward {self.history[-1]['reward']:.4f}, "
            f"accepted {accepted} at {self.history[-1]['reward_accepted']:.4f}, loss {result.loss:.4f}, "
            f"{self.ledger.model_calls:,} model calls, {self.ledger.elapsed:.1f} s"
        )

    def _collect(self, number: int) -> Candidates:
        run = self.execution
        return collect(
            run.of(self._model),
            self._schedule,
            self._reward,
            self._prompts,
            self.settings,
            shape=self._shape,
            parameterization=self._parameterization,
            round_=number,
            cuts=(self.settings.train.cut,),
            # The first round samples the reference itself: the tuned model still equals it.
            tuned=run.of(self._learner.ema.eval()) if number else None,
            ledger=self.ledger,
            check=self._check_sampling,
            device=self._device,
            graphs=run.graphs,
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
        state = {"settings": self._identity, "history": self.history, "steps_done": self._learner.steps_done}
        tensors = {**self._learner.tensors(), "candidates": self.last_candidates}
        save_checkpoint(self._checkpoints, Checkpoint(self.rounds_done, state, tensors))
        self.ledger.commit(self.rounds_done)

    def _resume(self) -> None:
        remove_temporary(self._checkpoints)
        checkpoint = load_newest(self._checkpoints, self._log)
        if checkpoint is None:
            return
        _check_same(checkpoint.state["settings"], self._identity, self.run)
        self._learner.load(checkpoint.tensors, checkpoint.state["steps_done"])
        self.history = checkpoint.state["history"]
        self.last_candidates = checkpoint.tensors["candidates"]
        finished = checkpoint.round >= self.settings.train.rounds
        self._log(f"{self.run} {'is finished:' if finished else 'goes on after'} round {checkpoint.round}")

    def _checkpoint_bytes(self) -> int:
        # Model, average and two moments.
        return 4 * sum(p.numel() * p.element_size() for p in self._learner.model.parameters()) + 65536


class _OutOfTimeError(Exception):
    """The time budget ended while a later round was sampling."""


def _check_same(saved: dict[str, Any], given: dict[str, Any], run: Path, prefix: str = "") -> None:
    """Raise InputError naming the first key whose change would change the future of the run."""
    for key in sorted(set(saved) | set(given)):
        old, new = saved.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _check_same(old, new, run, f"{prefix}{key}.")
        elif old != new:
            raise InputError(
                f"{prefix}{key}={new!r} differs from {old!r} of the run in {run}; set it back or use another run folder"
            )
