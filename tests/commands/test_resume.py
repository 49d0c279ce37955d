"""A run goes on only as the same run: what it depends on, by content, and what may change."""

import json
import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from hostile import manifest
from PIL import Image
from pipeline_runs import config_file
from pipelines import build
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from pgraft_fast.cli import main

pytestmark = pytest.mark.slow

pytest.importorskip("peft")

REWARD = """
import json, os, pathlib, sys
FOLDER = pathlib.Path(sys._getframe().f_code.co_filename).parent
sys.path.insert(0, str(FOLDER))
import near_helper as helper
from near_package import scale
def reward(samples, prompts, sample_ids):
    # Candidates have lower numbers than the samples of an evaluation.
    assert "STOP_ROUNDS" not in os.environ or min(sample_ids) > 1 << 30
    offset = json.loads((FOLDER / "numbers.json").read_text())
    return scale.of(helper.mean(samples)) + offset
"""


def write_reward(folder: Path) -> None:
    (folder / "near_package").mkdir()
    (folder / "mine.py").write_text(REWARD)
    (folder / "near_helper.py").write_text("def mean(x):\n    return x.flatten(1).mean(1)\n")
    (folder / "near_package/scale.py").write_text("def of(x):\n    from . import factor\n    return factor.TWO * x\n")
    (folder / "near_package/factor.py").write_text("TWO = 2.0\n")
    (folder / "numbers.json").write_text("1.0")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Folder of a run of one round, with a reward of several files and pictures to compare with."""
    folder = tmp_path_factory.mktemp("begun")
    write_reward(folder)
    (folder / "pictures").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 9, 9)).save(folder / f"pictures/{number}.bmp")
    path = config_file(folder, rounds=1, reward="callable", reward_more='function = "mine.py:reward"')
    path.write_text(path.read_text().replace("samples = 8", 'samples = 8\nreference = "pictures"'))
    assert main(["finetune", str(path)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """What the reward brings along is gone after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("near_")]:
        del sys.modules[name]


@pytest.fixture
def copied(begun, tmp_path):
    """All of it elsewhere, asked for a second round. Paths are none of a run's identity."""
    folder = tmp_path / "copied"
    shutil.copytree(begun, folder)
    path = folder / "config.toml"
    path.write_text(path.read_text().replace(str(begun), str(folder)).replace("rounds = 1", "rounds = 2"))
    return folder


def goes_on(folder, capsys, *options) -> str:
    """What was said; it must have gone on."""
    status = main(["finetune", str(folder / "config.toml"), *options])
    messages = capsys.readouterr().err
    assert status == 0 and "goes on after round 1" in messages
    return messages


