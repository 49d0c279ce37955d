"""Every config of a pipeline that is shipped runs on tiny models of the same classes, and says what to download."""

from pathlib import Path

import pytest
from pipelines import build
from reward_models import clip, encoder_decoder

import pgraft_fast
from pgraft_fast.cli import main
from pgraft_fast.commands.config import checked, read_toml
from pgraft_fast.commands.finetune import finetune
from pgraft_fast.commands.pipeline_config import PipelineConfig, apply_preset
from pgraft_fast.pipelines.adapters.loading import read_adapter
from pgraft_fast.runs.terminal import Terminal

pytest.importorskip("peft")
__all__ = ["clip", "encoder_decoder"]

CONFIGS = Path(pgraft_fast.__file__).parent / "configs"
# The class of each model, and what must be downloaded for it.
KINDS = {
    "sd2_vqascore": ("sd", "stabilityai/stable-diffusion-2-1-base"),
    "sdxl_pickscore": ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
    "sd35_pickscore": ("sd3", "stabilityai/stable-diffusion-3.5-medium"),
}
SMALL = {
    "model": {"device": "cpu", "dtype": "fp32", "height": 16, "width": 16},
    "sample": {"prompts": 2, "candidates": 4, "steps": 3, "batch_size": 8},
    "train": {"rounds": 2, "epochs": 1, "batch_size": 4, "micro_batch": 2},
    "lora": {"rank": 2},
    "evaluate": {"samples": 4},
    "budget": {"wall_seconds": 600.0},
}


def text_configs() -> list[str]:
    return [path.stem for path in sorted(CONFIGS.glob("*.toml")) if "rewards" in read_toml(path, {})]


def test_all_of_them_are_tried():
    assert set(text_configs()) == {*KINDS, "shapes"}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_rounds_on_tiny_models(tmp_path, name, clip, encoder_decoder):
    kind, _ = KINDS[name]
    build(kind).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("".join(f"a cat number {n}\n" for n in range(20)))
    data = read_toml(CONFIGS / f"{name}.toml", {})
    for table, values in SMALL.items():
        data[table] = {**data.get(table, {}), **values}
    if "max_sequence_length" in data["model"]:
        data["model"]["max_sequence_length"] = 64
    data["budget"].pop("gpu_hours")
    data["run"] = str(tmp_path / "run")
    data["model"]["folder"] = str(tmp_path / "model")
    data["prompts"] = {"train": str(tmp_path / "prompts.txt")}
    for reward in data["rewards"]:
        reward["model"] = str(encoder_decoder("InstructBlip") if reward["kind"] == "vqa_score" else clip)
        reward["dtype"] = "fp32"
    apply_preset(data)
    result = finetune(checked(PipelineConfig, data, name), Terminal())
    assert len(result["rounds"]) == 2 and all(entry["steps"] > 0 for entry in result["rounds"])
    assert (tmp_path / "run/adapter/pytorch_lora_weights.safetensors").exists()
    assert read_adapter(tmp_path / "run/adapter")[1].cut == data["train"]["cut"]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_to_download_is_said(name, capsys, tmp_path):
    assert main(["finetune", str(CONFIGS / f"{name}.toml"), "--run", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and KINDS[name][1] in line and "model.folder" in line
