"""The same run on 1, 2, 3 and 4 ranks: the same candidates are kept, and the same weights come out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranked
import safetensors.torch
import torch

ROUNDS = 3
SCRIPT = Path(__file__).with_name("runs.py")
DIGITS = """
run = "{run}"
deterministic = {deterministic}
{more}
[sample]
prompts = 8
candidates = 4
steps = 4
[select]
k = 2
[train]
rounds = {rounds}
steps = 5
batch_size = 12
learning_rate = 1e-4
{train}
[evaluate]
samples = 16
"""
SHAPES = """
run = "{run}"
deterministic = {deterministic}
[model]
shipped = "sd"
[[rewards]]
kind = "task"
name = "questions"
[sample]
prompts = 4
candidates = 4
steps = 4
guidance = 2.0
[select]
k = 2
[train]
rounds = 2
steps = 3
batch_size = 12
learning_rate = 1e-4
objective = "contrast"
strength = 4.0
[lora]
rank = 4
[evaluate]
samples = 8
"""
# By name: text, further TOML, and of [train].
RUNS = {
    "digits": (DIGITS, "false", "", ""),
    "digits-same": (DIGITS, "true", "", ""),
    "shapes": (SHAPES, "false", "", ""),
    "shapes-same": (SHAPES, "true", "", ""),
    "ddpo-same": (DIGITS, "true", 'method = "ddpo"', ""),
    "nft-same": (DIGITS, "true", 'method = "nft"', ""),
    "binary": (DIGITS, "true", "", 'cut = "auto"'),
}


def config(folder: Path, name: str, rounds: int = ROUNDS) -> Path:
    text, deterministic, more, train = RUNS[name]
    if name == "binary":
        text = text.replace("k = 2\n", 'rule = "binary"\nthreshold = 0.8\ncopies = "run"\n')
    path = folder / f"{name}.toml"
    path.write_text(text.format(run=folder / name, deterministic=deterministic, more=more, train=train, rounds=rounds))
    return path


def made_on(folder: Path, size: int, names=tuple(RUNS)) -> Path:
    """All runs on so many ranks."""
    ended = ranked.run(size, [str(SCRIPT), *(str(config(folder, name)) for name in names)])
    assert [status for status, _, _ in ended] == [0] * size, ended
    for _, out, errors in ended[1:]:
        # One of them speaks.
        assert out == "" and "reward" not in errors, errors
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return made_on(tmp_path_factory.mktemp("alone"), 1)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("round-*"))
    return safetensors.torch.load_file(newest / "ema.safetensors")


def compare(run: Path, other: Path) -> None:
    """Of a run and the same one alone."""
    history, expected = (json.loads((path / "result.json").read_text())["rounds"] for path in (run, other))
    assert len(history) == len(expected) > 1
    for number in range(len(history) - 1, len(history) + 1):
        kept, same = (
            safetensors.torch.load_file(path / f"checkpoints/round-{number:06d}/candidates.safetensors")
            for path in (run, other)
        )
        assert torch.equal(kept["accepted"], same["accepted"])
    for entry, known in zip(history, expected, strict=True):
        assert entry["model_calls"] == known["model_calls"] and entry["accepted"] == known["accepted"]
    weights, known = weights_of(run), weights_of(other)
    if run.name in ("digits", "shapes"):
        assert all(torch.allclose(weights[name], known[name], rtol=0, atol=1e-5) for name in known)
        assert any(not torch.equal(weights[name], known[name]) for name in known) or run.name == "shapes"
    else:
        assert all(torch.equal(weights[name], known[name]) for name in known)


@pytest.mark.parametrize("size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks(tmp_path, alone, size):
    names = tuple(RUNS) if size == 2 else ("digits", "digits-same", "shapes", "shapes-same")
    made_on(tmp_path, size, names)
    for name in names:
        compare(tmp_path / name, alone / name)
    spent = json.loads((tmp_path / "digits/result.json").read_text())["spent"]
    assert spent["ranks"] == size
    assert spent["device_hours"] == pytest.approx(size * spent["total_seconds"] / 3600, rel=1e-6)


def test_killed_on_two_and_finished_on_three(tmp_path, alone):
    """All at once, as when a machine dies."""
    path = config(tmp_path, "digits-same")
    command = [sys.executable, "-m", "pgraft_fast", "finetune", str(path), "--gpus", "2"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (tmp_path / "digits-same/checkpoints/round-000001/manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    kill_with_ranks(process)
    rounds = len(list((tmp_path / "digits-same/checkpoints").glob("round-*")))
    assert rounds >= 1
    made_on(tmp_path, 3, ["digits-same"])
    compare(tmp_path / "digits-same", alone / "digits-same")


def kill_with_ranks(process: subprocess.Popen) -> None:
    """The launcher and its ranks, which have sessions of their own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.wait()
