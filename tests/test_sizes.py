"""One amount of memory is told the same everywhere: MB are 10^6 bytes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

import pgraft_fast
from pgraft_fast import accelerate
from pgraft_fast.cli import main
from pgraft_fast.errors import InputError
from pgraft_fast.sizes import megabytes

ROOT = Path(pgraft_fast.__file__).parent


def test_megabytes():
    assert megabytes(12_345_678) == "12.3 MB" and megabytes(2_140) == "0.0021 MB" and megabytes(2**30) == "1,073.7 MB"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_the_peak_is_in_bytes():
    """A process that fills 300,000,000 bytes more than ever before (its parent's count, too) has had them."""
    code = (
        "import resource\nfrom pgraft_fast.sizes import peak_resident\n"
        "before = peak_resident()\n"
        "now = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "filled = bytearray(b'x') * (before - now + 300_000_000)\nprint(peak_resident() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 290e6 < float(done.stdout) < 310e6


def test_demo_and_dry_run_tell_the_same(tmp_path, monkeypatch, capsys):
    from pgraft_fast.commands.demo import DemoSettings, run_demo
    from pgraft_fast.finetune import SampleSettings, SelectSettings, TrainSettings
    from pgraft_fast.runs.terminal import Terminal

    for module in ("demo", "dry_run"):
        monkeypatch.setattr(f"pgraft_fast.commands.{module}.peak_resident", lambda: 512 * 2**20)
    small = DemoSettings(
        seeds=1, cuts=(0.0,), sample=SampleSettings(prompts=2, candidates=4, steps=2), select=SelectSettings(k=2),
        train=TrainSettings(steps=2, batch_size=4), samples=32, reference_samples=64,
    )  # fmt: skip
    assert run_demo(small, tmp_path / "demo", Terminal())["peak_rss_mb"] == 536.9
    assert main(["finetune", str(tiny_config(tmp_path)), "--dry-run", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert '"peak_memory_mb": 536.9' in captured.out
    assert re.findall(r"[\d,.]+ MB", captured.err) == ["536.9 MB", "536.9 MB"]


def test_nothing_counts_memory_by_itself():
    """Bytes become MB in one place."""
    for path in ROOT.rglob("*.py"):
        if path.name != "sizes.py":
            assert not re.search(r"ru_maxrss|1e[369]:\.\d+f\} [MG]B|/ 2 ?\*\* ?[123]0\b", path.read_text()), path


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), -1.0, 1e300])
def test_graph_memory_has_bounds(limit):
    pytest.importorskip("diffusers")
    from pipelines import build

    with pytest.raises(InputError, match="graph_memory_gb="):
        accelerate(build("ddim"), graph_memory_gb=limit)


def test_graph_memory_is_in_gb():
    pytest.importorskip("diffusers")
    from pipelines import build

    pipe = accelerate(build("ddim"), graph_memory_gb=1.5)
    assert vars(pipe)["_pgraft_fast"].runner._graphs.memory_limit == 1_500_000_000
