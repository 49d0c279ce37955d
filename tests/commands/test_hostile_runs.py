"""Run folders and prompts that somebody else made: commands run no code of theirs, write nowhere else, and end in one
line; a report shows what a prompt holds and does not obey it.
"""

import json
import os
import random
import shutil
from pathlib import Path

import hostile
import pytest
from pipeline_runs import config_file
from taken_apart import Page
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.errors import printable

pytestmark = pytest.mark.slow

COMMANDS = (["report"], ["report"], ["sample", "--n", "2", "--steps", "2", "--out", "s.png"], ["export", "--out", "x"])
VALUES = (None, [], {}, "", "x", -1, 10**40, [[]], {"a": []}, "../..", True, 1e308, *hostile.TERMINAL, *hostile.MARKUP)
FILES = (
    "model.safetensors", "evaluation/before.safetensors", "evaluation/after-000001.safetensors", "result.json",
    "config.json", "checkpoints/round-000001/state.json", "checkpoints/round-000001/candidates.safetensors",
)  # fmt: skip


def lines_of(capsys):
    # Bars of libraries begin with a carriage return.
    lines = [line for line in capsys.readouterr().err.split("\n") if "it/s]" not in line]
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    return [line for line in lines if line]


def ends(arguments, capsys):
    """The status; what is refused is refused in one line."""
    capsys.readouterr()
    status = main(arguments)
    lines = lines_of(capsys)
    assert status in (0, 2), (arguments, lines[-3:])
    if status == 2:
        assert sum(line.startswith("pgraft-fast: ") for line in lines) == 1 and lines[-1].startswith("pgraft-fast: ")
        assert len(lines[-1]) < 2000
    return status


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of digits."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["finetune", str(tiny_config(folder, rounds=1))]) == 0
    return folder / "run"


def places(value, path=()):
    """Of every value in JSON."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_value(value, path, new):
    head, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[head] = with_value(value[head], rest, new) if rest else new
    return copy


def edit(draw, run):
    """One file becomes a hostile one, or one value of it another."""
    victim = run / draw.choice(FILES)
    if victim.suffix == ".json" and draw.random() < 0.7:
        data = json.loads(victim.read_bytes())
        if draw.random() < 0.1:
            # A key that is not there any more.
            del data[draw.choice(sorted(data))]
        else:
            data = with_value(data, draw.choice(list(places(data))), draw.choice(VALUES))
        victim.write_text(json.dumps(data))
    else:
        victim.write_bytes(hostile.MAKERS[draw.choice(sorted(hostile.MAKERS))]())
    if "checkpoints" in victim.parts:
        hostile.manifest(victim.parent)


def hostile_runs(finished, folder, seeds, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    outside = folder / "outside"
    outside.mkdir()
    hostile.aim(outside / "canary")
    endings = []
    for seed in seeds:
        draw, run = random.Random(seed), outside / "a" / "b" / "run"
        shutil.copytree(finished, run)
        edit(draw, run)
        command = draw.choice(COMMANDS)
        endings.append(ends([command[0], str(run), *command[1:]], capsys))
        assert not hostile.ran(), seed
        assert [path.relative_to(outside).as_posix() for path in outside.glob("*/*/*")] == ["a/b/run"], seed
        assert {path.name for path in folder.iterdir()} <= {"outside", "s.png"}, seed
        if (run / "report").exists():
            Page(run / "report/index.html")
        shutil.rmtree(outside / "a")
    return endings


def test_some_hostile_run_folders(finished, tmp_path, capsys, monkeypatch):
    assert 2 in hostile_runs(finished, tmp_path, range(12), capsys, monkeypatch)


@pytest.mark.faults
def test_two_hundred_hostile_run_folders(finished, tmp_path, capsys, monkeypatch):
    endings = hostile_runs(finished, tmp_path, range(1000, 1200), capsys, monkeypatch)
    assert endings.count(2) > 50


def test_the_reward_of_a_run_folder_is_not_run(finished, tmp_path, capsys):
    """By commands that ask for no reward, whatever its config names."""
    hostile.aim(tmp_path / "canary")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (tmp_path / "evil.py").write_bytes(hostile.MAKERS["python"]() + b"def f(x): return x\n")
    config = json.loads((run / "config.json").read_bytes())
    config["task"]["reward"] = f"{tmp_path / 'evil.py'}:f"
    config["run"] = str(tmp_path / "elsewhere")
    (run / "config.json").write_text(json.dumps(config))
    assert ends(["report", str(run)], capsys) == 0
    assert ends(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(tmp_path / "s.png")], capsys) == 0
    assert not hostile.ran() and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("link", ["report", "report/index.html", "report/.tmp-index.html", ".tmp-result.json"])
def test_links_are_not_written_through(finished, tmp_path, capsys, link):
    run, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(finished, run)
    secret.mkdir() if link == "report" else secret.write_text("mine")
    if (run / link).is_dir():
        shutil.rmtree(run / link)
    (run / link).unlink(missing_ok=True)
    (run / link).symlink_to(secret)
    assert ends(["report", str(run)], capsys) == (2 if link in ("report", "report/index.html") else 0)
    assert list(secret.iterdir()) == [] if secret.is_dir() else secret.read_text() == "mine"


HOSTILE = [*hostile.TERMINAL, *hostile.MARKUP]
SOME = HOSTILE[::2]


@pytest.fixture(scope="module")
def of_prompts(tmp_path_factory):
    """Folder of a finished run on a pipeline whose prompts, categories, reward and folder are hostile."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("prompts") / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    (folder / "mine.py").write_text("def reward(x, prompts):\n    return x.flatten(1).mean(1)\n")
    config = config_file(folder, rounds=1, reward="callable", reward_more='function = "mine.py:reward"')
    texts = [text.replace("\x00", "").replace("\r", " ") for text in SOME]
    (folder / "prompts.txt").write_text("\n".join(" ".join(text.splitlines()) for text in texts))
    rows = [{"prompt": text, "category": other} for text, other in zip(SOME, SOME[::-1], strict=True)]
    (folder / "held_out.json").write_text(json.dumps(rows))
    config.write_text(
        config.read_text().replace("held_out.csv", "held_out.json").replace("samples = 8", f"samples = {4 * len(SOME)}")
    )
    return config


