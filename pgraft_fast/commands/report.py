"""`pgraft-fast report`: the report of a finished run, from what its folder holds."""

from pathlib import Path
from typing import Any

from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.files import inside
from pgraft_fast.finetune.checkpoint import load_newest
from pgraft_fast.report import write_run_report
from pgraft_fast.runs.evaluation_file import read_evaluation
from pgraft_fast.runs.subject import Subject


def rebuild_report(folder: str) -> dict[str, Any]:
    """Write run/report again. Raises InputError for a folder that holds no finished run."""
    run, result, config = read_run(folder)
    notes: list[str] = []
    # The rewards are known.
    subject = subject_of(config, notes.append, scores=False)
    subject.close()
    with told_as_damage(run):
        return {"report": str(_rebuilt(run, result, subject, notes)), "notes": notes}


def _rebuilt(run: Path, result: dict[str, Any], subject: Subject, notes: list[str]) -> Path:
    evaluations = []
    for name in ("before.safetensors", f"after-{len(result['rounds']):06d}.safetensors"):
        path = run / "evaluation" / name
        try:
            evaluations.append(read_evaluation(path)[0])
        except OSError as error:
            raise InputError(f"{run}: not a finished run ({name}: {error.strerror})") from error
    checkpoint = load_newest(run / "checkpoints", notes.append)
    candidates = {} if checkpoint is None else checkpoint.tensors["candidates"]
    before, after = evaluations
    inside(run, run / "report" / "index.html")
    return write_run_report(run, subject.task, subject.config, result, before, after, candidates)
