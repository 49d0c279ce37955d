"""The layouts task: models, prompts, rewards, figures; samples that do not depend on what is beside them."""

import json
import shutil

import numpy as np
import pytest
import torch
from pages import TIDY, TIDY_LABELS, page
from safetensors import safe_open

from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.finetune import FinetuneSettings, Ledger, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.finetune.identity import lasting
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.evaluation import evaluate, features_of, pictures_of
from pgraft_fast.tasks.evaluation import quality_of as quality_of_evaluation
from pgraft_fast.tasks.layouts import metrics, rewards
from pgraft_fast.tasks.layouts.archive import npz_bytes
from pgraft_fast.tasks.layouts.conditions import KINDS, condition_of, counts_of, element_mask
from pgraft_fast.tasks.layouts.data import load_parts, parts_of
from pgraft_fast.tasks.layouts.elements import pack, unpack
from pgraft_fast.tasks.layouts.pages import shipped
from pgraft_fast.tasks.layouts.task import LayoutsSettings, layouts_task
from pgraft_fast.tasks.layouts.variants import VARIANTS, WEIGHTS


@pytest.fixture(scope="module")
def task():
    return layouts_task(LayoutsSettings(variant="flow"))


def drawn(task, condition, n_max=25, ids=None, steps=4):
    ids = torch.arange(len(condition)) if ids is None else ids
    return rollout(
        task.model, task.schedule, shape=(n_max, 9), sample_ids=ids, steps=steps, solver="ddpm",
        parameterization=task.parameterization, condition=condition[:, :n_max],
    ).x_0  # fmt: skip


def tidy_page(task):
    labels, boxes = page(TIDY, TIDY_LABELS)
    return pack(labels, boxes, 5), ["5 elements"]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow
def test_the_shipped_models_draw_pages(name):
    """Better than boxes of real pages put anywhere; what the recipe measured stands in the files."""
    task = layouts_task(LayoutsSettings(variant=name))
    condition = task.held_out.condition[:128]
    samples = drawn(task, condition, steps=20)
    figures = task.measures(samples, condition)
    assert figures["alignment x100"] < 0.5 and figures["overlap x100"] < 42 and figures["inside"] > 0.97
    assert figures["distinct"] == 1.0
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as file:
        told = json.loads(file.metadata()["pgraft_fast"])
    assert told["alignment"] < 0.35 and told["overlap"] < 35 and "trained" in told
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 4_000_000


