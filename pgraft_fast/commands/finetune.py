"""`pgraft-fast finetune`: a run from a config."""

from pathlib import Path
from typing import Any

from pgraft_fast.commands.config import RunConfig, checked
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.subjects import Config, subject_of
from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.files import json_of
from pgraft_fast.runs.run import CONFIG, RESULT, finish_run
from pgraft_fast.runs.terminal import Terminal


def finetune(config: Config, terminal: Terminal) -> dict[str, Any]:
    """Run, or go on with a run, to its end. Returns what result.json holds."""
    return finish_run(Path(config.run), lambda: subject_of(config, terminal.line), terminal)


def read_run(folder: str) -> tuple[Path, dict[str, Any], Config]:
    """(path, result, config) of a finished run. Raises InputError, CheckpointError.

    The folder may be anybody's: the config's own `run` is this folder, whatever it says, and code that it names as a
    reward is not run by this.
    """
    run = Path(folder)
    try:
        result = json_of((run / RESULT).read_bytes())
        data = json_of((run / CONFIG).read_bytes())
        of_text = "rewards" in data
        data["run"] = str(run)
    except OSError as error:
        raise InputError(f"{run}: not a finished run ({Path(error.filename).name}: {error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{run}: damaged ({error.__class__.__name__} in {CONFIG} or {RESULT})") from error
    # It may have been edited: sampling and evaluation follow it.
    source = str(run / CONFIG)
    config: Config = checked(PipelineConfig, data, source) if of_text else checked(RunConfig, data, source)
    with told_as_damage(run / RESULT):
        return run, dict(result), config.with_cut(float(result["cut_plan"]["cut"])) if config.plans_cut else config
