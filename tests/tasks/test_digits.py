"""The digits task: data, shipped weights, rewards, recipe."""

import json
import shutil

import pytest
import torch
from repeats import repeats

from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.finetune import FinetuneSettings, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.digits.classifier import DigitsClassifier
from pgraft_fast.tasks.digits.data import load_digits
from pgraft_fast.tasks.digits.dit import NULL_LABEL, DigitsDiT
from pgraft_fast.tasks.digits.recipe import base_quality, classifier_accuracy, train_base, train_classifier
from pgraft_fast.tasks.digits.shipped import VARIANTS, WEIGHTS
from pgraft_fast.tasks.weights import load_weights


@pytest.fixture(scope="module")
def classifier():
    return load_weights(DigitsClassifier(), WEIGHTS / "classifier.safetensors")[0]


def test_split():
    train, held_out = load_digits("train"), load_digits("held_out")
    assert (train.labels.numel(), held_out.labels.numel()) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8)
    assert float(train.images.min()) == -1.0 and float(train.images.max()) == 1.0
    # No held-out scan is among the training scans.
    assert float(torch.cdist(held_out.images.flatten(1), train.images.flatten(1)).min()) > 0
    assert torch.bincount(held_out.labels).tolist() == pytest.approx([36] * 10, abs=1)


def test_shipped_weights_are_small():
    sizes = [path.stat().st_size for path in WEIGHTS.iterdir()]
    assert sum(sizes) <= 4_000_000
    assert sorted(path.name for path in WEIGHTS.iterdir()) == [
        "classifier.safetensors",
        "flow.safetensors",
        "mlp_flow.safetensors",
        "vp.safetensors",
    ]


def test_classifier_reads_held_out_digits(classifier):
    assert classifier_accuracy(classifier, load_digits("held_out")) >= 0.97


@pytest.mark.parametrize("name", ["flow", *repeats("vp")])
def test_shipped_models_draw_digits(name, classifier):
    task = digits_task(DigitsSettings(variant=name))
    measured = base_quality(task.model, VARIANTS[name], classifier, steps=20)
    # The bounds of the recipe's own 50 steps, met with fewer.
    assert measured["fd_conditional"] < 0.5
    assert measured["fd_unconditional"] < 5.0
    assert measured["label_accuracy"] > 0.97


def test_model_without_labels_is_the_null_label():
    model = digits_task(DigitsSettings()).model
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), NULL_LABEL)))
    assert not torch.equal(model(x, t), model(x, t, torch.tensor([1, 2, 3])))


def test_a_new_model_predicts_zero():
    assert not DigitsDiT()(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


def test_rewards(classifier):
    task = digits_task(DigitsSettings())
    data = load_digits("held_out")
    prompts = [str(int(label)) for label in data.labels]
    assert float(task.rewards["label"](data.images, prompts).mean()) > 0.85
    assert torch.isnan(task.rewards["label"](data.images[:1], ["a cat"])).all()
    threes = task.rewards["digit_3"](data.images)
    assert float(threes[data.labels == 3].mean()) > 0.85
    assert float(threes[data.labels != 3].mean()) < 0.1
    with pytest.raises(InputError, match="reward 'beauty' is unknown; known: symmetry"):
        task.reward("beauty")


def test_unconditional_task():
    task = digits_task(DigitsSettings(conditional=False, variant="flow"))
    assert task.prompts.condition is None
    assert task.prompts.null is None
    drawn = rollout(
        task.model,
        task.schedule,
        shape=task.shape,
        n=4,
        steps=5,
        parameterization=task.parameterization,
        solver="euler",
    )
    assert task.pictures(drawn.x_0, None).shape == (4, 8, 8)


def test_quality_of_the_data_itself():
    task = digits_task(DigitsSettings())
    images = load_digits("held_out").images
    figures = task.quality_of(task.features(images, None), task.rewards["symmetry"](images), None)
    assert figures["fd_accepted"] is None
    assert figures["fd_data"] == pytest.approx(0.50, abs=0.1)
    assert figures["precision"] > 0.8 and figures["recall"] > 0.75
    low, high = figures["reward_ci"]
    assert low < figures["reward"] < high


def test_recipe_learns():
    torch.manual_seed(0)
    quick = train_classifier(seed=0, epochs=3)
    assert classifier_accuracy(quick, load_digits("held_out")) > 0.8
    lines = []
    model = train_base(VARIANTS["flow"], seed=0, steps=40, log=lines.append, width=16, depth=1)
    again = train_base(VARIANTS["flow"], seed=0, steps=40, log=lines.append, width=16, depth=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert float(model(torch.randn(2, 1, 8, 8), torch.rand(2)).abs().max()) > 0.01


def test_missing_and_damaged_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"vp\.safetensors: weights cannot be read"):
        digits_task(DigitsSettings(weights=str(tmp_path)))
    for path in WEIGHTS.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "vp.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        digits_task(DigitsSettings(weights=str(tmp_path)))
    shutil.copy(WEIGHTS / "classifier.safetensors", tmp_path / "vp.safetensors")
    with pytest.raises(CheckpointError, match="not of a DigitsDiT"):
        digits_task(DigitsSettings(weights=str(tmp_path)))


def test_identity_names_the_weights(tmp_path):
    for path in WEIGHTS.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(WEIGHTS / "vp.safetensors", tmp_path / "flow.safetensors")
    shipped = digits_task(DigitsSettings(variant="flow")).identity
    other = digits_task(DigitsSettings(variant="flow", weights=str(tmp_path))).identity
    assert shipped["model_sha256"] != other["model_sha256"]
    assert json.dumps(shipped)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_prompts_are_left_out_in_training_as_often_as_asked(tmp_path, monkeypatch, share):
    """What the model sees in a run: 600 rows and the null label in that share of them, by their draws alone."""
    seen = []
    forward = DigitsDiT.forward

    def watched(self, x, t, label=None):
        if torch.is_grad_enabled():
            seen.append(label.clone())
        return forward(self, x, t, label)

    monkeypatch.setattr(DigitsDiT, "forward", watched)
    task = digits_task(DigitsSettings())
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=4, candidates=4, steps=2),
        select=SelectSettings(k=2),
        train=TrainSettings(steps=60, batch_size=10, null_prompt=share),
    )
    trainer = Trainer(
        task.model, task.schedule, task.rewards["symmetry"], settings, shape=task.shape,
        parameterization=task.parameterization, prompts=task.prompts, run=tmp_path, log=lambda text: None,
    )  # fmt: skip
    trainer.run_rounds()
    labels = torch.cat(seen)
    assert labels.numel() == 600
    assert abs(float((labels == NULL_LABEL).double().mean()) - share) < 0.05
    assert set(labels.tolist()) - {NULL_LABEL} <= set(range(10))


def test_prompts_that_cannot_be_left_out(tmp_path):
    task = digits_task(DigitsSettings(conditional=False))
    settings = FinetuneSettings(train=TrainSettings(null_prompt=0.1))
    with pytest.raises(InputError, match=r"train.null_prompt=0.1: this model is trained without prompts"):
        Trainer(
            task.model, task.schedule, task.rewards["symmetry"], settings, shape=task.shape,
            parameterization=task.parameterization, prompts=task.prompts, run=tmp_path,
        )  # fmt: skip
