"""Text-to-image runs from the command line: every kind of pipeline, every method, wrong input, other prompts."""

import json
import re

import diffusers
import numpy as np
import pytest
import torch
from pipeline_runs import config_file
from pipelines import call_arguments

from pgraft_fast import load_adapter
from pgraft_fast.cli import main
from pgraft_fast.pipelines.adapters.loading import read_adapter

pytestmark = pytest.mark.slow

pytest.importorskip("peft")


def one_line(capsys) -> str:
    errors = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("pgraft-fast: ") for line in errors) == 1
    return errors[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished P-GRAFT run on a tiny Stable Diffusion."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["finetune", str(config_file(folder)), "--json", str(folder / "result.json")]) == 0
    return folder


def test_result_and_files(finished, browse):
    result = json.loads((finished / "result.json").read_text())
    # Two rounds of 16 samples, 4 steps with guidance, and 4 optimiser steps on 4 rows each.
    assert result["spent"]["model_calls"] == 2 * (16 * 4 * 2 + 3 * 4 * 4)
    for key in ("before", "after"):
        assert set(result[key]["categories"]) == {"colour", "counting"}
        assert result[key]["diversity"]["vendi"] >= 1.0 and result[key]["fd_data"] is None
    assert sum(result["spent"]["seconds"].values()) == pytest.approx(result["spent"]["total_seconds"], rel=5e-3)
    assert result["spent"]["cpu_seconds"] > 0 and result["spent"]["joules"] is None
    page = finished / "run/report/index.html"
    browse(page, page.read_text().count("<img"))
    _, metadata = read_adapter(finished / "run/adapter")
    assert metadata.cut == 0.25 and metadata.reward == "jpeg_size" and metadata.rank == 2
    assert metadata.extra["method"] == "pgraft"


def test_the_saved_adapter_in_plain_diffusers(finished):
    """Handed over by load_adapter, by PGraftCallback, and at weight 0."""

    def drawn(pipe, **more):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        arguments = call_arguments("sd") | {"num_inference_steps": 8, "guidance_scale": 3.0} | more
        return pipe(**arguments, generator=generator).images

    def fresh():
        return diffusers.StableDiffusionPipeline.from_pretrained(finished / "sd", safety_checker=None)

    adapter = finished / "run/adapter"
    base, ours = drawn(fresh()), drawn(load_adapter(fresh(), adapter))
    plain = fresh()
    plain.load_lora_weights(adapter)
    by_callback = drawn(plain, callback_on_step_end=read_adapter(adapter)[1].callback())
    assert np.abs(ours - by_callback).max() <= 1 / 255 < np.abs(ours - base).max()
    assert np.array_equal(drawn(load_adapter(fresh(), adapter, weight=0.0)), base)


def test_again_changes_nothing_and_more_rounds_go_on(finished, tmp_path, capsys):
    before = (finished / "run/adapter/pytorch_lora_weights.safetensors").read_bytes()
    assert main(["finetune", str(finished / "config.toml")]) == 0
    assert "is finished: round 2" in capsys.readouterr().err
    assert (finished / "run/adapter/pytorch_lora_weights.safetensors").read_bytes() == before
    straight = tmp_path / "straight"
    straight.mkdir()
    assert main(["finetune", str(config_file(straight, rounds=1))]) == 0
    assert main(["finetune", str(config_file(straight, rounds=2))]) == 0
    assert "goes on after round 1" in capsys.readouterr().err
    assert (straight / "run/adapter/pytorch_lora_weights.safetensors").read_bytes() == before


# Runs of "sdxl" and "sd3" are in test_text_configs.py, too.
@pytest.mark.parametrize("name", [*(pytest.param(kind, marks=pytest.mark.faults) for kind in ("sdxl", "sd3")), "flux"])
def test_other_pipelines(tmp_path, name):
    config = config_file(tmp_path, name, rounds=1)
    assert main(["finetune", str(config)]) == 0
    assert read_adapter(tmp_path / "run/adapter")[1].cut == 0.25


@pytest.mark.parametrize(
    ("method", "more", "calls"),
    [
        ("graft", "", 8 * 4 * 2 + 3 * 4 * 2),
        # Three of four steps are drawn; each costs three calls, twice with guidance.
        ("ddpo", "", 8 * 4 * 2 + 3 * 2 * 8 * 3),
        ("ddpo", "[ddpo]\nvariant = 'score'\n", 8 * 4 * 2 + 3 * 2 * 8 * 3),
        # Three of four steps without guidance; the old policy and the reference are asked, too.
        ("nft", "", 8 * 4 * 2 + 5 * 8 * 3),
    ],
)
def test_other_methods(tmp_path, method, more, calls):
    config = config_file(tmp_path, rounds=1, top=f"method = '{method}'", more=more)
    config.write_text(config.read_text().replace("prompts = 4\n", "prompts = 2\n"))
    assert main(["finetune", str(config), "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["spent"]["model_calls"] == calls
    metadata = read_adapter(tmp_path / "run/adapter")[1]
    assert metadata.cut == 0.0 and metadata.cut_logsnr is None and metadata.extra["method"] == method


def test_all_weights(tmp_path):
    config = config_file(tmp_path, rounds=1)
    config.write_text(config.read_text().replace("rank = 2", "rank = 0"))
    assert main(["finetune", str(config)]) == 0
    assert (tmp_path / "run/model.safetensors").exists() and not (tmp_path / "run/adapter").exists()


def test_evaluate_sample_export_and_report(finished, tmp_path, capsys):
    run = str(finished / "run")
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a green cube", "tag": "colors"}\n{"prompt": "three cats", "tag": "counting"}\n')
    json_path = tmp_path / "told.json"
    assert main(["evaluate", run, "--prompts", str(other), "--samples", "8", "--json", str(json_path)]) == 0
    rows = json.loads(json_path.read_text())["rows"]
    assert set(rows) == {"base", "tuned"} and set(rows["tuned"]["categories"]) == {"colors", "counting"}
    assert rows["base"]["reward"] != rows["tuned"]["reward"]
    (page,) = (finished / "run").glob("evaluation-other-*/report/index.html")
    assert str(other) in page.read_text()
    for base in ([], ["--base"]):
        assert main(["sample", run, "--n", "3", "--out", str(tmp_path / "s.png"), *base]) == 0
    file = tmp_path / "kohya.safetensors"
    assert main(["export", run, "--out", str(file)]) == 0
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(finished / "sd", safety_checker=None)
    pipe.load_lora_weights(file)
    assert main(["report", run]) == 0
    assert main(["finetune", str(finished / "config.toml"), "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--prompts", str(tmp_path / "none.txt")]) == 2
    assert "prompts cannot be read" in one_line(capsys)


def test_evaluations_of_files_with_the_same_name(finished, tmp_path):
    """Each keeps its own folder, the held-out prompts of the run too; the same prompts again take theirs."""
    run, evaluations = finished / "run", {}
    for folder, text in (("a", "a green cube\n"), ("b", "three cats\n"), ("c", "a green cube\n")):
        file = tmp_path / folder / "held-out.txt"
        file.parent.mkdir()
        file.write_text(text)
        assert main(["evaluate", str(run), "--prompts", str(file), "--samples", "4"]) == 0
        evaluations[folder] = {path: path.read_bytes() for path in run.glob("evaluation-held-out-*/result.json")}
    assert main(["evaluate", str(run), "--samples", "4"]) == 0
    assert (run / "evaluation-held-out/result.json").exists()
    assert [len(files) for files in evaluations.values()] == [1, 2, 2]
    (first,) = evaluations["a"]
    assert evaluations["b"][first] == evaluations["a"][first]
    prompt_files = {json.loads(data)["prompts"] for data in evaluations["c"].values()}
    assert prompt_files == {str(tmp_path / "b/held-out.txt"), str(tmp_path / "c/held-out.txt")}


def test_a_prompt_file_with_a_name_as_long_as_names_can_be(finished, tmp_path):
    file = tmp_path / f"{'ü' * 125}.txt"
    file.write_text("a green cube\n")
    assert main(["evaluate", str(finished / "run"), "--prompts", str(file), "--samples", "4"]) == 0


def test_prompts_that_fill_the_budget(tmp_path, capsys):
    config = config_file(tmp_path, more="[budget]\nmodel_calls = 280\n")
    config.write_text(config.read_text().replace("prompts = 4\n", ""))
    assert main(["finetune", str(config), "--json", str(tmp_path / "result.json")]) == 0
    # A prompt takes 4 * 4 * 2 + 3 * 4 calls a round: 3 fit into 140.
    assert "3 prompts a round fill the budget" in capsys.readouterr().err
    spent = json.loads((tmp_path / "result.json").read_text())["spent"]["model_calls"]
    assert 0.9 * 280 < spent <= 280
    # A plan of an earlier version of the program stays, too.
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/plan.json").write_text(json.dumps({"prompts": 2, "asked": plan["identity"]}))
    assert main(["finetune", str(config), "--run", str(tmp_path / "earlier")]) == 0
    assert "2 prompts a round fill the budget" in capsys.readouterr().err
    config.write_text(config.read_text().replace("[budget]\nmodel_calls = 280", ""))
    assert main(["finetune", str(config), "--run", str(tmp_path / "other")]) == 2
    assert "sample.prompts is missing: give it, or a [budget]" in one_line(capsys)


def test_memory_presets(tmp_path):
    from pgraft_fast.commands.pipeline_config import read_pipeline_config

    config = config_file(tmp_path, rounds=1, top='memory = "8gb"')
    settings = read_pipeline_config(config, {})
    assert settings.model.dtype == "bf16" and settings.train.micro_batch == 1 and settings.train.checkpointing
    # What the file says stays.
    assert settings.sample.batch_size == 8
    config.write_text(config.read_text().replace("prompts = 4\n", "prompts = 2\n").replace("epochs = 2", "epochs = 1"))
    assert main(["finetune", str(config)]) == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'folder = "sd"',
            'folder = "none"\nrepository = "some/model"',
            r"none: no model_index.json; download some/model",
        ),
        ('folder = "sd"', "", r"model: give folder, or shipped, one of the two"),
        ('train = "prompts.txt"', "", r"prompts.train is missing: a file of prompts"),
        ('train = "prompts.txt"', 'train = "none.txt"', r"none.txt: prompts cannot be read \(No such file"),
        ('kind = "jpeg_size"', 'kind = "beauty"', r"rewards.0.*beauty"),
        ('kind = "jpeg_size"', 'kind = "task"\nname = "questions"', r"rewards.0.*questions"),
        ('kind = "jpeg_size"', 'kind = "pick_score"\nmodel = "none"', r"download yuvalkirstain/PickScore_v1"),
        ("height = 16", "height = 17", r"divisible by 8 but are 17 and 16"),
        ("rank = 2", 'rank = 2\ntargets = ["nothing"]', r"lora.targets=\['nothing'\]: no layer"),
        ('device = "cpu"', 'device = "cuda:9"', r"device='cuda:9' cannot be used"),
        ("k = 2", "k = 5", r"select.k=5 is more than sample.candidates=4"),
        ("rank = 2", "rnk = 2", r"lora.rnk is unknown; did you mean lora.rank\?"),
    ],
)
def test_wrong_configs(tmp_path, finished, capsys, old, new, message):
    for name in ("sd", "prompts.txt", "held_out.csv"):
        (tmp_path / name).symlink_to(finished / name)
    config = tmp_path / "config.toml"
    text = (finished / "config.toml").read_text().replace(str(finished / "run"), str(tmp_path / "run"))
    assert old in text
    config.write_text(text.replace(old, new, 1))
    assert main(["finetune", str(config)]) == 2
    assert re.search(message, one_line(capsys))


