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


FEW = ("digits", "digits-same", "shapes", "shapes-same")


def config(folder: Path, name: str, rounds: int = ROUNDS) -> Path:
    text, deterministic, more, train = RUNS[name]
    if name == "binary":
        text = text.replace("k = 2\n", 'rule = "binary"\nthreshold = 0.8\ncopies = "run"\n')
    path = folder / f"{name}.toml"
    path.write_text(text.format(run=folder / name, deterministic=deterministic, more=more, train=train, rounds=rounds))
    return path


def made_on(folder: Path, size: int, names=tuple(RUNS)) -> list[dict]:
    """All runs on so many ranks: by rank, histories by name."""
    ended = ranked.run(size, [str(SCRIPT), *(str(config(folder, name)) for name in names)])
    assert [status for status, _, _ in ended] == [0] * size, ended
    return [json.loads(out) for _, out, _ in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, histories) of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, made_on(folder, 1)[0]


def checkpoints_of(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("round-*"))


def told(of_run: dict) -> list[dict]:
    """What all ranks tell alike: each has its own clock."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in of_run["rounds"]]


def compare(run: Path, other: Path) -> None:
    """Of a run and the same one alone: what was kept in its last two rounds, and the weights."""
    assert len(checkpoints_of(run)) == len(checkpoints_of(other)) == 2
    for mine, same in zip(checkpoints_of(run), checkpoints_of(other), strict=True):
        kept, expected = (safetensors.torch.load_file(path / "candidates.safetensors") for path in (mine, same))
        assert mine.name == same.name and torch.equal(kept["accepted"], expected["accepted"])
    weights, known = (
        safetensors.torch.load_file(checkpoints_of(path)[-1] / "ema.safetensors") for path in (run, other)
    )
    if run.name in ("digits", "shapes"):
        assert all(torch.allclose(weights[name], known[name], rtol=0, atol=1e-5) for name in known)
    else:
        assert all(torch.equal(weights[name], known[name]) for name in known)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_ranks(tmp_path, alone, size):
    """Ids of what is kept bit for bit, weights to 1e-5, or bit for bit where that is asked for."""
    of_ranks = made_on(tmp_path, size, tuple(RUNS) if size == 2 else FEW)
    folder, expected = alone
    for name, of_run in of_ranks[0].items():
        compare(tmp_path / name, folder / name)
        for entry, known in zip(of_run["rounds"], expected[name]["rounds"], strict=True):
            assert entry["model_calls"] == known["model_calls"] and entry["accepted"] == known["accepted"]
            assert len(entry["waited"]) == size
        assert all(told(other[name]) == told(of_run) for other in of_ranks)
        spent = of_run["spent"]
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
    compare(tmp_path / "digits-same", alone[0] / "digits-same")


def kill_with_ranks(process: subprocess.Popen) -> None:
    """The launcher and its ranks, which have sessions of their own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.wait()


CORRECTION = """
run = "{run}"
[generator]
steps = 3
[invert]
samples = 80
shard = 16
[corrector]
interpolants = ["trigonometric", "affine"]
integration_steps = 2
steps = 40
batch_size = 32
check_every = 20
save_every = 20
[evaluate]
samples = 64
base_steps = [3]
splits = [[3, 2]]
"""


@pytest.mark.slow
def test_a_correction_on_two_ranks(tmp_path):
    """Shards are inverted by either rank, bit for bit; the corrector and the distances agree to rounding."""
    for size in (1, 2):
        path = tmp_path / f"{size}.toml"
        path.write_text(CORRECTION.format(run=tmp_path / str(size)))
        ended = ranked.run(size, ["-m", "pgraft_fast", "correct", str(path)])
        assert [status for status, _, _ in ended] == [0] * size, ended
        assert all(errors == "" for _, _, errors in ended[1:])
    one, two = tmp_path / "1", tmp_path / "2"
    for shard in sorted((one / "inverse").glob("shard-*")):
        noise = "shard.safetensors"
        assert (shard / noise).read_bytes() == (two / "inverse" / shard.name / noise).read_bytes()
    assert len(list((two / "inverse").glob("shard-*"))) == 5
    rows, known = (json.loads((run / "result.json").read_text())["rows"] for run in (two, one))
    for row, expected in zip(rows, known, strict=True):
        assert row["name"] == expected["name"]
        for name in ("fd", "swd", "nearest"):
            assert row[name] == pytest.approx(expected[name], rel=2e-3)
