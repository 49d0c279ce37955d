"""Whole runs on models of one's own."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pgraft_fast as pf
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.runs.model_run import _pictures
from pgraft_fast.tasks.evaluation import EVALUATION_IDS

FLOW = pf.Schedule.linear_flow()


class Net(nn.Module):
    """model(x, t) or model(x, t, condition), for points of four numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, x, t, condition=None):
        condition = torch.zeros(len(x)) if condition is None else condition
        return self.layers(torch.cat((x, t[:, None], condition[:, None]), dim=1))


def total(samples, prompts):
    return samples.sum(1)


def config_of(run, **options):
    small = {"steps": 5, "candidates": 4, "keep": 2, "prompts": 2, "epochs": 3, "batch_size": 4, "evaluate": 8}
    return pf.PGraftConfig(**{**small, "cut": 0.4, "rounds": 2, "learning_rate": 1e-2, "run": str(run), **options})


def trainer_of(run, model=None, reward=total, prompts=None, config=None, **options):
    arguments = {"shape": (4,), "parameterization": "velocity", "log": lambda text: None, **options}
    config = config_of(run) if config is None else config
    return pf.PGraftTrainer.from_model(Net() if model is None else model, FLOW, reward, prompts, config, **arguments)


def test_a_run_is_that_of_the_engine(tmp_path):
    """The same settings in the engine's words give the same weights, to the bit."""
    result = trainer_of(tmp_path / "run").train()
    settings = pf.FinetuneSettings(
        sample=SampleSettings(prompts=2, candidates=4, steps=5, solver="euler_sde", batch_size=16),
        select=SelectSettings(k=2),
        train=TrainSettings(cut=0.4, rounds=2, epochs=3, batch_size=4, learning_rate=1e-2, ema=0.9),
    )
    engine = Trainer(
        Net(), FLOW, lambda x: x.sum(1), settings, shape=(4,), parameterization="velocity", run=tmp_path / "engine",
        log=lambda text: None,
    )  # fmt: skip
    engine.run_rounds()
    saved = load_file(result.adapter)
    assert saved.keys() == engine.tuned.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in engine.tuned.state_dict().items())
    assert [entry.reward for entry in result.history] == [entry["reward"] for entry in engine.history]
    assert (result.cut, result.run, result.report.exists()) == (0.4, tmp_path / "run", True)


def test_before_and_after_are_rewards_of_the_samples(tmp_path):
    model = Net()
    result = trainer_of(tmp_path / "run", model).train()
    tuned = Net()
    tuned.load_state_dict(load_file(result.adapter))
    draw = {
        "shape": (4,), "n": 8, "steps": 5, "solver": "euler_sde", "parameterization": "velocity", "seed": 0,
        "sample_ids": torch.arange(8) + EVALUATION_IDS,
    }  # fmt: skip
    before = pf.rollout(model, FLOW, **draw).x_0.sum(1)
    after = pf.rollout(model, FLOW, tuned=tuned, cut=0.4, **draw).x_0.sum(1)
    assert result.before.reward == pytest.approx(float(before.mean()), abs=1e-5)
    assert result.after.reward == pytest.approx(float(after.mean()), abs=1e-5)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), Net().parameters(), strict=True))


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    expected = trainer_of(tmp_path / "whole").train()

    def stop(number, entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "parts", on_round=stop).train()
    with pytest.raises(InputError, match=r"^rewards"):
        trainer_of(tmp_path / "parts", reward=lambda samples, prompts: samples.sum(1)).train()
    other = Net()
    torch.nn.init.zeros_(other.layers[0].bias)
    with pytest.raises(InputError, match=r"^model"):
        trainer_of(tmp_path / "parts", other).train()
    resumed = trainer_of(tmp_path / "parts").train()
    assert resumed.adapter.read_bytes() == expected.adapter.read_bytes()
    assert resumed.after == expected.after


def test_conditions_and_held_out_prompts(tmp_path):
    """The model gets the condition of the prompt that the reward gets."""
    seen = set()

    class Watched(Net):
        def forward(self, x, t, condition):
            seen.update(condition.tolist())
            return super().forward(x, t, condition)

    prompts = pf.Prompts(["minus", "plus"], torch.tensor([-1.0, 1.0]))
    held_out = pf.Prompts(["half"], torch.tensor([0.5]))
    texts = set()

    def reward(samples, prompts):
        texts.update(prompts)
        return samples[:, 0]

    trainer_of(tmp_path / "run", Watched(), reward, prompts, held_out=held_out).train()
    assert seen == {-1.0, 1.0, 0.5} and texts == {"minus", "plus", "half"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": 3}, "model: int is no torch.nn.Module with weights"),
        ({"prompts": "plus"}, "prompts: give a list of texts, or Prompts with a condition for each"),
        ({"prompts": [1, 2]}, "prompts: give a list of texts, or Prompts with a condition for each"),
        (
            {"prompts": pf.Prompts(["a", "b"], torch.zeros(3))},
            "prompts: 2 texts with 3 conditions; give one for each",
        ),
        ({"reward": 3}, "reward: int is neither a function, nor file.py:function, nor a list of these"),
        ({"parameterization": "noise"}, "parameterization='noise' is unknown.*"),
        ({"lora": pf.Lora(rank=4)}, "lora: of a model of one's own all weights are trained; leave it out"),
        ({"guidance": 3.0}, "guidance: a model of one's own is guided by itself; wrap it with pgraft_fast.guided"),
        ({"checkpointing": True}, "checkpointing: a model of one's own does this itself; leave it out"),
        ({"shard": "always"}, "shard='always': a model of one's own is whole on each rank; leave it out"),
        ({"keep": 5}, "config: .*select.k=5 is more than sample.candidates=4"),
    ],
)
def test_wrong_input_is_one_line(options, line, tmp_path):
    own = {
        name: options.pop(name) for name in ("lora", "guidance", "checkpointing", "shard", "keep") if name in options
    }
    with pytest.raises(InputError, match=f"^{line}$") as caught:
        trainer_of(tmp_path / "run", config=config_of(tmp_path / "run", **own), **options).train()
    assert "\n" not in str(caught.value)


def test_values_are_shown_as_grey_areas():
    """Five values in three columns and two rows; the place without a value is white."""
    shown = _pictures(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 4.0, 4.0, 0.0]]))
    assert shown.shape == (2, 22, 33) and shown.dtype == np.uint8
    assert shown[0, ::11, ::11].tolist() == [[0, 64, 128], [191, 255, 255]]
    assert shown[1, ::11, ::11].tolist() == [[255, 255, 255], [255, 0, 255]]
    assert _pictures(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 8, 3)