def test_joules_need_a_gpu(tmp_path, capsys):
    config = config_file(tmp_path, more="[budget]\njoules = 100.0\n")
    assert main(["finetune", str(config)]) == 2
    assert "energy is known of NVIDIA GPUs, not of cpu: limit gpu_hours or wall_seconds" in one_line(capsys)


def test_a_reward_that_fails_keeps_the_rounds(tmp_path, capsys):
    """The second round's reward raises: the run stops in one line, and goes on once it is mended."""
    (tmp_path / "mine.py").write_text(
        "import pathlib\n"
        "def reward(x, prompts, sample_ids):\n"
        f"    mended = pathlib.Path({str(tmp_path / 'ok')!r}).exists()\n"
        "    if 16 <= min(sample_ids) < 1 << 30 and not mended:\n"
        "        raise ValueError('out of order')\n"
        "    return x.flatten(1).mean(1)\n"
    )
    config = config_file(tmp_path, rounds=2, reward="callable", reward_more='function = "mine.py:reward"')
    config.write_text(config.read_text() + "[policy]\nretries = 0\n")
    assert main(["finetune", str(config)]) == 2
    line = one_line(capsys)
    assert "raised ValueError: out of order" in line and re.search(r"samples? 1[6-9]", line)
    (tmp_path / "ok").touch()
    assert main(["finetune", str(config)]) == 0
    assert "goes on after round 1" in capsys.readouterr().err
