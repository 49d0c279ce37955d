"""Runs that are killed, interrupted or out of disk: nothing is lost but the unfinished round."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from disks import small_disk
from tiny import tiny_config

from pgraft_fast.cli import main

pytestmark = pytest.mark.slow

ROUNDS = 6


def start(config: Path, **streams) -> subprocess.Popen:
    command = [sys.executable, "-m", "pgraft_fast.cli", "finetune", str(config)]
    # One thread: the same arithmetic however many cores a test machine has.
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **streams)


def with_one_thread(config: Path) -> int:
    """In this process, as in those that are killed: the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(["finetune", str(config)])
    finally:
        torch.set_num_threads(threads)


def in_this_process(config: Path, capsys) -> tuple[int, str]:
    """Exit status and stderr."""
    capsys.readouterr()
    return with_one_thread(config), capsys.readouterr().err


def finish(config: Path, capsys) -> str:
    status, errors = in_this_process(config, capsys)
    assert status == 0, errors
    return errors


def rounds_on_disk(run: Path) -> int:
    numbers = [int(path.name[-6:]) for path in (run / "checkpoints").glob("round-*")]
    return max(numbers, default=0)


def await_rounds(process: subprocess.Popen, run: Path, count: int) -> None:
    while rounds_on_disk(run) < count:
        assert process.poll() is None
        time.sleep(0.01)


def slow_config(folder: Path) -> Path:
    slow_reward(folder)
    return tiny_config(folder, rounds=ROUNDS, more="[task]\nreward = 'slow.py:reward'\n")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    assert with_one_thread(slow_config(folder)) == 0
    return (folder / "run/model.safetensors").read_bytes()


def slow_reward(folder: Path) -> None:
    """Symmetry, at a pace that gives a killer time to aim."""
    (folder / "slow.py").write_text(
        "import time\nfrom pgraft_fast.rewards import symmetry\n"
        "def reward(x):\n    time.sleep(0.05)\n    return symmetry(x)\n"
    )


def kill_and_resume(folder: Path, straight, rounds, seconds, capsys, how=signal.SIGKILL) -> None:
    """Killed so many seconds after a number of rounds."""
    folder.mkdir()
    config = slow_config(folder)
    process = start(config, stderr=subprocess.DEVNULL)
    await_rounds(process, folder / "run", rounds)
    time.sleep(seconds)
    process.send_signal(how)
    process.wait(timeout=60)
    safe = rounds_on_disk(folder / "run")
    errors = finish(config, capsys)
    if 0 < safe < ROUNDS:
        assert f"goes on after round {safe}" in errors
    assert (folder / "run/model.safetensors").read_bytes() == straight
    assert not list((folder / "run").rglob(".tmp-*"))
    shutil.rmtree(folder)


def many_kills(tmp_path, straight, seeds, capsys, how=signal.SIGKILL):
    """While it starts, in the rounds, and after the last one."""
    for seed in seeds:
        drawn = random.Random(seed)
        rounds, share = drawn.randrange(ROUNDS), drawn.random()
        kill_and_resume(tmp_path / str(seed), straight, rounds, share * (0.2 if rounds else 4.0), capsys, how)


def test_a_kill(tmp_path, straight, capsys):
    """In the middle of the third round."""
    kill_and_resume(tmp_path / "killed", straight, 2, 0.03, capsys)


@pytest.mark.faults
def test_twenty_kills(tmp_path, straight, capsys):
    many_kills(tmp_path, straight, range(100, 120), capsys)


@pytest.mark.faults
def test_ten_terminations(tmp_path, straight, capsys):
    many_kills(tmp_path, straight, range(200, 210), capsys, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_first_signal_stops_at_a_safe_point(tmp_path, straight, number, capsys):
    config = slow_config(tmp_path)
    process = start(config, stderr=subprocess.PIPE)
    await_rounds(process, tmp_path / "run", 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        f"pgraft-fast: stopped by {number.name}; finished rounds are safe, the same command goes on from there"
    )
    assert "Traceback" not in errors
    finish(config, capsys)
    assert (tmp_path / "run/model.safetensors").read_bytes() == straight


@pytest.fixture(scope="module")
def stuck(tmp_path_factory):
    """(config, process) of a run whose reward does not answer the first time."""
    folder = tmp_path_factory.mktemp("stuck")
    (folder / "stuck.py").write_text(
        "import pathlib, time\n"
        f"SCORING = pathlib.Path({str(folder / 'scoring')!r})\n"
        "def reward(x):\n"
        "    if not SCORING.exists():\n"
        "        SCORING.touch()\n"
        "        time.sleep(600)\n"
        "    return x.flatten(1).mean(1)\n"
    )
    config = tiny_config(folder, more="[task]\nreward = 'stuck.py:reward'\n")
    process = start(config, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "scoring").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield config, process
    finally:
        process.kill()
        process.wait()


def test_two_processes_on_one_run(stuck, capsys):
    config, first = stuck
    status, errors = in_this_process(config, capsys)
    assert status == 2
    assert errors.strip().endswith("another process is using this run folder")
    assert first.poll() is None


def test_second_signal_ends_at_once(stuck):
    """The last of this process."""
    _, process = stuck
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT


def test_full_disk(tmp_path, capsys):
    """A tmpfs that fills up in the third round: exit 2, one line, and the run goes on once there is room."""
    with small_disk(tmp_path / "disk", 32) as disk:
        (tmp_path / "filler.py").write_text(
            "import shutil, time\nfrom pgraft_fast.rewards import symmetry\n"
            "rounds = 0\n"
            "def reward(x):\n"
            "    global rounds\n"
            "    rounds += 1\n"
            f"    if rounds == 4:  # one evaluation, then two rounds\n"
            f"        open('{disk}/filler', 'wb').write(b'x' * (shutil.disk_usage('{disk}').free - 500_000))\n"
            "    return symmetry(x)\n"
        )
        config = tiny_config(disk, rounds=4, more=f"[task]\nreward = '{tmp_path}/filler.py:reward'\n")
        status, errors = in_this_process(config, capsys)
        assert status == 2
        assert "no space left" in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert rounds_on_disk(disk / "run") == 2
        (disk / "filler").unlink()
        assert "goes on after round 2" in finish(config, capsys)
        small = subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=False)
        assert small.returncode == 0
        (disk / "filler").write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - 1_000_000))
        fresh = config.with_name("fresh.toml")
        fresh.write_text(config.read_text().replace(str(disk / "run"), str(disk / "fresh")))
        status, errors = in_this_process(fresh, capsys)
        assert status == 2
        assert "MB free, has" in errors.strip() and "\n" not in errors.strip()
