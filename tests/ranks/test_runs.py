"""The same run on 1, 2, 3 and 4 ranks: the same candidates are kept, and the same weights come out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import ranked
import safetensors.torch
import torch
from filelock import FileLock

ROUNDS = 2
SCRIPT, FORKED = (Path(__file__).with_name(name) for name in ("runs.py", "forked.py"))
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
steps = 3
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
steps = 2
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


# In `make test`; the others take as long again.
FEW = ("digits", "digits-same", "shapes", "shapes-same")
MORE = tuple(name for name in RUNS if name not in FEW)
SIZES = (1, 2, 3, 4)


def config(folder: Path, name: str, rounds: int = ROUNDS) -> Path:
    text, deterministic, more, train = RUNS[name]
    if name == "binary":
        text = text.replace("k = 2\n", 'rule = "binary"\nthreshold = 0.8\ncopies = "run"\n')
    path = folder / f"{name}.toml"
    path.write_text(text.format(run=folder / name, deterministic=deterministic, more=more, train=train, rounds=rounds))
    return path


def made_on(folder: Path, sizes: Sequence[int], names: Sequence[str]) -> dict[int, list[dict]]:
    """All runs on so many ranks, in folders of their numbers: by rank, histories by name."""
    jobs = []
    for size in sizes:
        (folder / str(size)).mkdir(exist_ok=True)
        configs = [str(config(folder / str(size), name)) for name in names]
        jobs.append([size, configs, str(folder / f"{size}/told")])
    environment = ranked.environment(0, 1, 0)
    command = [sys.executable, str(FORKED), str(SCRIPT), json.dumps(jobs)]
    subprocess.run(command, env=environment, timeout=300, check=True)
    return {size: [json.loads((folder / f"{size}/told-{rank}").read_text()) for rank in range(size)] for size in sizes}


def made_once(tmp_path_factory, name: str, sizes: Sequence[int], names: Sequence[str]) -> tuple[Path, dict]:
    """The same for all that ask, the workers of a parallel run among them."""
    folder = ranked.shared_folder(tmp_path_factory) / name
    told = folder / "told.json"
    with FileLock(f"{folder}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text(json.dumps(made_on(folder, sizes, names)))
    return folder, {int(size): runs for size, runs in json.loads(told.read_text()).items()}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """(folder, histories) on any number of ranks."""
    return made_once(tmp_path_factory, "runs-on-ranks", SIZES, FEW)


def checkpoints_of(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("round-*"))


def told(of_run: dict) -> list[dict]:
    """What all ranks tell alike: each has its own clock."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in of_run["rounds"]]


def compare(run: Path, other: Path) -> None:
    """Of a run and the same one alone: what was kept in its rounds, and the weights."""
    assert len(checkpoints_of(run)) == len(checkpoints_of(other)) == 2
    for mine, same in zip(checkpoints_of(run), checkpoints_of(other), strict=True):
        kept, expected = (safetensors.torch.load_file(path / "candidates.safetensors") for path in (mine, same))
        assert mine.name == same.name and torch.equal(kept["accepted"], expected["accepted"])
    weights, known = (
        safetensors.torch.load_file(checkpoints_of(path)[-1] / "ema.safetensors") for path in (run, other)
    )
    if run.name in ("digits", "shapes"):
        assert all(torch.allclose(weights[name], known[name], rtol=0, atol=1e-5) for name in known)
        assert any(not torch.equal(weights[name], known[name]) for name in known) or run.name == "shapes"
    else:
        assert all(torch.equal(weights[name], known[name]) for name in known)


def compare_all(folder: Path, told_by: dict[int, list[dict]], size: int) -> None:
    (alone,), of_ranks = told_by[1], told_by[size]
    for name, of_run in of_ranks[0].items():
        compare(folder / str(size) / name, folder / "1" / name)
        for entry, known in zip(of_run["rounds"], alone[name]["rounds"], strict=True):
            assert entry["model_calls"] == known["model_calls"] and entry["accepted"] == known["accepted"]
            assert len(entry["waited"]) == size
        assert all(told(other[name]) == told(of_run) for other in of_ranks)
        spent = of_run["spent"]
        assert spent["ranks"] == size
        assert spent["device_hours"] == pytest.approx(size * spent["total_seconds"] / 3600, abs=1e-8)


@pytest.mark.parametrize("size", SIZES[1:])
def test_any_number_of_ranks(few, size):
    """Ids of what is kept bit for bit, weights to 1e-5, or bit for bit where that is asked for."""
    compare_all(*few, size)


@pytest.mark.faults
def test_other_methods_on_two_ranks(tmp_path):
    compare_all(tmp_path, made_on(tmp_path, (1, 2), MORE), 2)


def test_killed_on_two_and_finished_on_three(tmp_path, few):
    """All at once, as when a machine dies."""
    (tmp_path / "3").mkdir()
    path = config(tmp_path / "3", "digits-same")
    command = [sys.executable, "-m", "pgraft_fast", "finetune", str(path), "--gpus", "2"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    checkpoints = tmp_path / "3/digits-same/checkpoints"
    while not (checkpoints / "round-000001/manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    kill_with_ranks(process)
    assert len(list(checkpoints.glob("round-*"))) >= 1
    made_on(tmp_path, [3], ["digits-same"])
    compare(tmp_path / "3/digits-same", few[0] / "1/digits-same")


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


@pytest.mark.faults
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
