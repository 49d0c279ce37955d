"""`pgraft-fast evaluate` of a run on a pipeline: base and tuned on held-out or other prompts, by category."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.subjects import check_trusted, subject_of
from pgraft_fast.errors import CheckpointError, InputError, told_as_damage
from pgraft_fast.files import inside, storage_error, to_json, write_file
from pgraft_fast.finetune import Ledger
from pgraft_fast.finetune.checkpoint import load_newest
from pgraft_fast.finetune.energy import Energy
from pgraft_fast.finetune.identity import check_same
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.ranks.ranks import Ranks
from pgraft_fast.report import Table, interval, write_evaluation_report
from pgraft_fast.runs.subject import Subject
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.runs.together import at_work
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, evaluate, quality_of

# Folder names hold 255 bytes, of up to four a character.
_LONGEST_NAME = 50


def evaluate_source(
    source: Path, run: str | None, prompts: Path | None, samples: int | None, terminal: Terminal, *, trust: bool
) -> dict[str, Any]:
    """`evaluate_run` of a folder, or the last stage of a config of `correct` in the folder `run`. Raises InputError."""
    if source.suffix == ".toml":
        if prompts is not None or samples is not None:
            raise InputError("--prompts and --samples belong to a run on a pipeline: give its folder")
        from pgraft_fast.commands.correct import correct_file

        return correct_file(source, run, ("evaluate",))
    if run is not None:
        raise InputError(f"--run {run}: belongs to a config; the run is {source}")
    return evaluate_run(str(source), prompts, samples, terminal, trust=trust)


def evaluate_run(
    folder: str, prompts: Path | None, samples: int | None, terminal: Terminal, *, trust: bool = False
) -> dict[str, Any]:
    """Draw, score and compare; writes run/evaluation-held-out/, or run/evaluation-<name>-<hash of the prompts>/.

    prompts: a file or folder, see `read_prompts`, in place of the held-out ones. samples: in place of the config's.
    trust: whether rewards that are code may run, and those behind a URL be asked. Raises InputError.
    """
    run, _, config = read_run(folder)
    if not isinstance(config, PipelineConfig):
        raise InputError(f"{folder}: not a run on a pipeline; its evaluation is in {run / 'result.json'}")
    if not trust:
        check_trusted(config, run)
    if prompts is not None:
        config = config.model_copy(update={"prompts": config.prompts.model_copy(update={"held_out": str(prompts)})})
    with at_work(None, terminal) as (ranks, stop), ExitStack() as held:
        with ranks.together():
            subject = subject_of(config, terminal.line)
            held.callback(subject.close)
        many = config.evaluate.samples if samples is None else samples
        compared = _Compared(run, subject, many, terminal, stop.check, ranks)
        if prompts is None:
            return compared.write("held-out", inside(run, run / "evaluation-held-out"))
        return compared.write(str(prompts), inside(run, run / f"evaluation-{_name(prompts, subject.task)}"))


class _Compared:
    def __init__(self, run: Path, subject: Subject, samples: int, terminal: Terminal, check: Any, ranks: Ranks) -> None:
        self.run, self.subject, self.samples = run, subject, samples
        self.terminal, self.check, self.ranks = terminal, check, ranks
        self.ledger = Ledger(ranks=ranks.size)
        self.ledger.measure(Energy.of(next(subject.task.model.parameters()).device))

    def write(self, prompts: str, out: Path) -> dict[str, Any]:
        """prompts: as they were asked for. out: folder of the result."""
        subject = self.subject
        memory = BatchSize(subject.config.sample.batch_size, "sampling")
        evaluations = {}
        with self.ranks.together():
            tuned_model = tuned_of(self.run, subject, same_base=True)
        for which, tuned in (("base", None), ("tuned", tuned_model)):
            evaluations[which] = evaluate(
                subject.task, subject.reward, subject.config, self.samples, tuned=tuned, memory=memory,
                cut=None if tuned is None else subject.config.cut, ledger=self.ledger, check=self.check,
                ranks=self.ranks,
            )  # fmt: skip
            self.terminal.line(f"{which}: reward {float(evaluations[which].rewards.nanmean()):.4f}")
        return self.ranks.from_first(lambda: self._reported(prompts, out, evaluations))

    def _reported(self, prompts: str, out: Path, evaluations: dict[str, Evaluation]) -> dict[str, Any]:
        subject, n = self.subject, self.subject.config.sample.candidates
        rows = {which: quality_of(subject.task, evaluation, None, n) for which, evaluation in evaluations.items()}
        result = {"prompts": prompts, "rows": rows, "spent": self.ledger.summary()}
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(out, error) from error
        write_file(out / "result.json", to_json(result))
        page = write_evaluation_report(out, subject.task, result, evaluations, n)
        cells = [[which, f"{row['reward']:.4f}", interval(row["reward_ci"])] for which, row in rows.items()]
        self.terminal.table(prompts, Table(["samples", "reward", "95 % interval"], cells, ""))
        self.terminal.line(f"report: {page}")
        return result


def _name(prompts: Path, task: Task) -> str:
    """Files of one name in two folders are told apart by what is in them."""
    contents = to_json({"text": list(task.evaluation_prompts.text), "category": list(task.categories)})
    return f"{(prompts.stem or 'prompts')[:_LONGEST_NAME]}-{hashlib.sha256(contents).hexdigest()[:8]}"


def tuned_of(run: Path, subject: Subject, same_base: bool = False) -> nn.Module:
    """The tuned model of a run, from its newest checkpoint. same_base: the pipeline must be the run's. Raises
    CheckpointError, InputError.
    """
    notes: list[str] = []
    checkpoint = load_newest(run / "checkpoints", notes.append)
    if checkpoint is None or subject.learner is None:
        raise CheckpointError(f"{run}: no checkpoint in it")
    with told_as_damage(run / "checkpoints"):
        if same_base:
            saved, now = (
                {key: identity[key] for key in ("pipeline",) if key in identity}
                for identity in (checkpoint.state["settings"], subject.identity())
            )
            check_same(saved, now, f"the run in {run}")
        subject.learner.load_weights(checkpoint.tensors)
    tuned: Any = subject.learner.sampled if subject.config.method == "ddpo" else subject.learner.ema
    return tuned.eval()
