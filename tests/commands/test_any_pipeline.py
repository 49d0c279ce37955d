"""Configs of pipelines that no code names: video, audio, and pictures that start from a picture."""

import json

import numpy as np
import pytest
import torch
from every_pipeline import build, call_of
from PIL import Image
from repeats import repeats
from safetensors.torch import load_file

from pgraft_fast.cli import main
from pgraft_fast.pipelines.adapters.files import read_adapter

pytestmark = pytest.mark.slow

REWARD = """
import numpy as np


def loudness(media, prompts, rate=None):
    assert all(isinstance(one, np.ndarray) and one.ndim in (2, 4) for one in media) and len(media) == len(prompts)
    return [float(np.abs(one.astype(np.float64)).mean()) for one in media]


def brightness(pictures, prompts):
    assert pictures.ndim == 4 and pictures.shape[1] == 3 and float(pictures.min()) >= -1.0
    return pictures.mean(dim=(1, 2, 3))
"""
TEXT = """
run = "{run}"
[model]
folder = "model"
device = "cpu"
{model}
[model.call]
{call}
[prompts]
train = "prompts.txt"
[[rewards]]
{reward}
[sample]
prompts = 2
candidates = 2
steps = 4
[select]
k = 1
[train]
cut = 0.5
batch_size = 2
[lora]
rank = 2
[evaluate]
samples = 4
"""


def config(folder, name, reward, model="", call=None):
    build(name).save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("a red cube\ntwo cats\na dog\n")
    (folder / "mine.py").write_text(REWARD)
    call = {key: value for key, value in call_of(name).items() if key not in ("image",)} if call is None else call
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in call.items())
    path = folder / "config.toml"
    path.write_text(TEXT.format(run=folder / "run", model=model, call=lines, reward=reward))
    return path


def ours(name):
    return f'kind = "callable"\nfunction = "mine.py:{name}"'


@pytest.mark.parametrize("name", ["wan", *repeats("audioldm2")])
def test_video_and_audio(tmp_path, capsys, name):
    path = config(tmp_path, name, ours("loudness"))
    assert main(["finetune", str(path), "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["spent"]["model_calls"] > 0 and len(result["rounds"]) == 1
    assert read_adapter(tmp_path / "run/adapter")[1].cut == 0.5
    drawn = {}
    for which in ("--base", "--no-base"):
        out = tmp_path / f"{which}.safetensors"
        assert main(["sample", str(tmp_path / "run"), which, "--n", "2", "--out", str(out)]) == 0
        drawn[which] = load_file(out)["samples"]
    assert drawn["--base"].ndim == (5 if name == "wan" else 3) and len(drawn["--base"]) == 2
    assert main(["sample", str(tmp_path / "run"), "--n", "2", "--out", str(tmp_path / "out.png")]) == 0
    assert Image.open(tmp_path / "out.png").size[0] > 0
    assert main(["evaluate", str(tmp_path / "run"), "--samples", "2", "--trust"]) == 0
    capsys.readouterr()


def test_a_picture_to_start_from(tmp_path, capsys):
    """Its file lies beside the config; another one is another run."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    call = {"image": "start.png", "strength": 0.5}
    path = config(tmp_path, "sd_img2img", ours("brightness"), 'negative_prompt = "dark"', call)
    assert main(["finetune", str(path)]) == 0
    Image.fromarray(255 - pixels).save(tmp_path / "start.png")
    assert main(["finetune", str(path)]) == 2
    assert "call=" in capsys.readouterr().err


def test_arguments_of_each_prompt(tmp_path, capsys):
    """Columns of the prompt file: a picture and a strength of its own for each."""
    for number in range(3):
        Image.fromarray(np.full((16, 16, 3), 80 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    path = config(tmp_path, "sd_img2img", ours("brightness"), call={})
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": "a cube", "image": f"{n}.png", "strength": 0.5}) + "\n" for n in range(3))
    )
    text = path.read_text().replace('train = "prompts.txt"', 'train = "prompts.jsonl"\ncolumns = ["image", "strength"]')
    path.write_text(text)
    assert main(["finetune", str(path)]) == 0
    out = tmp_path / "out.safetensors"
    assert main(["sample", str(tmp_path / "run"), "--base", "--n", "1", "--out", str(out)]) == 0
    pipe = build("sd_img2img")
    generator = torch.Generator().manual_seed(0)
    drawn = [
        pipe("a cube", image=Image.open(tmp_path / f"{n}.png"), strength=0.5, num_inference_steps=4,
             generator=generator.manual_seed(0), output_type="pt").images[0] * 2.0 - 1.0
        for n in range(3)
    ]  # fmt: skip
    # One of the three is held out.
    near = [float((sample - load_file(out)["samples"][0]).abs().max()) for sample in drawn]
    assert min(near) < 1e-5 < sorted(near)[1]
    assert main(["sample", str(tmp_path / "run"), "--prompt", "a dog"]) == 2
    assert "come with image, strength; leave it out" in capsys.readouterr().err
    path.write_text(text.replace('"strength"]', '"strenght"]'))
    assert main(["finetune", str(path)]) == 2
    assert "prompt 'a cube': it has no field 'strenght'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reward", "model", "call", "line"),
    [
        ("wan", 'kind = "jpeg_size"', "", None,
         "rewards.0.kind = 'jpeg_size' takes pictures, the pipeline makes video"),
        ("wan", ours("loudness"), "max_sequence_length = 16", {"max_sequence_length": 16},
         "model.call: max_sequence_length is given in [model], too; give it once"),
        ("ddim", ours("brightness"), "height = 16", {},
         "model.height: DDIMPipeline has no such argument; leave it out"),
        ("sd", ours("brightness"), "", {"image": "start.png"}, "cannot be read as a picture"),
        ("sd", ours("brightness"), "", {"hight": 16}, "call: StableDiffusionPipeline takes no hight"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, capsys, name, reward, model, call, line):
    assert main(["finetune", str(config(tmp_path, name, reward, model, call))]) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in last_line
