"""`pgraft-fast report`: the report of a finished run, from what its folder holds."""

from typing import Any

from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.checkpoint import load_newest, tensors_from_bytes
from pgraft_fast.report import write_run_report
from pgraft_fast.tasks.evaluation import Evaluation


def rebuild_report(folder: str) -> dict[str, Any]:
    """Write run/report again. Raises InputError for a folder that holds no finished run."""
    run, result, config = read_run(folder)
    notes: list[str] = []
    subject = subject_of(config, notes.append)
    # The rewards are known.
    subject.close()
    evaluations = []
    for name in ("before.safetensors", f"after-{len(result['rounds']):06d}.safetensors"):
        path = run / "evaluation" / name
        try:
            stored = tensors_from_bytes(path.read_bytes(), path)
        except OSError as error:
            raise InputError(f"{run}: not a finished run ({name}: {error.strerror})") from error
        evaluations.append(Evaluation(stored["samples"], stored["rewards"], stored.get("condition")))
    checkpoint = load_newest(run / "checkpoints", notes.append)
    candidates = {} if checkpoint is None else checkpoint.tensors["candidates"]
    before, after = evaluations
    page = write_run_report(run, subject.task, subject.config, result, before, after, candidates)
    return {"report": str(page), "notes": notes}
