"""A whole run in a folder that can be resumed.

run/config.json, run/ledger.jsonl, run/checkpoints/, run/evaluation/{before,after}.safetensors, run/model.safetensors
(tuned weights) or run/adapter/ (a LoRA), run/result.json, run/report/.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.amounts import duration
from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.extras import REPORT, need
from pgraft_fast.files import flush_folder, to_json, write_file
from pgraft_fast.finetune import Ledger, Trainer
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.finetune.signals import StopRequest
from pgraft_fast.ranks.ranks import Ranks
from pgraft_fast.runs.batches import with_batches
from pgraft_fast.runs.evaluation_file import read_evaluation, write_evaluation
from pgraft_fast.runs.mode import with_mode
from pgraft_fast.runs.sizing import SAFETY, evaluation_samples, sized, with_prompts
from pgraft_fast.runs.subject import Subject
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.runs.together import at_work
from pgraft_fast.tasks.evaluation import Evaluation, accepted_of, evaluate, features_of, quality_of

CONFIG, RESULT = "config.json", "result.json"

OnRound = Callable[[int, dict[str, Any]], None]


def finish_run(
    run: Path, subject_of: Callable[[], Subject], terminal: Terminal, on_round: OnRound = lambda number, entry: None
) -> dict[str, Any]:
    """Run, or go on with a run, to its end. subject_of(): once the folder is locked. on_round(number, entry): after
    each round. Returns what result.json holds. Started by torchrun or the like, all ranks make one run together.
    """
    need("the report of a run", *REPORT)
    with at_work(run, terminal) as (ranks, stop):
        ledger = Ledger(run / "ledger.jsonl" if ranks.first else None, ranks=ranks.size)
        finished, subject = False, None
        try:
            with ranks.together():
                subject = subject_of()
                if subject.config.log.tensorboard:
                    need("log.tensorboard", "tensorboard")
            ranks.turns = None if subject.turns is None else subject.turns()
            subject = _settled(subject, run, terminal, ranks)
            result = _Run(subject, run, ledger, terminal, stop, on_round, ranks).finish()
            finished = True
            return result
        finally:
            ledger.close(finished)
            if subject is not None:
                subject.close()


def _settled(subject: Subject, run: Path, terminal: Terminal, ranks: Ranks) -> Subject:
    """What the config leaves open, found by the first rank for all; how much is computed at once by each for itself."""
    with ranks.together():
        subject = with_batches(subject, run if ranks.first else None, terminal.line)
    mode = ranks.from_first(lambda: with_mode(subject, terminal.line).config.mode)
    subject = replace(subject, config=subject.config.model_copy(update={"mode": mode}))
    if subject.config.sample.prompts is not None:
        return subject
    if ranks.turns is not None:
        raise InputError("sample.prompts: how many fit is not found out where ranks share the network; set it")
    prompts = ranks.from_first(lambda: sized(subject, run, terminal.line, ranks.size).config.sample.prompts)
    return replace(subject, config=with_prompts(subject.config, prompts))


def trainer_of(subject: Subject, run: Path, ledger: Ledger, **callbacks: Any) -> Trainer:
    """The trainer of a subject in a run folder. callbacks: its log, check and on_round."""
    task = subject.task
    return Trainer(
        task.model, task.schedule, subject.reward, subject.config, shape=task.shape,
        parameterization=task.parameterization, prompts=task.prompts, run=run,
        identity=subject.identity(), learner=subject.learner, ledger=ledger, **callbacks,
    )  # fmt: skip


class _Run:
    def __init__(
        self, subject: Subject, run: Path, ledger: Ledger, terminal: Terminal, stop: StopRequest, on_round: OnRound,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self.on_round, self.ranks = on_round, ranks
        self.subject, self.config = subject, subject.config
        self.run, self.ledger, self.terminal, self.stop = run, ledger, terminal, stop
        self.task, self.reward = subject.task, subject.reward
        self.writer: Any = None
        self.trainer = trainer_of(
            subject, run, ledger, log=terminal.line, check=self._check, on_round=self._on_round, ranks=ranks,
        )  # fmt: skip

    def finish(self) -> dict[str, Any]:
        from pgraft_fast.report import report_seconds

        config, trainer, ranks = self.config, self.trainer, self.ranks
        with ranks.together():
            if ranks.first:
                if trainer.rounds_done == 0:
                    trainer.budget.check_first_round(trainer.calls_of_a_round())
                write_file(self.run / CONFIG, to_json(config.model_dump()))
        began, joules = self.ledger.elapsed, self.ledger.joules_now()
        with self.terminal.progress(config.train.rounds * trainer.calls_of_a_round()):
            before = self._evaluation("before")
            # What the evaluation took tells what must be kept back for the one at the end.
            evaluation = max(self.ledger.seconds["evaluate"], self.ledger.elapsed - began)
            trainer.budget.reserve = SAFETY * (evaluation + report_seconds())
            trainer.budget.reserve_joules = SAFETY * (self.ledger.joules_now() - joules)
            trainer.run_rounds()
            if trainer.rounds_done == 0:
                raise InputError("budget: the time is up before the first round; raise [budget]")
            config = self.config = config.with_cut(trainer.chosen.cut) if config.plans_cut else config
            after = self._evaluation("after")
        with self.ledger.phase("save"), self._whole():
            result = ranks.from_first(lambda: self._saved(before, after))
        if self.writer is not None:
            self.writer.close()
        spent = ", ".join(f"{phase} {duration(s)}" for phase, s in self.ledger.seconds.items() if s > 0)
        self.terminal.line(f"spent {self.ledger.model_calls:,} model calls; {spent}")
        self.terminal.line(
            f"reward {result['before']['reward']:.4f} -> {result['after']['reward']:.4f}, "
            f"saved: {result['saved']}, report: {self.run / 'report' / 'index.html'}"
        )
        return result

    def _saved(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        """Weights, result and report."""
        from pgraft_fast.report import write_run_report

        saved = self.subject.save(self.trainer, self.run)
        flush_folder(self.run)
        result = {**self._result(before, after), "saved": str(saved)}
        write_file(self.run / RESULT, to_json(result))
        write_run_report(self.run, self.task, self.config, result, before, after, self.trainer.last_candidates)
        return result

    def _whole(self) -> AbstractContextManager[None]:
        """Where the first rank can save by itself."""
        if self.ranks.turns is None:
            return nullcontext()
        from pgraft_fast.ranks.sharded import whole_states

        return whole_states(self.trainer.tuned)

    def _check(self) -> None:
        self.stop.check()
        self.terminal.advance(self.ledger.model_calls, f"round {self.trainer.rounds_done + 1}")

    def _on_round(self, number: int, entry: dict[str, Any]) -> None:
        self.on_round(number, entry)
        if not self.config.log.tensorboard:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=number)
        for key in ("reward", "reward_accepted", "loss", "accepted", "model_calls"):
            self.writer.add_scalar(key, entry[key], number)
        self.writer.flush()

    def _evaluation(self, name: str) -> Evaluation:
        """Drawn once and kept on disk; "after" is named by the round whose weights it shows."""
        number = self.trainer.rounds_done
        path = (
            self.run / "evaluation" / ("before.safetensors" if name == "before" else f"after-{number:06d}.safetensors")
        )
        drawn_as = sha256_of(self.trainer.identity)
        stored: list[Evaluation] = []

        def is_stored() -> bool:
            if not path.exists():
                return False
            try:
                evaluation, was_drawn_as = read_evaluation(path)
            except CheckpointError as error:
                self.terminal.line(f"{error}; drawn again")
                return False
            stored.append(evaluation)
            # One that was drawn before a first round has no checkpoint that tells what of.
            return was_drawn_as == drawn_as and evaluation.rewards.numel() == evaluation_samples(self.config)

        if self.ranks.from_first(is_stored):
            parts = {
                part: value for evaluation in stored for part, value in vars(evaluation).items() if value is not None
            }
            return Evaluation(**self.ranks.tensors_from_first({"evaluation": parts})["evaluation"])
        tuned = None if name == "before" else self.trainer.tuned.eval()
        evaluation = evaluate(
            self.task,
            self.reward,
            self.config,
            self.config.evaluate.samples,
            tuned=tuned,
            cut=None if tuned is None else self.config.cut,
            ledger=self.ledger,
            check=self.stop.check,
            execution=self.trainer.execution,
            ranks=self.ranks,
        )
        with self.ranks.together():
            if self.ranks.first:
                write_evaluation(path, evaluation, drawn_as)
                if name == "before":
                    self.ledger.commit(number)
        return evaluation

    def _result(self, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        kept, n = accepted_of(self.task, before, self.config), self.config.sample.candidates
        accepted = features_of(self.task, before, kept) if int(kept.sum()) > 3 else None
        return {
            "before": quality_of(self.task, before, accepted, n),
            "after": quality_of(self.task, after, accepted, n),
            "rounds": self.trainer.history,
            "cut_plan": self.trainer.plan,
            "spent": self.ledger.summary(),
            "config": self.config.model_dump(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