@pytest.mark.faults
def test_a_report_shows_hostile_prompts(of_prompts, capsys):
    assert ends(["finetune", str(of_prompts)], capsys) == 0
    run = of_prompts.parent / "run"
    page = Page(run / "report/index.html")
    told = json.loads((run / "result.json").read_bytes())
    assert set(told["before"]["categories"]) == {text.strip() for text in SOME}
    for text in SOME:
        # As a text, whole, with what no browser would show written out.
        assert printable(text) in page.text, text
    assert ends(["report", str(run)], capsys) == 0
    Page(run / "report/index.html")
    # Its reward is code, which a run folder may name at will.
    hostile.aim(of_prompts.parent / "canary")
    (of_prompts.parent / "mine.py").write_bytes(
        hostile.MAKERS["python"]() + b"def reward(x, prompts):\n    return x.flatten(1).mean(1)\n"
    )
    for command in (["report"], ["export", "--out", str(run / "x.safetensors")], ["evaluate", "--samples", "8"]):
        assert ends([command[0], str(run), *command[1:]], capsys) == (2 if command[0] == "evaluate" else 0)
        assert not hostile.ran(), command
    assert ends(["evaluate", str(run), "--samples", "8", "--trust"], capsys) == 0
    assert hostile.ran()
    Page(run / "evaluation-held-out/report/index.html")


INDEX = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.38.0"}


@pytest.mark.parametrize(
    "entries",
    [
        {"unet": ["os", "system"]}, {"unet": ["evil", "Net"]}, {"unet": ["evil.inner", "Net"]},
        {"../unet": ["diffusers", "X"]}, {"unet": ["diffusers", "__import__('os')"]}, {"_class_name": ["evil", "Pipe"]},
        {"_class_name": "os"}, {"_class_name": "DiffusionPipeline"}, {"_class_name": "\x1b[2J"}, {"_class_name": None},
        {"unet": ["diffusers", "UNet2DConditionModel"]},
    ],
)  # fmt: skip
def test_a_pipeline_that_names_code(tmp_path, capsys, monkeypatch, entries):
    """Neither modules of the folder nor any others than those of diffusers and transformers are imported."""
    hostile.aim(tmp_path / "canary")
    config = config_file(tmp_path)
    shutil.rmtree(tmp_path / "sd")
    for place in (tmp_path / "sd", tmp_path / "sd/unet", tmp_path / "evil"):
        place.mkdir(exist_ok=True)
        for name in ("evil.py", "__init__.py", "pipeline.py", "inner.py"):
            (place / name).write_bytes(hostile.MAKERS["python"]())
    (tmp_path / "sd/model_index.json").write_text(json.dumps({**INDEX, **entries}))
    # A pickle where weights would be.
    (tmp_path / "sd/unet/config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "sd/unet/diffusion_pytorch_model.bin").write_bytes(hostile.MAKERS["torch zip"]())
    # Where Python looks for modules.
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ends(["finetune", str(config)], capsys) == 2
    assert not hostile.ran() and "HOSTILE_CANARY" in os.environ
    assert not Path(tmp_path / "run/result.json").exists()
