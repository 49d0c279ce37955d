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
from tiny import tiny_config

ROUNDS = 14


def start(config: Path, **streams) -> subprocess.Popen:
    command = [sys.executable, "-m", "pgraft_fast.cli", "finetune", str(config)]
    # One thread: the same arithmetic however many cores a test machine has.
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **streams)


def finish(config: Path) -> str:
    process = start(config, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def rounds_on_disk(run: Path) -> int:
    numbers = [int(path.name[-6:]) for path in (run / "checkpoints").glob("round-*")]
    return max(numbers, default=0)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody disturbs: (its weights, seconds until its first round, seconds of its rounds)."""
    folder = tmp_path_factory.mktemp("straight")
    config = tiny_config(folder, rounds=ROUNDS, more="[task]\nreward = 'slow.py:reward'\n")
    slow_reward(folder)
    began = time.perf_counter()
    process = start(config, stderr=subprocess.DEVNULL)
    while rounds_on_disk(folder / "run") == 0:
        time.sleep(0.02)
        assert process.poll() is None
    first = time.perf_counter() - began
    assert process.wait(timeout=300) == 0
    return (folder / "run/model.safetensors").read_bytes(), first, time.perf_counter() - began - first


def slow_reward(folder: Path) -> None:
    """Symmetry, at a pace that gives a killer time to aim."""
    (folder / "slow.py").write_text(
        "import time\nfrom pgraft_fast.rewards import symmetry\n"
        "def reward(x):\n    time.sleep(0.05)\n    return symmetry(x)\n"
    )


def kill_and_resume(tmp_path: Path, straight, seeds, how=signal.SIGKILL) -> None:
    weights, first, rest = straight
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        slow_reward(folder)
        config = tiny_config(folder, rounds=ROUNDS, more="[task]\nreward = 'slow.py:reward'\n")
        process = start(config, stderr=subprocess.DEVNULL)
        time.sleep(first * 0.8 + random.Random(seed).random() * rest)
        process.send_signal(how)
        process.wait(timeout=60)
        safe = rounds_on_disk(folder / "run")
        errors = finish(config)
        if 0 < safe < ROUNDS:
            assert f"goes on after round {safe}" in errors
        assert (folder / "run/model.safetensors").read_bytes() == weights
        assert not list((folder / "run").rglob(".tmp-*"))
        shutil.rmtree(folder)


def test_a_kill(tmp_path, straight):
    kill_and_resume(tmp_path, straight, range(1))


@pytest.mark.faults
def test_twenty_kills(tmp_path, straight):
    kill_and_resume(tmp_path, straight, range(100, 120))


@pytest.mark.faults
def test_ten_terminations(tmp_path, straight):
    kill_and_resume(tmp_path, straight, range(200, 210), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_first_signal_stops_at_a_safe_point(tmp_path, straight, number):
    slow_reward(tmp_path)
    config = tiny_config(tmp_path, rounds=ROUNDS, more="[task]\nreward = 'slow.py:reward'\n")
    process = start(config, stderr=subprocess.PIPE)
    while rounds_on_disk(tmp_path / "run") < 2:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        f"pgraft-fast: stopped by {number.name}; finished rounds are safe, the same command goes on from there"
    )
    assert "Traceback" not in errors
    finish(config)
    assert (tmp_path / "run/model.safetensors").read_bytes() == straight[0]


def test_second_signal_ends_at_once(tmp_path):
    (tmp_path / "stuck.py").write_text(
        "import pathlib, time\n"
        f"def reward(x):\n    pathlib.Path({str(tmp_path / 'scoring')!r}).touch()\n    time.sleep(600)\n"
    )
    config = tiny_config(tmp_path, more="[task]\nreward = 'stuck.py:reward'\n")
    process = start(config, stderr=subprocess.DEVNULL)
    while not (tmp_path / "scoring").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT


def test_two_processes_on_one_run(tmp_path):
    slow_reward(tmp_path)
    config = tiny_config(tmp_path, rounds=60, more="[task]\nreward = 'slow.py:reward'\n")
    first = start(config, stderr=subprocess.DEVNULL)
    try:
        while rounds_on_disk(tmp_path / "run") < 1:
            time.sleep(0.02)
        second = start(config, stderr=subprocess.PIPE)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 2
        assert errors.strip().endswith("another process is using this run folder")
    finally:
        first.kill()
        first.wait()


def test_full_disk(tmp_path):
    """A tmpfs that fills up in the third round: exit 2, one line, and the run goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
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
        process = start(config, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "no space left" in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert rounds_on_disk(disk / "run") == 2
        (disk / "filler").unlink()
        assert "goes on after round 2" in finish(config)
        small = subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=False)
        assert small.returncode == 0
        (disk / "filler").write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - 1_000_000))
        fresh = config.with_name("fresh.toml")
        fresh.write_text(config.read_text().replace(str(disk / "run"), str(disk / "fresh")))
        process = start(fresh, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "MB free" in errors.strip() and "\n" not in errors.strip()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
