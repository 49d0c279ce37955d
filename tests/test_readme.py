"""Every code block of the README runs: Python as it stands, commands through the real command line or make."""

import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from pipeline_runs import config_file
from pipelines import build
from tiny import tiny_config

import pgraft_fast as pf
from pgraft_fast import cli
from pgraft_fast.commands.options import checked
from pgraft_fast.sampling import make_steps
from pgraft_fast.sampling.solvers import make_table
from pgraft_fast.schedulers.fused import FusedScheduler

pytest.importorskip("peft")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.S | re.M)
# Of the rest, commands are what is indented.
TEXT = re.sub(r"^```.*?^```$", "", README.replace("<commit>", "HEAD"), flags=re.S | re.M)
COMMANDS = [
    shlex.split(line, comments=True) for line in re.findall(r"^    ((?:make|\.venv/bin/pgraft-fast) .*)$", TEXT, re.M)
]
# The first words of commands that are carried out here, in this order, on tiny runs.
CARRIED_OUT = {
    "digits": ("finetune my.toml --reward", "sample runs/digits"),
    "text": ("finetune my.toml --dry-run", "finetune my.toml", "evaluate runs/my", "export runs/my"),
}


def ours() -> list[list[str]]:
    """The arguments of pgraft-fast."""
    return [words[1:] for words in COMMANDS if words[0].endswith("pgraft-fast")]


def of(beginning: str) -> list[str]:
    """The command that begins so; the shortest where several do."""
    return min((words for words in ours() if shlex.join(words).startswith(beginning)), key=len)


def test_every_block_is_known():
    fences = re.findall(r"^```(\w*)$", README, re.M)
    assert fences == ["python", ""] * len(PYTHON) and len(PYTHON) == 8
    indented = re.findall(r"^    (\S+) ", TEXT, re.M)
    assert set(indented) == {"make", ".venv/bin/pgraft-fast"} and len(indented) == len(COMMANDS) > 15


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_make_knows_its_targets(words):
    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("words", ours(), ids=" ".join)
def test_commands_are_understood(words, monkeypatch):
    """Parsed, and checked against the bounds; what they would do is left out."""
    if words == ["--help"]:
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        return
    called = []
    for command in cli.app._subcommands.values():
        stub = functools.wraps(command.target)(lambda *args, **named: called.append((args, named)))
        monkeypatch.setattr(command, "target", checked(stub))
    assert cli.main(words) == 0 and len(called) == 1


