"""Plots and README tables from made-up rows: everything is drawn, the newest rows count, red ones do not."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pgraft_fast_benchmarks import plots, readme_tables, records

ROOT = Path(__file__).parents[2]
RUN = {"run": "2026-01-02T00:00:00Z", "size": "full", "device": "A CPU", "threads": 2, "gate": "ok", "dtype": "float32"}


def timed(bench, op, case, provider, time, ratio, **more):
    return {
        **RUN, "bench": bench, "op": op, "case": case, "shape": "4x8", "provider": provider, "p50_ms": time,
        "times_ours": ratio, **more,
    }  # fmt: skip


ROWS = [
    timed("ops", "solver_step", "ddim", "ours", 99.0, 1.0, bytes=4000, run="2026-01-01T00:00:00Z"),
    timed("ops", "solver_step", "ddim", "ours", 0.02, 1.0, bytes=4000),
    timed("ops", "solver_step", "ddim", "diffusers", 0.2, 10.25, bytes=4000),
    timed("ops", "solver_step", "ddim", "copy", 0.01, 0.5, bytes=2000),
    timed("ops", "solver_step", "ddim", "eager", None, None, bytes=4000, gate="fail"),
    timed("sampling", "sampling", "sd", "ours", 10.0, 1.0, batch=4, images_per_s=400.0, non_model_ms=1.0,
          non_model_share=0.1),
    timed("sampling", "sampling", "sd", "diffusers", 12.0, 1.2, batch=4, images_per_s=333.0, non_model_ms=3.0,
          non_model_share=0.3),
    timed("round", "round", "digits", "ours", 1000.0, 1.0, samples_per_hour=3600000.0, batch=1000),
    timed("round", "round", "digits", "plain", 1500.0, 1.5, samples_per_hour=2400000.0, batch=1000),
    *[
        {
            **RUN, "bench": "quality", "op": "demo", "case": "digits", "provider": method, "cut": cut, "seed": seed,
            "reward": reward, "reward_low": reward - 0.1, "reward_high": reward + 0.1, "fd_accepted": 1.0,
            "fd_data": 2.0, "precision": 0.5, "recall": 0.6, "model_calls": 10, "seconds": 36.0, "device_hours": 0.01,
        }
        for method, cut, reward in (("base", 0.0, 0.7), ("graft", 0.0, 0.8), ("p-graft", 0.25, 0.78)) for seed in (0, 1)
    ],
    *[
        {**RUN, "bench": "quality", "op": "distance", "case": "digits flow", "provider": "base", "steps": steps,
         "flops_per_image": 1e6 * steps, "fd_data": (10.0 + seed) / steps, "fd_floor": 0.01, "swd": 0.05,
         "swd_floor": 0.001, "nearest": 3.0, "nearest_floor": 2.0, "corrector_steps": own, "seed": seed}
        for steps, own in ((5, 0), (50, 0), (5, 2)) for seed in (0, 1)
    ],
    *[
        {**RUN, "bench": "methods", "op": "methods", "case": "shapes", "provider": method, "budget": budget,
         "seed": seed, "reward": 0.5 * (1.0 + gain) if budget else 0.5, "model_calls": budget,
         "seconds": 50.0, "cpu_seconds": 40.0, "gain_per_cpu_second": 0.0025, "vendi": 2.5, "sample_seconds": 30.0,
         "score_seconds": 1.0, "accept_seconds": 0.0, "train_seconds": 19.0, "label": label,
         "best_reward": 0.7, "best_guidance": 3.0 + seed,
         **({"gain": gain + 0.02 * seed, "gain_low": gain - 0.1, "gain_high": gain + 0.1} if budget else {})}
        for method, label, budget, gain in (
            ("base", "base", 0, 0.0), ("pgraft", "P-GRAFT", 4000, 0.2),
            ("pgraft:random", "P-GRAFT, random", 4000, 0.05), ("ddpo", "DDPO", 4000, 0.1),
        ) for seed in (0, 1)
    ],
    *[
        {**RUN, "bench": "cut", "op": "cut", "case": case, "provider": f"cut {cut:g}", "cut": cut,
         "planned": cut == 0.1, "base": 0.5, "predicted": 0.6 - 0.1 * cut, "predicted_low": 0.55 - 0.1 * cut,
         "predicted_high": 0.65, "reached": 0.61 - 0.1 * cut, "inside": cut < 0.5, "share_kept": 1 - cut,
         "share_error": 0.05, "recall": 0.5,
         "fd_accepted": 1.0, "accepted": 32, "plan_share": 0.12, "lowest_level": 0.2}
        for case in ("digits symmetry", "shapes sd") for cut in (0.0, 0.1, 0.5)
    ],
]  # fmt: skip


def test_every_plot_is_drawn(tmp_path):
    paths = plots.draw(ROWS, tmp_path)
    assert sorted(path.name for path in paths) == sorted(
        f"{name}-a-cpu.{kind}" for name in plots.PLOTS for kind in ("png", "svg")
    )
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 400 and len(image.convert("L").getcolors(1 << 16)) > 10
        else:
            assert "<svg" in path.read_text()
    before = {path: path.read_bytes() for path in paths}
    plots.draw(ROWS, tmp_path)
    assert {path: path.read_bytes() for path in paths} == before


def test_nothing_to_draw(tmp_path):
    assert plots.draw([], tmp_path) == []
    assert plots.draw([{**RUN, "bench": "ops", "size": "smoke", "provider": "ours"}], tmp_path) == []


def test_tables(tmp_path):
    assert readme_tables.ops(ROWS).splitlines()[2] == "| solver_step ddim | 4x8 | 0.02 | 10.2x |  |  |  | 0.5x |"
    assert readme_tables.sampling(ROWS).splitlines()[2] == (
        "| sd, batch 4 | 3 ms (30.0%) | 1 ms (10.0%) | 3.0x | 1.200x |"
    )
    assert readme_tables.rounds(ROWS).splitlines()[2] == "| digits | 3,600,000 | 1.5x |  |  |  |  |"
    assert [line.split(" | ")[0] for line in readme_tables.demo(ROWS).splitlines()[2:]] == [
        "| base",
        "| graft",
        "| p-graft 0.25",
    ]

    assert readme_tables.methods(ROWS).splitlines()[2:] == [
        "| base | - | 0.5000 | - | - | 0.7000, 3 to 4 | - | 2.50 |",
        "| P-GRAFT | 4,000 | 0.6000 | +21.0 % (+8.3 to +33.7) | +7.5 (+7.5 to +7.5) | 0.7000, 3 to 4 | 50 | 2.50 |",
        "| P-GRAFT, random | 4,000 | 0.5250 | +6.0 % (-6.7 to +18.7) | - | 0.7000, 3 to 4 | 50 | 2.50 |",
        "| DDPO | 4,000 | 0.5500 | +11.0 % (-1.7 to +23.7) | - | 0.7000, 3 to 4 | 50 | 2.50 |",
    ]

    assert readme_tables.cuts(ROWS).splitlines()[2] == (
        "| digits symmetry | 32 | 0.1 | 0.2 | 2 of 3 | 0.6000 | 0.6100 at 0 | 0.50 | 0.50 | 12.0 % |"
    )

    # Of several rounds nothing is predicted: neither told nor drawn.
    several = [{**row, "inside": None} for row in ROWS if row["bench"] == "cut"]
    assert readme_tables.cuts(several).splitlines()[2].split(" | ")[4] == "-"
    assert plots.draw(several, tmp_path) == []

    assert readme_tables.correction(ROWS).splitlines()[2:] == [
        "| base | 5 |  | 5 | 2.10 (2.00 to 2.20) | 0.050 (0.050 to 0.050) | 3.00 (3.00 to 3.00) |",
        "| base | 50 |  | 50 | 0.21 (0.20 to 0.22) | 0.050 (0.050 to 0.050) | 3.00 (3.00 to 3.00) |",
        "| base | 5 | 2 | 5 | 2.10 (2.00 to 2.20) | 0.050 (0.050 to 0.050) | 3.00 (3.00 to 3.00) |",
        "| another draw of the data |  |  |  | 0.01 (0.01 to 0.01) | 0.001 (0.001 to 0.001) | 2.00 (2.00 to 2.00) |",
    ]


def test_devices_are_named_where_there_are_several():
    both = [*ROWS, *({**row, "device": "A GPU"} for row in ROWS if row["bench"] == "ops")]
    text = "".join(
        f"<!-- {name} table: make readme-tables -->\nold\n<!-- end of {name} table -->\n"
        for name in readme_tables.TABLES
    )
    new = readme_tables.updated(text, both)
    assert "old" not in new and new.count("A CPU:") == new.count("A GPU:") == 1


def test_the_readme_is_that_of_the_results():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme_tables.py"), "--check"], check=False)
    assert done.returncode == 0, "the README's tables are not those of benchmarks/results: make readme-tables"


def test_the_command_draws_what_a_file_holds(tmp_path, capsys):
    from pgraft_fast.cli import main

    path = tmp_path / "rows.csv"
    records.append(path, ROWS)
    assert main(["bench", "plot", "--csv", str(path)]) == 0
    assert (tmp_path / "plots" / "bandwidth-a-cpu.png").stat().st_size > 5000
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert main(["bench", "plot", "--csv", str(path)]) == 2
    assert "no row that could be drawn; run pgraft-fast bench first" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (4, 2)])
def test_a_panel_a_model(size):
    count, rows = size
    measured = [{**row, "case": f"m{index}"} for index in range(count) for row in ROWS if row["bench"] == "sampling"]
    figure = plots.Figure()
    assert plots.images_per_hour(measured, figure)
    assert sum(axis.has_data() for axis in figure.axes) == count
    assert figure.get_size_inches()[1] == pytest.approx(3.6 * rows)
