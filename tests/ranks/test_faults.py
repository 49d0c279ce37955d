"""Ranks that are killed, stopped, hang or fail: nobody waits for ever, one line tells, and the run ends as ever."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

ROUNDS = 5
TEXT = """
run = "{run}"
deterministic = true
[task]
reward = "paced.py:reward"
[sample]
prompts = 4
candidates = 4
steps = 3
[select]
k = 2
[train]
rounds = 5
steps = 4
batch_size = 12
learning_rate = 1e-3
[evaluate]
samples = 8
"""
# Symmetry, at a pace that gives a killer time to aim; ill or asleep on one rank where a file says so.
REWARD = """
import os, time
from pathlib import Path
from pgraft_fast.rewards import symmetry
HERE = Path(__file__).parent
def reward(x):
    time.sleep(0.05)
    if os.environ.get("RANK") == "1":
        if (HERE / "ill").exists():
            raise ValueError("the judge is ill")
        while (HERE / "asleep").exists():
            time.sleep(0.05)
    return symmetry(x)
"""


def config_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "paced.py").write_text(REWARD)
    (folder / "config.toml").write_text(TEXT.format(run=folder / "run"))
    return folder / "config.toml"


def start(config: Path, ranks: int = 2, **more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pgraft_fast", "finetune", str(config), "--gpus", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def rounds_on_disk(run: Path) -> int:
    return max((int(path.name[-6:]) for path in (run / "checkpoints").glob("round-*")), default=0)


def ranks_of(process: subprocess.Popen) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def await_rounds(process: subprocess.Popen, run: Path, count: int) -> None:
    while rounds_on_disk(run) < count or not ranks_of(process):
        assert process.poll() is None
        time.sleep(0.01)


def gone(ranks: list[int]) -> bool:
    return not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def ends(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights of a run that nobody disturbs."""
    config = config_in(tmp_path_factory.mktemp("straight"))
    status, errors = ends(start(config))
    assert status == 0, errors
    return (config.parent / "run/model.safetensors").read_bytes()


def kill_one(folder: Path, straight: bytes, drawn: random.Random) -> None:
    """A rank, or the launcher with them; what torchrun does not start anew the same command does."""
    config = config_in(folder)
    process = start(config)
    rounds = drawn.randrange(ROUNDS)
    await_rounds(process, folder / "run", rounds)
    time.sleep(drawn.random() * (0.3 if rounds else 3.0))
    ranks = ranks_of(process)
    for victim in [drawn.choice(ranks)] if drawn.random() < 0.7 and ranks else [process.pid, *ranks]:
        os.kill(victim, signal.SIGKILL)
    status, errors = ends(process)
    if status != 0:
        status, errors = ends(start(config))
    assert status == 0, errors
    assert (folder / "run/model.safetensors").read_bytes() == straight


def test_a_killed_rank(tmp_path, straight):
    """Torchrun starts all of them anew, and they go on."""
    config = config_in(tmp_path)
    process = start(config)
    await_rounds(process, tmp_path / "run", 2)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    status, errors = ends(process)
    assert status == 0 and "goes on after round" in errors, errors
    assert (tmp_path / "run/model.safetensors").read_bytes() == straight


def test_thirty_kills(tmp_path, straight):
    for seed in range(30):
        kill_one(tmp_path / str(seed), straight, random.Random(seed))


def stop_and_go_on(folder: Path, straight: bytes, drawn: random.Random) -> None:
    config = config_in(folder)
    process = start(config)
    await_rounds(process, folder / "run", drawn.randrange(1, ROUNDS))
    time.sleep(0.3 * drawn.random())
    ranks = ranks_of(process)
    process.send_signal(drawn.choice([signal.SIGINT, signal.SIGTERM]))
    status, errors = ends(process)
    assert status == 0 and gone(ranks), errors
    if "stopped by" in errors:
        # One line of one rank, and no other.
        assert errors.count("pgraft-fast:") == 1 and "rank" not in errors.split("pgraft-fast:")[1]
        assert ends(start(config))[0] == 0
    assert (folder / "run/model.safetensors").read_bytes() == straight


def test_a_signal_to_the_launcher(tmp_path, straight):
    stop_and_go_on(tmp_path, straight, random.Random(1))


def test_twenty_signals_to_the_launcher(tmp_path, straight):
    for seed in range(20):
        stop_and_go_on(tmp_path / str(seed), straight, random.Random(seed))


def test_the_second_signal_ends_at_once(tmp_path):
    config = config_in(tmp_path)
    process = start(config)
    await_rounds(process, tmp_path / "run", 1)
    (tmp_path / "asleep").touch()
    time.sleep(0.5)
    ranks = ranks_of(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    status, _ = ends(process)
    assert status == 128 + signal.SIGTERM and gone(ranks)


def test_a_reward_that_fails_on_one_rank(tmp_path, straight):
    config = config_in(tmp_path)
    (tmp_path / "ill").touch()
    status, errors = ends(start(config))
    assert status == 2
    assert errors.count("pgraft-fast:") == 1 and "rank 1: reward 'reward' raised ValueError: the judge is ill" in errors
    (tmp_path / "ill").unlink()
    assert ends(start(config))[0] == 0
    assert (tmp_path / "run/model.safetensors").read_bytes() == straight


def test_a_budget_that_ends_within_a_round(tmp_path):
    """The round is dropped on all ranks, and what was learned before is evaluated."""
    config = config_in(tmp_path)
    (tmp_path / "paced.py").write_text(REWARD.replace("time.sleep(0.05)\n    if", "time.sleep(0.3)\n    if"))
    text = config.read_text().replace("rounds = 5", "rounds = 5000").replace("prompts = 4", "prompts = 24")
    config.write_text(text + "[budget]\nwall_seconds = 60\n")
    process = start(config)
    status, errors = ends(process)
    assert status == 0, errors
    assert "budget: " in errors and "reward" in errors.splitlines()[-1]


def test_a_rank_that_does_not_come(tmp_path, straight):
    """Its reward sleeps; what the others wait for has a limit, here five seconds."""
    config = config_in(tmp_path)
    process = start(config, PGRAFT_FAST_RANK_TIMEOUT="5")
    await_rounds(process, tmp_path / "run", 1)
    first = ranks_of(process)
    (tmp_path / "asleep").touch()
    while set(ranks_of(process)) & set(first):
        assert process.poll() is None
        time.sleep(0.05)
    (tmp_path / "asleep").unlink()
    status, errors = ends(process)
    assert status == 0, errors
    assert "rank 1 did not come to where rank 0 waited for it" in errors and "goes on after round" in errors
    assert (tmp_path / "run/model.safetensors").read_bytes() == straight


def test_one_run_folder_for_two_runs(tmp_path):
    config = config_in(tmp_path)
    process = start(config)
    await_rounds(process, tmp_path / "run", 1)
    (tmp_path / "asleep").touch()
    status, errors = ends(start(config))
    (tmp_path / "asleep").unlink()
    assert status == 2 and errors.count("pgraft-fast:") == 1 and "another process is using this run folder" in errors
    process.terminate()
    assert ends(process)[0] == 0


def test_fewer_groups_than_ranks(tmp_path):
    config = config_in(tmp_path)
    config.write_text(config.read_text().replace("prompts = 4", "prompts = 1"))
    status, errors = ends(start(config))
    assert status == 2 and "sample.prompts=1 for 2 ranks" in errors
