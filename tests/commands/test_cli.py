"""The command line from end to end, wrong input included."""

import json
import re
import subprocess

import pytest
import safetensors.torch
import torch
from tiny import tiny_config

from pgraft_fast.cli import main


def one_line(capsys):
    """What went to stderr: exactly one line."""
    text = capsys.readouterr().err.strip()
    assert text.startswith("pgraft-fast: ")
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, more="[log]\ntensorboard = true\n")
    assert main(["finetune", str(config), "--json", str(folder / "result.json")]) == 0
    return folder


def test_finetune(finished):
    result = json.loads((finished / "result.json").read_text())
    run = finished / "run"
    assert result == json.loads((run / "result.json").read_text())
    assert len(result["rounds"]) == 2
    for key in ("before", "after"):
        low, high = result[key]["reward_ci"]
        assert low < result[key]["reward"] < high
    spent = result["spent"]
    assert sum(spent["seconds"].values()) == pytest.approx(spent["total_seconds"], rel=5e-3)
    assert spent["model_calls"] == 2 * (16 * 4 + 3 * 6 * 8)
    assert all(
        spent["seconds"][phase] > 0 for phase in ("start", "sample", "score", "accept", "train", "evaluate", "save")
    )
    assert list((run / "tensorboard").iterdir())
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    assert tensors["head.weight"].shape == (4, 64)
    with safetensors.safe_open(run / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["pgraft_fast"])
    assert metadata["cut"] == 0.25 and metadata["schedule"]["name"] == "cosine"


