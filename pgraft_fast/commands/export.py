"""`pgraft-fast export`: the adapter of a run in another format."""

from pathlib import Path
from typing import Any, Literal

from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.adapters.files import read_adapter, save_adapter
from pgraft_fast.runs.pipeline_run import ADAPTER


def export(run: Path, out: Path, format: Literal["diffusers", "kohya"]) -> dict[str, Any]:
    """Raises InputError where the run has no adapter."""
    from pgraft_fast.commands.evaluate_pipeline import tuned_of
    from pgraft_fast.pipelines.learners import EMA, TUNED

    _, _, config = read_run(str(run))
    if not isinstance(config, PipelineConfig) or config.lora.rank == 0:
        raise InputError(f"{run}: no adapter in it; only runs on a pipeline with a LoRA have one")
    metadata = read_adapter(run / ADAPTER)[1]
    subject = subject_of(config, lambda text: None, scores=False)
    try:
        denoiser: Any = tuned_of(run, subject)
        name = TUNED if config.method == "ddpo" else EMA
        path = save_adapter(out, denoiser.net, metadata, adapter_name=name, format=format)
    finally:
        subject.close()
    return {"out": str(path), "format": format}
