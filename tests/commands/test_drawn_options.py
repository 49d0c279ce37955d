"""Drawn runs and option lists of every command: they run, or end in one line."""

import random
from pathlib import Path

import pytest
from drawn import end_of, odd, to_toml
from tiny import tiny_config

from pgraft_fast.cli import main

pytestmark = pytest.mark.slow

# Of values that are allowed and quick, those at the edges.
EDGES = {
    "seed": (0, 2**63 - 1),
    "method": ("pgraft", "graft", "ddpo", "nft"),
    "sample.prompts": (1, 2, 11), "sample.candidates": (1, 2, 5), "sample.steps": (1, 2, 3),
    "sample.solver": ("ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m"), "sample.eta": (0.0, 1.0, 1e3),
    "sample.batch_size": (1, 3, 2**20), "sample.overlap": (True, False),
    "select.rule": ("top_k", "best_of_n", "classical", "threshold", "preference", "binary"), "select.k": (1, 2, 5),
    "select.temperature": (1e-300, 1e-30, 1.0, 1e30), "select.r_max": (-1e30, 0.0, 1e30),
    "select.threshold": (-1e30, 0.5, 1e30), "select.empty": ("skip", "best", "raise"),
    "train.cut": (0.0, 0.3, 0.999999, "auto"), "train.objective": ("state", "clean", "contrast"),
    "train.rounds": (1, 2),
    "train.steps": (1, 3), "train.epochs": (1, 2), "train.batch_size": (1, 7, 64), "train.micro_batch": (1, 5, 2**20),
    "train.learning_rate": (1e-300, 1e-3, 1e3), "train.weight_decay": (0.0, 1e3), "train.ema": (0.0, 0.999999),
    "train.clip": (1e-30, 1e30), "train.null_prompt": (0.0, 0.999),
    "ddpo.variant": ("importance", "score"), "ddpo.clip_range": (1e-30, 1e30), "ddpo.advantage_clip": (1e-30, 1e30),
    "ddpo.statistics": ("per_prompt", "global"), "ddpo.buffer_size": (1, 2**24), "ddpo.min_count": (1, 16),
    "ddpo.inner_epochs": (1, 2), "ddpo.timestep_fraction": (1e-9, 1.0), "ddpo.batch_size": (1, 2**20),
    "ddpo.log_prob": ("mean", "sum"),
    "train.strength": (1e-30, 1.0, 1e30), "train.advantage": ("acceptance", "reward"),
    "train.frozen": ("reference", "ema"),
    "nft.beta": (1e-30, 1e30), "nft.advantage_clip": (1e-30, 1e30), "nft.kl": (0.0, 1e3),
    "nft.timestep_fraction": (1e-9, 1.0), "nft.batch_size": (1, 2**20), "nft.inner_epochs": (1, 2),
    "nft.decay_rate": (0.0, 1e3), "nft.decay_limit": (0.0, 0.999999),
    "budget.wall_seconds": (1e-9, 0.3, 1e30), "budget.gpu_hours": (1e-12, 1e30),
    "budget.model_calls": (1, 400, 2**63 - 1),
    "evaluate.samples": (1, 2, 7), "task.variant": ("vp", "flow"), "task.conditional": (True, False),
    "task.reward": ("symmetry", "stroke_mass", "label", "digit_3"), "log.tensorboard": (False,),
}  # fmt: skip


def drawn_run(rng: random.Random, run: Path) -> str:
    """A config of a tiny run with some of the edges."""
    tables: dict[str, dict] = {
        "sample": {"prompts": 2, "candidates": 4, "steps": 2}, "select": {"k": 2},
        "train": {"steps": 2, "batch_size": 4}, "evaluate": {"samples": 4},
    }  # fmt: skip
    top_level: dict = {"run": str(run)}
    for key in rng.sample(sorted(EDGES), rng.randint(1, 6)):
        name, _, inner = key.rpartition(".")
        (tables.setdefault(name, {}) if name else top_level)[inner] = rng.choice(EDGES[key])
    return to_toml(top_level | tables)


def run_drawn(folder: Path, seeds: range, capsys) -> list[int]:
    """Each is planned, run, sampled from and reported."""
    ends = []
    for seed in seeds:
        rng, run, path = random.Random(seed), folder / str(seed), folder / "config.toml"
        path.write_text(drawn_run(rng, run))
        planned = end_of(["finetune", str(path), "--dry-run"], capsys) if rng.random() < 0.3 else None
        ends.append(end_of(["finetune", str(path)], capsys))
        if ends[-1] == 0:
            assert (run / "result.json").exists() and planned in (None, 0, 2)
            assert end_of(["sample", str(run), "--n", "2", "--out", str(folder / "s.png")], capsys) == 0
            assert end_of(["report", str(run)], capsys) == 0
    return ends