def test_real_pages_beside_other_real_pages(task):
    """Figures of the data, and the distance of held-out pages to it."""
    figures = task.measures_of_data()
    assert 0.05 < figures["alignment x100"] < 0.2 and figures["overlap x100"] < 3 and figures["inside"] == 1.0
    assert figures["distinct"] > 0.97 and 0.1 < figures["maxIoU"] < 0.5
    train, held_out = load_parts(None)
    labels, boxes = train.labels[:1000], train.boxes[:1000]
    expected = 100.0 * float(metrics.overlap(labels, boxes).mean())
    assert figures["overlap x100"] == pytest.approx(expected, rel=1e-5)
    samples = pack(held_out.labels, held_out.boxes, 5)
    condition = condition_of([f"{count} elements" for count in held_out.count.tolist()])
    quality = task.quality_of(task.features(samples, condition), torch.zeros(len(samples)), None)
    assert 0 < quality["fd_data"] < 4 and task.data.shape == (3600, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_of_the_part_they_belong_to(kind):
    task = layouts_task(LayoutsSettings(prompts=kind))
    for prompts in (task.prompts, task.held_out):
        assert torch.equal(prompts.condition, condition_of(prompts.text))
        assert torch.equal(prompts.elements(prompts.condition), element_mask(prompts.condition))
        assert len(prompts.text) == 1000
    train, held_out = parts_of(shipped())
    told = task.held_out.condition[task.held_out.condition[..., 1] > 0.5][:, 2:]
    if kind == "completion":
        near = (told[:50, None, None] - held_out.boxes).abs().amax(dim=-1).flatten(1).amin(dim=1)
        assert float(near.max()) < 1e-3 and len(told) > 1000
        far = (told[:50, None, None] - train.boxes).abs().amax(dim=-1).flatten(1).amin(dim=1)
        assert float(far.median()) > 2e-3
    else:
        assert not len(told)
    # Any number of the first prompts has sizes as all.
    sizes = counts_of(task.held_out.condition).double()
    assert float(sizes[:64].mean()) == pytest.approx(float(held_out.count.double().mean()), abs=1.0)


def test_rewards_see_the_elements_of_the_prompts_alone(task):
    samples, prompts = tidy_page(task)
    for name in ("tidy", "alignment", "overlap", "inside"):
        expected = getattr(rewards, name)(samples, torch.tensor([5]))
        assert torch.equal(task.rewards[name](samples, prompts), expected)
    samples[:, 5:] = torch.nan
    assert float(task.rewards["inside"](samples, prompts)) == 1.0
    # One more is read where one more is asked for.
    assert float(task.rewards["inside"](samples, ["6 elements"])) == 0.0
    with pytest.raises(InputError, match=r"layout '7 cats' cannot be read: .*; for example"):
        task.rewards["tidy"](samples, ["7 cats"])
    with pytest.raises(InputError, match="reward 'beauty' is unknown; known: tidy"):
        task.reward("beauty")


def test_a_reward_of_ones_own_gets_boxes_and_labels(task, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def figures(boxes, labels):\n"
        "    assert boxes.shape == (1, 25, 4) and labels[0, 5:].eq(-1).all() and not boxes[0, 5:].any()\n"
        "    return (labels == 4).sum(dim=1).float() + boxes[:, 0, 0]\n"
    )
    reward = task.reward(f"{tmp_path}/mine.py:figures")
    assert float(reward(*tidy_page(task))) == pytest.approx(1.5)


def test_a_sample_does_not_change_with_its_padding_its_neighbours_or_the_batch(task):
    texts = ["3 elements", "title, text, text, figure", "text at 0.5 0.5 0.5 0.25, 6 elements", "20 elements"]
    condition = condition_of(texts)
    whole = drawn(task, condition)
    alone = torch.cat([drawn(task, condition[row : row + 1], ids=torch.tensor([row])) for row in range(4)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)
    narrow = drawn(task, condition, n_max=20)
    torch.testing.assert_close(narrow, whole[:, :20], rtol=1e-4, atol=1e-4)
    turned = drawn(task, condition.flip(0), ids=torch.arange(4).flip(0)).flip(0)
    torch.testing.assert_close(turned, whole, rtol=1e-4, atol=1e-4)
    assert not bool(whole.where(~element_mask(condition)[..., None], 0.0).any())
    # Where the model has no part in it, bit for bit: the noise.
    for n_max in (20, 23):
        start = [
            rollout(
                lambda x, t, condition: torch.zeros_like(x), task.schedule, shape=(width, 9), n=4, steps=2,
                parameterization="velocity", solver="euler", condition=condition[:, :width],
            ).x_0
            for width in (n_max, 25)
        ]  # fmt: skip
        assert torch.equal(start[0], start[1][:, :n_max])


def test_what_is_given_is_in_every_sample(task):
    text = "title at 0.5 0.1 0.6 0.04, figure, 3 elements"
    labels, boxes = unpack(drawn(task, task.condition_of([text] * 3)), torch.full((3,), 5))
    assert (labels[:, :2] == torch.tensor([1, 4])).all() and (labels[:, 5:] == -1).all()
    torch.testing.assert_close(boxes[:, 0], torch.tensor([0.5, 0.1, 0.6, 0.04]).expand(3, 4), rtol=0, atol=1e-5)


def test_an_evaluation_and_a_round(task, tmp_path):
    """The same layout twice, in another order of its elements, is accepted once."""
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=3, candidates=4, steps=3),
        select=SelectSettings(rule="binary", threshold=-100.0),
        train=TrainSettings(steps=2, batch_size=4),
    )
    drawn = evaluate(task, task.rewards["tidy"], settings, 8, ledger=Ledger())
    quality = quality_of_evaluation(task, drawn, None, 4)
    assert set(quality["measures"]) == set(task.measures_of_data()) and features_of(task, drawn).shape == (8, 64)
    pictures = pictures_of(task, drawn, torch.tensor([0, 5]))
    assert pictures.shape == (2, 220, 160, 3) and pictures.dtype == np.uint8
    samples, condition = drawn.samples[:1], drawn.condition[:1]
    size = int(counts_of(condition))
    other = samples.clone()
    other[0, :size] = samples[0, torch.arange(size).flip(0)]
    numbers = task.prompts.same(torch.cat([samples, other, samples + 0.5]), condition.expand(3, -1, -1))
    assert numbers[0] == numbers[1] != numbers[2]
    trainer = Trainer(
        task.model, task.schedule, task.rewards["tidy"], settings, shape=task.shape, prompts=task.prompts,
        parameterization=task.parameterization, run=tmp_path, log=lambda text: None,
    )  # fmt: skip
    trainer.run_rounds()
    assert any(not torch.equal(a, b) for a, b in zip(trainer.tuned.parameters(), task.model.parameters(), strict=True))


def test_identity_names_weights_and_data(tmp_path):
    shipped_identity = layouts_task(LayoutsSettings(variant="flow")).identity
    for path in WEIGHTS.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(WEIGHTS / "vp.safetensors", tmp_path / "flow.safetensors")
    (tmp_path / "pages.npz").write_bytes(npz_bytes(shipped().rows(torch.arange(100))))
    data = str(tmp_path / "pages.npz")
    other = layouts_task(LayoutsSettings(variant="flow", weights=str(tmp_path), data=data, n_max=20))
    assert other.shape == (20, 9) and int(counts_of(other.prompts.condition).max()) <= 20
    assert all(other.identity[key] != shipped_identity[key] for key in ("model_sha256", "data_sha256"))
    assert other.identity["features_sha256"] == shipped_identity["features_sha256"] and json.dumps(other.identity)
    # Where the data lies may change; what it is may not.
    assert set(lasting({"task": {"data": data, "name": "layouts"}})["task"]) == {"name"}


def test_missing_and_other_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"vp\.safetensors: weights cannot be read"):
        layouts_task(LayoutsSettings(weights=str(tmp_path)))
    shutil.copy(WEIGHTS / "features.safetensors", tmp_path / "vp.safetensors")
    with pytest.raises(CheckpointError, match="not of a LayoutsDiT"):
        layouts_task(LayoutsSettings(weights=str(tmp_path)))
