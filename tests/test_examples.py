"""The scripts of examples/ do what they say, at sizes for a test."""

import importlib.util
from pathlib import Path

import pytest
from pipelines import build

import pgraft_fast as pf

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "examples"
SMALL = {"steps": 4, "prompts": 2, "evaluate": 4, "epochs": 1, "batch_size": 2, "lora": pf.Lora(rank=2)}


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    build("sd").save_pretrained(place)
    return str(place)


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_") and name != "test_all_are_here"
    }


def test_finetune_pipeline(folder, tmp_path):
    result = example("finetune_pipeline").main(folder, 0.1, str(tmp_path / "run"), **SMALL)
    assert result.report.is_file() and (tmp_path / "run" / "after.png").is_file()


def test_own_reward(folder, tmp_path):
    result = example("own_reward").main(folder, str(tmp_path / "run"), **SMALL)
    assert result.before.interval[0] <= result.before.reward


def test_faster_pipeline(folder):
    assert example("faster_pipeline").main(folder, 4) < 1e-5


def test_correct_flow():
    plain, corrected = example("correct_flow").main(512, 100)
    assert abs(corrected - 0.5) < 0.5 * abs(plain - 0.5)


def test_own_model(tmp_path):
    before, after = example("own_model").main(str(tmp_path / "run"), 300, 1)
    assert after > before + 0.1
