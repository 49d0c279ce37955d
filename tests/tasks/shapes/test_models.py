"""The shipped shapes models in plain diffusers, their weights, and the recipe at tiny size."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.tasks.shapes import prompts as grammar
from pgraft_fast.tasks.shapes.checker import reward
from pgraft_fast.tasks.shapes.evaluation import quality, sample
from pgraft_fast.tasks.shapes.features import FactsNetwork, facts, features, load_part
from pgraft_fast.tasks.shapes.models import MAX_TOKENS, make_tokenizer, words
from pgraft_fast.tasks.shapes.pipeline import KINDS, TRAINED, WEIGHTS, save_folder, shapes_pipeline, weights_sha256
from pgraft_fast.tasks.shapes.recipe import Cycle, Sizes, train_all
from pgraft_fast.tasks.shapes.render import render, scene
from pgraft_fast.tasks.shapes.training import DROPOUT, mislabelled, training_set

FIGURES = json.loads((WEIGHTS / "figures.json").read_text())


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return shapes_pipeline(request.param)


def by_turns(prompts, n):
    return [prompts[i * len(prompts) // n] for i in range(n)]


def test_shipped_weights_are_small():
    paths = sorted(str(path.relative_to(WEIGHTS)) for path in WEIGHTS.rglob("*") if path.is_file())
    parts = [f"{kind}/{name}.safetensors" for kind in KINDS for name in TRAINED[kind]]
    assert paths == sorted(["features.safetensors", "figures.json", "vae.safetensors", *parts])
    assert sum((WEIGHTS / path).stat().st_size for path in paths) <= 12_000_000


def test_each_word_is_a_token():
    tokenizer = make_tokenizer()
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    longest = max((p.text for p in grammar.train_prompts()), key=lambda text: len(text.split()))
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= MAX_TOKENS
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_pictures_survive_the_autoencoder():
    pipe = shapes_pipeline("sd")
    chosen = by_turns(grammar.train_prompts() + grammar.test_prompts(), 600)
    chosen += by_turns([p for p in grammar.test_prompts() if p.category == "counting"], 100)
    with torch.no_grad():
        latents = pipe.vae.encode(render(chosen, seed=9)).latent_dist.mean
        back = pipe.vae.decode(latents).sample
    assert float((reward(back, chosen) == 1.0).float().mean()) >= 0.99
    assert pipe.vae.config.scaling_factor == 1.0
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)


def test_the_base_is_mediocre(pipe):
    kind = "sd3" if hasattr(pipe, "transformer") else "sd"
    figures = quality(pipe, pictures=8)
    assert figures["questions_right"] == pytest.approx(FIGURES[kind]["questions_right"], abs=0.2)
    assert 0.3 < FIGURES[kind]["questions_right"] < 0.7


def test_a_seed_gives_the_same_pictures(pipe):
    chosen = grammar.test_prompts(1)
    assert torch.equal(sample(pipe, chosen, seed=1, steps=2), sample(pipe, chosen, seed=1, steps=2))
    assert not torch.equal(sample(pipe, chosen, seed=1, steps=2), sample(pipe, chosen, seed=2, steps=2))


@pytest.mark.parametrize("kind", KINDS)
def test_model_folder(kind, tmp_path):
    save_folder(tmp_path / "model", kind)
    plain = {"sd": StableDiffusionPipeline, "sd3": StableDiffusion3Pipeline}[kind]
    absent = {} if kind == "sd" else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = plain.from_pretrained(tmp_path / "model", **absent)
    pipe.set_progress_bar_config(disable=True)

    def draw(pipeline):
        out = pipeline("a red circle", num_inference_steps=4, guidance_scale=4.0, generator=torch.manual_seed(0))
        return np.asarray(out.images[0])

    pictures = draw(pipe)
    assert pictures.shape == (32, 32, 3)
    assert np.array_equal(pictures, draw(shapes_pipeline(kind)))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(InputError, match=r"kind='sdxl': .* sd, sd3"):
        shapes_pipeline("sdxl")
    with pytest.raises(CheckpointError, match=r"vae\.safetensors: weights cannot be read .* train-base shapes"):
        shapes_pipeline("sd", tmp_path)
    shutil.copy(WEIGHTS / "features.safetensors", tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="not of this AutoencoderKL"):
        shapes_pipeline("sd", tmp_path)


def test_hashes_name_the_weights(tmp_path):
    assert weights_sha256("sd") == weights_sha256("sd") != weights_sha256("sd3")
    shutil.copytree(WEIGHTS, tmp_path / "other")
    shutil.copy(WEIGHTS / "sd3/text_encoder.safetensors", tmp_path / "other/sd3/text_encoder_2.safetensors")
    assert weights_sha256("sd", tmp_path / "other") == weights_sha256("sd")
    assert weights_sha256("sd3", tmp_path / "other") != weights_sha256("sd3")


def test_features_know_the_facts():
    chosen = by_turns(grammar.test_prompts(), 400)
    pictures = render(chosen, seed=4)
    values = features(pictures)
    assert values.shape == (400, 48) and values.dtype == torch.float32
    network = FactsNetwork()
    load_part(network, WEIGHTS / "features.safetensors")
    predicted = (network(pictures) > 0).float()
    assert float((predicted == facts([scene(p, 4, i) for i, p in enumerate(chosen)])).float().mean()) > 0.94
    assert features(pictures[:0]).shape == (0, 48)


def test_training_sees_training_prompts_only():
    pictures, chosen = training_set(60, seed=0)
    assert pictures.shape == (60, 3, 32, 32) and pictures.dtype == torch.uint8
    assert {p.key for p in chosen} <= {p.key for p in grammar.train_prompts()}
    assert not {p.key for p in chosen} & {p.key for p in grammar.test_prompts()}
    assert [p.category for p in chosen[:6]] == list(grammar.CATEGORIES)
    assert DROPOUT == 0.1


def test_wrong_captions_are_of_the_same_category():
    _, chosen = training_set(600, seed=0)
    wrong = mislabelled(chosen, 0.5, seed=1)
    assert wrong == mislabelled(chosen, 0.5, seed=1) != mislabelled(chosen, 0.5, seed=2)
    assert [p.category for p in wrong] == [p.category for p in chosen] and set(wrong) <= set(chosen)
    # Of 600, half with a standard deviation of 12; a few draw their own prompt again.
    assert 240 <= sum(a != b for a, b in zip(wrong, chosen, strict=True)) <= 340
    assert mislabelled(chosen, 0.0, seed=1) == chosen


@pytest.mark.faults
def test_recipe_runs(tmp_path):
    lines, calls = [], []
    sizes = Sizes(pictures=60, vae=2, features=2, sd=(Cycle(1), Cycle(1, 1e-3, 0.5)), sd3=(Cycle(1),), judged=1)
    with torch.random.fork_rng(devices=[]):
        figures = train_all(tmp_path, 1, lines.append, lambda: calls.append(1), sizes)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert set(figures) == {"seed", "vae", "sd", "sd3", "seconds"}
    assert any(line.startswith("sd3: ") for line in lines) and len(calls) >= 10
    assert sample(shapes_pipeline("sd3", tmp_path), grammar.test_prompts(1)[:2], steps=1).shape == (2, 3, 32, 32)
    assert features(torch.zeros(2, 3, 32, 32), tmp_path).shape == (2, 48)