def test_commands_of_the_digits_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_config(tmp_path, rounds=1, run="runs/digits").rename("my.toml")
    Path("mine.py").write_text("def score(x):\n    return x.flatten(1).mean(1)\n")
    for beginning in CARRIED_OUT["digits"]:
        assert cli.main(of(beginning)) == 0
    assert Path("samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what the text-to-image blocks name: folder, my.toml, prompts.jsonl, and runs/my from the commands there."""
    place = tmp_path_factory.mktemp("readme")
    config = config_file(place, rounds=1)
    (place / "my.toml").write_text(config.read_text().replace(str(place / "run"), "runs/my"))
    (place / "folder").symlink_to(place / "sd")
    (place / "prompts.jsonl").write_text('{"prompt": "a red cube"}\n{"prompt": "a cat"}\n')
    before = Path.cwd()
    os.chdir(place)
    try:
        for beginning in CARRIED_OUT["text"]:
            assert cli.main(of(beginning)) == 0
    finally:
        os.chdir(before)
    return place


@pytest.mark.slow
def test_commands_of_the_text_to_image_run(folder):
    assert (folder / "my.safetensors").exists() and (folder / "runs/my/adapter").is_dir()
    assert list((folder / "runs/my").glob("evaluation-prompts-*/report/index.html"))


def block(part: str) -> str:
    """The only block with this in it."""
    (snippet,) = (text for text in PYTHON if part in text)
    return snippet


def plain() -> diffusers.StableDiffusionPipeline:
    pipe = build("sd")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **more) -> torch.Tensor:
    arguments = {"num_inference_steps": 4, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | more
    return pipe("a red circle", **arguments).images


def check_example(printed: str) -> None:
    before, after, kl = (float(number) for number in re.findall(r"\d\.\d+", printed))
    assert after > before + 0.01
    assert kl == pytest.approx(0.9877, abs=1e-4)


def test_the_example():
    """Line by line, with a quarter of the samples and of the steps."""
    code = block("pf.rollout")
    for long, short in (("n=256", "n=64"), ("view(16, 16)", "view(4, 16)"), ("steps=25", "steps=8")):
        assert long in code
        code = code.replace(long, short)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    check_example(printed.getvalue())


@pytest.mark.faults
def test_the_example_as_it_stands():
    done = subprocess.run([sys.executable, "-c", block("pf.rollout")], capture_output=True, text=True, check=True)
    check_example(done.stdout)


def test_a_loaded_adapter(folder, monkeypatch):
    """By load_adapter and in plain diffusers: the same pictures, others than the base's."""
    monkeypatch.chdir(folder)
    pipe, other = plain(), plain()
    exec(block('load_adapter(pipe, "'), {"pipe": pipe})
    names = {"pipe": other}
    exec(block("load_lora_weights"), names)
    assert names["level"] is not None
    by_callback = draw(other, callback_on_step_end=pf.PGraftCallback(cut_logsnr=names["level"]))
    by_adapter, base = draw(pipe), draw(plain())
    assert float((by_adapter - by_callback).abs().max()) <= 1 / 255
    assert float((by_adapter - base).abs().max()) > 1 / 255


def test_a_pipeline_is_tuned(tmp_path, monkeypatch):
    """As it stands, but for sizes."""
    monkeypatch.chdir(tmp_path)
    code = block("PGraftTrainer")
    small = "cut=0.25, steps=4, prompts=2, evaluate=4, epochs=1, batch_size=2"
    assert "cut=0.25" in code
    names = {"pipe": plain()}
    base = draw(names["pipe"])
    exec(code.replace("cut=0.25", small), names)
    assert names["result"].report.is_file()
    assert float((draw(names["pipe"]) - base).abs().max()) > 0.0


def test_an_accelerated_pipeline(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(block("pgraft_fast.accelerate(pipe)"), names)
    want = diffusers.StableDiffusionPipeline.from_pretrained("folder")
    assert isinstance(names["pipe"].scheduler, FusedScheduler)
    assert float((draw(names["pipe"]) - draw(want)).abs().max()) < 1e-5


def test_a_corrected_flow():
    generator = torch.Generator().manual_seed(0)
    names = {"pf": pf, "torch": torch, "velocity": lambda x, t: -0.5 * x, "shape": (2, 3)}
    names["x_0"] = torch.randn(64, 2, 3, generator=generator)
    code = block("pf.NoiseCorrector.fit").replace("fit(inv.noise)", "fit(inv.noise, settings=SHORT)")
    assert code != block("pf.NoiseCorrector.fit")
    from pgraft_fast.inverse_noise import FitSettings

    exec(code, names | {"SHORT": FitSettings(steps=20, batch_size=16)}, names)
    assert bool(names["inv"].converged.all()) and names["latents"].shape == (16, 2, 3)


def test_a_planned_cut():
    names: dict[str, object] = {}
    exec(block("plan_cut"), names)
    assert names["settings"].cut == names["plan"].cut in (0.0, 0.1, 0.25, 0.5)
    assert 0.0 < names["plan"].share <= 0.15 and names["plan"].outlooks[1].kept.share > 0.8


def test_a_fused_step():
    schedule = pf.Schedule.vp_linear()
    table = make_table(make_steps(schedule, schedule.grid(5), "ddpm", "epsilon")).coefficients.float()
    x = torch.randn(4, 1, 8, 8)
    names = {
        "x": x, "out": torch.randn_like(x), "out_null": torch.randn_like(x), "table": table, "step": torch.tensor(1),
        "ids": torch.arange(4),
    }  # fmt: skip
    exec(block("ops.solver_step"), names)
    assert names["x"].shape == x.shape and bool(torch.isfinite(names["x"]).all())


def test_every_name_is_there_in_a_fresh_process():
    """pf.ops and the like, which used to be there only after another import."""
    text = re.sub(r"pgraft_fast/\S+|from pgraft_fast\S+ import", "", README)
    names = set(re.findall(r"\b(?:pf|pgraft_fast)((?:\.[A-Za-z_]\w*)+)", text))
    assert {".ops.solver_step", ".rollout", ".Schedule.from_diffusers"} <= names
    code = (
        "import sys, pgraft_fast\n"
        "assert 'torch' not in sys.modules\n"
        f"for name in {sorted(names, key=lambda name: (not name.startswith('.ops'), name))!r}:\n"
        "    value = pgraft_fast\n"
        "    for part in name[1:].split('.'):\n"
        "        value = getattr(value, part)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("part", pf._PARTS)
def test_parts_are_named(part):
    assert getattr(pf, part).__name__ == f"pgraft_fast.{part}" and part in dir(pf)