def test_some_runs(tmp_path, capsys):
    assert 0 in run_drawn(tmp_path, range(3, 6), capsys)


@pytest.mark.faults
def test_a_hundred_runs(tmp_path, capsys):
    assert run_drawn(tmp_path, range(100, 200), capsys).count(0) > 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of digits and its config."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["finetune", str(tiny_config(folder, rounds=1))]) == 0
    return folder


NUMBERS = ("0", "-1", "1", "2", "3", "1e3", "nan", "inf", "-inf", "9" * 30, "1.5", "", "two", "0x10", "１")
VALUES = {
    "--n": NUMBERS, "--steps": NUMBERS, "--seed": NUMBERS, "--guidance": NUMBERS, "--samples": NUMBERS,
    "--seeds": NUMBERS, "--threads": NUMBERS,
    "--solver": ("ddpm", "heun", "fast", "", "DDPM"), "--prompt": ("3", "cat", "", "x" * 400, "ü\n"),
    "--out": ("s.png", "s.safetensors", "s.gif", "", ".", "no/such/s.png", ".png", "x" * 300 + ".png", "\0.png"),
    "--json": ("-", "told.json", "", ".", "no/such/told.json", "/dev/null/x"),
    "--run": ("other", "", "/proc/x", "\0"), "--reward": ("symmetry", "none", "none.py:f", "", ":", ".py:"),
    "--prompts": ("none.txt", "", "."), "--format": ("kohya", "diffusers", "ckpt"), "--backend": ("cpp", "none", ""),
    "--csv": ("rows.csv", "", ".", "no/such/rows.csv"), "--only": ("none", ""),
}  # fmt: skip
# What a command takes, and whether it is quick when everything is right.
COMMANDS = {
    "sample": (("--n", "--steps", "--seed", "--guidance", "--solver", "--prompt", "--out", "--json"), True),
    "finetune": (("--run", "--reward", "--json"), True),
    "report": (("--json",), True), "info": (("--json",), True), "export": (("--out", "--format", "--json"), True),
    "evaluate": (("--run", "--prompts", "--samples", "--json"), True),
    "demo": (("--out", "--seeds", "--json"), False), "train-base": (("--out", "--seed", "--json"), False),
    "correct": (("--run", "--json"), False), "invert": (("--run", "--json"), False),
    "fit-corrector": (("--run", "--json"), False), "bench": (("--csv", "--threads", "--backend", "--only"), False),
}  # fmt: skip


def drawn_options(rng: random.Random, finished: Path) -> list[str]:
    name = rng.choice(sorted(COMMANDS))
    options, quick = COMMANDS[name]
    places = (str(finished / "run"), str(finished / "config.toml"), "none", "", ".", "none.toml", "\0")
    arguments = [name]
    if not quick:
        # One that is wrong, or minutes would pass.
        arguments.append(rng.choice(places))
    elif name != "info" and rng.random() < 0.95:
        arguments.append(rng.choice(("digits", *places)))
    if name == "sample" and rng.random() < 0.9:
        # A hundred samples of 25 steps take their time.
        arguments += ["--n", "2", "--steps", "2"]
    for option in rng.sample(options, rng.randint(0, len(options))):
        arguments += [option, rng.choice(VALUES[option])]
    if rng.random() < 0.1:
        arguments.append(rng.choice(("--nothing", "-x", str(odd(rng)).replace("\0", ""), "--base", "--dry-run")))
    return arguments


def options_drawn(finished: Path, folder: Path, seeds: range, capsys, monkeypatch) -> list[int]:
    monkeypatch.chdir(folder)
    return [end_of(drawn_options(random.Random(seed), finished), capsys) for seed in seeds]


def test_some_option_lists(finished, tmp_path, capsys, monkeypatch):
    ends = options_drawn(finished, tmp_path, range(60), capsys, monkeypatch)
    assert 0 < ends.count(0) < len(ends)


@pytest.mark.faults
def test_a_thousand_option_lists(finished, tmp_path, capsys, monkeypatch):
    ends = options_drawn(finished, tmp_path, range(1000, 2500), capsys, monkeypatch)
    assert ends.count(0) > 50