def test_finetune_again_changes_nothing(finished, capsys):
    before = (finished / "run/model.safetensors").read_bytes()
    assert main(["finetune", str(finished / "config.toml")]) == 0
    errors = capsys.readouterr().err
    assert "is finished: round 2" in errors
    assert "spent 416 model calls; start " in errors
    assert (finished / "run/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("source", ["run", "task"])
def test_sample(finished, tmp_path, source, capsys):
    name = str(finished / "run") if source == "run" else "digits"
    out = tmp_path / "s.safetensors"
    assert main(["sample", name, "--n", "6", "--out", str(out), "--seed", "3", "--json", "-", "--prompt", "7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tuned"] == (source == "run")
    samples = safetensors.torch.load_file(out)["samples"]
    assert samples.shape == (6, 1, 8, 8)
    assert main(["sample", name, "--n", "6", "--out", str(out), "--seed", "3", "--prompt", "7"]) == 0
    assert torch.equal(safetensors.torch.load_file(out)["samples"], samples)
    assert main(["sample", name, "--n", "2", "--out", str(tmp_path / "s.png"), "--guidance", "2", "--steps", "3"]) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_base_samples_of_a_run_are_those_of_the_task(finished, tmp_path):
    for name, more in (("digits", ["--steps", "4"]), (str(finished / "run"), ["--base"])):
        assert main(["sample", name, "--n", "3", "--out", str(tmp_path / f"{len(more)}.safetensors"), *more]) == 0
    task_samples, run_samples = (safetensors.torch.load_file(tmp_path / f"{n}.safetensors")["samples"] for n in (1, 2))
    assert torch.equal(task_samples, run_samples)


def test_report_again(finished, capsys):
    page = finished / "run/report/index.html"
    page.unlink()
    assert main(["report", str(finished / "run"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(page)
    assert page.exists()


def test_info(capsys):
    assert main(["info"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["weights"]["digits"]["classifier"]["held_out_accuracy"] >= 0.97
    assert shown["weights"]["layouts"]["flow"]["alignment"] < 0.35
    assert shown["packages"]["torch"].startswith(torch.__version__.split("+")[0])


REWARDS = """
import torch
calls = []
def raises(x): raise ValueError("no model")
def wrong_shape(x): return torch.zeros(3)
def nan(x): return torch.full((len(x),), float("nan"))
def good(x, prompts): return x.flatten(1).mean(1)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "reward 'raises' raised ValueError: no model"),
        ("wrong_shape", "returned shape (3,) for 16 samples"),
        ("nan", "gave no finite number for 16 of 16 samples"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_bad_rewards(tmp_path, capsys, function, message):
    (tmp_path / "r.py").write_text(REWARDS)
    config = tiny_config(tmp_path)
    assert main(["finetune", str(config), "--reward", f"{tmp_path}/r.py:{function}"]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run/model.safetensors").exists()
    assert not list((tmp_path / "run").glob("**/round-*"))


def test_a_users_reward_and_its_file_belong_to_the_run(tmp_path, capsys):
    (tmp_path / "r.py").write_text(REWARDS)
    config = tiny_config(tmp_path, rounds=1, more='[task]\nreward = "r.py:good"\n')
    assert main(["finetune", str(config)]) == 0
    (tmp_path / "r.py").write_text(REWARDS + "\n# changed\n")
    capsys.readouterr()
    assert main(["finetune", str(config)]) == 2
    assert "reward_sha256" in one_line(capsys)


def test_wrong_input(tmp_path, capsys, finished):
    config = tiny_config(tmp_path)
    (tmp_path / "file").write_text("")
    text = config.read_text()

    def variant(old, new):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(text.replace(old, new))
        return str(path)

    cases = [
        (["finetune", str(tmp_path / "none.toml")], "none.toml: cannot be read"),
        (["finetune", variant("rounds", "runds")], "train.runds is unknown; did you mean train.rounds?"),
        (["finetune", variant("batch_size = 8", "cut = 1.0")], "train.cut = 1.0"),
        (["finetune", variant("k = 2", "k = 9")], "select.k=9 is more than sample.candidates=8"),
        (["finetune", str(config), "--run", str(tmp_path / "file" / "run")], "cannot be written"),
        (["finetune", str(config), "--run", "/proc/pgraft"], "/proc/pgraft"),
        (["finetune", str(config), "--reward", "beauty"], "reward 'beauty' is unknown"),
        (["finetune", str(config), "--json", str(tmp_path / "no/such/folder.json")], "--json"),
        (["sample", str(tmp_path / "no-run")], "not a finished run"),
        (["sample", "digits", "--out", "x.gif"], "must end in .png"),
        (["sample", "digits", "--prompt", "cat"], "--prompt 'cat' is unknown; known: 0, 1"),
        (["sample", "digits", "--n", "0", "--out", str(tmp_path / "x.png")], "--n 0: input should be"),
        (["sample", "digits", "--solver", "fast", "--out", str(tmp_path / "x.png")], "solver='fast' is unknown"),
        (["sample", "digits", "--out", str(tmp_path / "no/x.png")], "cannot be written"),
        (["report", str(tmp_path)], "not a finished run"),
        (["train-base", "cats"], "task 'cats' has no recipe"),
        (["demo", "--seeds", "0"], "--seeds 0"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2, arguments
        assert message in one_line(capsys), arguments
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("**/*.safetensors"))


def test_budget_that_is_too_small(tmp_path, capsys):
    config = tiny_config(tmp_path, more="[budget]\nmodel_calls = 100\n")
    assert main(["finetune", str(config)]) == 2
    assert "a round needs 208 model calls, 100 are left: not one round fits" in one_line(capsys)


def test_damaged_run_folders(finished, tmp_path, capsys):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished / "run"), str(run)], check=True)
    (run / "model.safetensors").write_bytes(b"broken")
    assert main(["sample", str(run), "--out", str(tmp_path / "x.png")]) == 2
    assert "model.safetensors: not a safetensors file" in one_line(capsys)
    (run / "model.safetensors").unlink()
    assert main(["sample", str(run), "--out", str(tmp_path / "x.png")]) == 2
    assert "tuned weights cannot be read" in one_line(capsys)
    for path in run.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(b"broken")
    config = tmp_path / "config.toml"
    config.write_text((finished / "config.toml").read_text().replace(str(finished), str(tmp_path)))
    assert main(["finetune", str(config)]) == 2
    assert "no whole checkpoint is left" in capsys.readouterr().err.splitlines()[-1]
    (run / "result.json").write_text("{")
    assert main(["report", str(run)]) == 2
    assert "damaged" in one_line(capsys)


def test_usage_errors_and_help(capsys):
    for arguments, status in ((["--help"], 0), (["finetune"], 2), (["fine-tune"], 2), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    assert capsys.readouterr().out


def test_one_sample_has_a_reward_and_no_interval(tmp_path, capsys):
    """What cannot be measured of a single sample is null, and the run's result is written all the same."""
    config = tiny_config(tmp_path, rounds=1)
    text = config.read_text().replace("candidates = 8", "candidates = 1").replace("k = 2", "k = 1")
    config.write_text(text.replace("samples = 16", "samples = 1"))
    assert main(["finetune", str(config), "--json", str(tmp_path / "result.json")]) == 0
    after = json.loads((tmp_path / "result.json").read_text())["after"]
    assert after["reward"] > 0 and after["reward_ci"] == [None, None] and after["fd_data"] is None
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report/index.html").read_text()
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