def refusal(folder, capsys) -> str:
    """The line; checkpoints and adapter are as before."""
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.safetensors")}
    assert main(["finetune", str(folder / "config.toml")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pgraft-fast: ")]
    assert len(lines) == 1
    assert before == {path: path.read_bytes() for path in (folder / "run").rglob("*.safetensors")}
    return lines[0]


def in_config(old, new):
    def change(folder):
        path = folder / "config.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def in_json(name, **values):
    def change(folder):
        path = folder / "sd" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def one_weight(name):
    """The last value of one tensor, by a thousandth: between those that a sample of them would see."""

    def change(folder):
        path = folder / "sd" / name
        tensors = load_file(path)
        key = max(tensors, key=lambda candidate: tensors[candidate].numel())
        tensors[key].view(-1)[-1] += 1e-3
        save_file(tensors, path, {"format": "pt"})

    return change


def swapped_words(folder):
    path = folder / "sd/tokenizer/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["a</w>"], words["b</w>"] = words["b</w>"], words["a</w>"]
    path.write_text(json.dumps(tokenizer))
    vocab = folder / "sd/tokenizer/vocab.json"
    if vocab.exists():
        vocab.write_text(json.dumps(words))


def appended(name, text):
    def change(folder):
        with (folder / name).open("a") as file:
            file.write(text)

    return change


def another_picture(folder):
    path = folder / "pictures/0.bmp"
    size = path.stat().st_size
    Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    assert path.stat().st_size == size


def other_categories(folder):
    (folder / "held_out.csv").write_text("prompt,category\na red cube,x\ntwo cats,counting\na blue cube,colour\n")


# Changes that are made together, and what is told of each: one line names them all.
REFUSED = {
    "texts": [
        (appended("held_out.csv", "one dog,counting\n"),
         r"held-out prompts.text='4 prompts, sha256 [0-9a-f]{12}' differs from '3 prompts, sha256 [0-9a-f]{12}'",
         r"held-out prompts.category="),
        (appended("prompts.txt", "one more thing\n"), r"training prompts.text='13 prompts",
         r"training prompts.condition="),
        (in_json("vae/config.json", scaling_factor=0.2), r"pipeline.vae.scaling_factor=0.2 differs from its default"),
        (appended("mine.py", "# changed\n"), r"rewards.0.code="),
        (in_config("height = 16", 'height = 16\nnegative_prompt = ""'), r"model.negative_prompt='' differs from None"),
    ],
    "weights": [
        (other_categories, r"held-out prompts.category="),
        (in_json("scheduler/scheduler_config.json", timestep_spacing="trailing"),
         r"scheduler.timestep_spacing='trailing' differs from its default"),
        (one_weight("vae/diffusion_pytorch_model.safetensors"), r"pipeline.vae.weights='[0-9a-f]{12}' differs"),
        (one_weight("unet/diffusion_pytorch_model.safetensors"), r"pipeline.unet.weights="),
        (one_weight("text_encoder/model.safetensors"), r"pipeline.text_encoder.weights="),
        (appended("near_helper.py", "# changed\n"), r"rewards.0.code="),
        (another_picture, r"evaluation.reference="),
    ],
    "settings": [
        (in_json("text_encoder/config.json", hidden_act="gelu"), r"pipeline.text_encoder.*hidden_act"),
        (swapped_words, r"pipeline.tokenizer.vocabulary="),
        (appended("near_package/factor.py", "TWO = 3.0\n"), r"rewards.0.code="),
        (in_config("guidance = 3.0", "guidance = 2.0"), r"sample.guidance=2.0 differs from 3.0"),
        (in_config('kind = "callable"', 'kind = "callable"\nweight = 2.0'), r"rewards.0.weight=2.0 differs from 1.0"),
    ],
    "numbers": [
        (lambda folder: (folder / "numbers.json").write_text("2.0"), r"rewards.0.code="),
        (in_json("scheduler/scheduler_config.json", beta_end=0.013),
         r"pipeline.scheduler.beta_end=0.013 differs from 0.012", r"schedule.sha256="),
    ],
    "precision": [
        (in_config('device = "cpu"', 'device = "cpu"\ndtype = "bf16"'), r"model.dtype='bf16' differs from 'fp32'",
         *(rf"pipeline.{part}.weights=" for part in ("text_encoder", "unet", "vae"))),
    ],
}  # fmt: skip


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_what_a_result_depends_on_is_refused_by_name(copied, capsys, changes):
    for change, *_ in changes:
        change(copied)
    line = refusal(copied, capsys)
    patterns = [pattern for _, *each in changes for pattern in each]
    for pattern in patterns:
        assert re.search(pattern, line), (pattern, line)
    assert line.count(" differs from ") == len(patterns), line
    assert re.search(r"of the run in .*run; set it back or use another folder$", line)


def resaved(folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    shutil.rmtree(folder / "sd")
    pipe.save_pretrained(folder / "sd", variant="fp16", max_shard_size="20KB")


def all_that_may(folder):
    path = folder / "config.toml"
    text = path.read_text().replace("batch_size = 8", "batch_size = 5\noverlap = false", 1)
    text = text.replace("[train]", "[train]\nmicro_batch = 2\ncheckpointing = true").replace(
        "samples = 8", "samples = 12"
    )
    text = text.replace('device = "cpu"', 'device = "auto"\nvae_slice = 1')
    text = text.replace('kind = "callable"', 'kind = "callable"\nbatch_size = 3')
    path.write_text(text + "[policy]\nretries = 0\n[log]\ntensorboard = false\n[budget]\nwall_seconds = 600.0\n")


def elsewhere(folder):
    for old, new in (("sd", "model"), ("prompts.txt", "words.txt"), ("pictures", "compared")):
        os.rename(folder / old, folder / new)
    (folder / "code").mkdir()
    for name in ("mine.py", "near_helper.py", "near_package", "numbers.json"):
        os.rename(folder / name, folder / "code" / name)
    path = folder / "config.toml"
    text = path.read_text().replace('folder = "sd"', 'folder = "model"').replace("prompts.txt", "words.txt")
    path.write_text(text.replace('"pictures"', '"compared"').replace("mine.py:", "code/mine.py:"))


def test_what_may_change_goes_on(copied, capsys):
    """All of it in one go; another version is told. Of an older record nothing can be said."""
    for change in (resaved, all_that_may, elsewhere):
        change(copied)
    state = copied / "run/checkpoints/round-000001/state.json"
    rewrite(state, lambda content: content["versions"].update(torch="1.0"))
    assert "begun with other versions (torch 1.0 -> " in goes_on(copied, capsys)
    for path in (copied / "run/checkpoints").glob("*/state.json"):
        rewrite(path, lambda content: content["settings"].pop("held-out prompts"))
    assert "was begun by another version, which tells other things of it (held-out prompts)" in refusal(copied, capsys)


def rewrite(path, change):
    """A file of a checkpoint, its manifest with it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    manifest(path.parent)


def test_an_evaluation_before_the_first_round_is_not_taken_for_another(copied, begun, capsys, monkeypatch):
    """Stopped before a checkpoint was there: with other prompts all begins anew, with the same it goes on."""
    shutil.rmtree(copied / "run")
    path, held_out = copied / "config.toml", copied / "held_out.csv"
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 1") + "[policy]\nretries = 0\n")
    own = held_out.read_text()
    held_out.write_text("prompt,category\na green cube,colour\nsix dogs,counting\na hat,colour\n")
    monkeypatch.setenv("STOP_ROUNDS", "1")
    assert main(["finetune", str(path)]) == 2
    before = copied / "run/evaluation/before.safetensors"
    first = before.read_bytes()
    assert main(["finetune", str(path)]) == 2 and before.read_bytes() == first
    assert not list((copied / "run").glob("**/round-*"))
    monkeypatch.delenv("STOP_ROUNDS")
    held_out.write_text(own)
    assert main(["finetune", str(path)]) == 0
    actual, wanted = (json.loads((folder / "run/result.json").read_text()) for folder in (copied, begun))
    assert actual["before"] == wanted["before"] and actual["after"] == wanted["after"]


def changed_reward(path: Path) -> None:
    """One bit of a stored reward, with which the file still reads well."""
    tensors = load_file(path)
    tensors["rewards"].view(torch.int32)[0] ^= 1
    save_file(tensors, path)


def test_a_changed_evaluation_is_seen_and_drawn_again(copied, begun, capsys):
    before, after = (copied / f"run/evaluation/{name}.safetensors" for name in ("before", "after-000001"))
    own = before.read_bytes()
    changed_reward(after)
    assert main(["report", str(copied / "run")]) == 2
    line = f"{after}: damaged, or of another version (its contents do not match their hash)"
    assert f"pgraft-fast: {line}" in capsys.readouterr().err
    changed_reward(before)
    assert f"{before}: damaged, or of another version" in goes_on(copied, capsys)
    assert before.read_bytes() == own
    actual, wanted = (json.loads((folder / "run/result.json").read_text()) for folder in (copied, begun))
    assert actual["before"] == wanted["before"]


def test_evaluate_refuses_another_pipeline(copied, capsys):
    one_weight("vae/diffusion_pytorch_model.safetensors")(copied)
    path = copied / "run/config.json"
    config = json.loads(path.read_text())
    config["model"]["folder"] = str(copied / "sd")
    path.write_text(json.dumps(config))
    assert main(["evaluate", str(copied / "run"), "--trust"]) == 2
    assert "pipeline.vae.weights=" in capsys.readouterr().err


def test_digits(tmp_path, capsys):
    """The reward's neighbours, the data it names; where it lies and how much is drawn at once may change."""
    write_reward(tmp_path)
    more = '[task]\nreward = "mine.py:reward"\n'
    config = tiny_config(tmp_path, rounds=1, more=more)
    assert main(["finetune", str(config)]) == 0
    (tmp_path / "moved").mkdir()
    for name in ("mine.py", "near_helper.py", "near_package", "numbers.json"):
        os.rename(tmp_path / name, tmp_path / "moved" / name)
    config = tiny_config(tmp_path, rounds=2, more=more.replace("mine.py", "moved/mine.py"))
    config.write_text(config.read_text().replace("[sample]", "[sample]\nbatch_size = 3"))
    assert main(["finetune", str(config)]) == 0
    assert "goes on after round 1" in capsys.readouterr().err
    (tmp_path / "moved/near_helper.py").write_text("def mean(x):\n    return -x.flatten(1).mean(1)\n")
    assert main(["finetune", str(config)]) == 2
    assert re.search(r"reward_sha256='[0-9a-f]{12}' differs from", capsys.readouterr().err)


def test_commands_and_urls():
    from pgraft_fast.commands.reward_contents import reward_contents
    from pgraft_fast.commands.reward_settings import CommandSettings, HttpSettings

    url = HttpSettings(kind="http", url="http://name:secret@host:80/score")
    assert reward_contents([url])[0]["url"] == "http://host:80/score"
    plain = CommandSettings(kind="command", command="python3 -m scorer --level 3", start_seconds=5.0)
    other = CommandSettings(kind="command", command=["python3", "-m", "scorer", "--level", "3"], batch_size=4)
    assert reward_contents([plain]) == reward_contents([other])


def test_files_of_a_command_and_of_a_model_count(tmp_path):
    from pgraft_fast.commands.reward_contents import reward_contents
    from pgraft_fast.commands.reward_settings import ClipScoreSettings, CommandSettings

    write_reward(tmp_path)
    (tmp_path / "serve.py").write_text("pass\n")
    command = CommandSettings(kind="command", command=f"python3 {tmp_path}/serve.py {tmp_path}/mine.py:reward")
    model = ClipScoreSettings(kind="clip_score", model=str(tmp_path / "clip"))
    build("sd").text_encoder.save_pretrained(tmp_path / "clip")
    contents = [reward_contents([command, model])]
    for name in ("serve.py", "near_helper.py", "near_package/factor.py", "clip/config.json"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        contents.append(reward_contents([command, model]))
    assert [earlier[0] != other[0] for earlier, other in pairwise(contents)] == [True, True, True, False]
    assert [earlier[1] != other[1] for earlier, other in pairwise(contents)] == [False, False, False, True]
