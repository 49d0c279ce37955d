"""CLIPScore, PickScore and the aesthetic score against what their definitions give."""

import json
import pickle

import pytest
import torch
from reward_models import as_pil, image_processor, pictures, tokenizer
from safetensors.torch import save_file
from torch import nn

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.aesthetic import AestheticScore
from pgraft_fast.rewards.clip_score import ClipScore, PickScore

PROMPTS = ["a cat", "a red dog", "a cat", "dog", "a red cat a dog a cat"]


@pytest.fixture(scope="module")
def cosines(clip):
    """Of every picture with its prompt, one pair at a time, prepared by PIL."""
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(clip)
    prepare, words, similarities = image_processor(transformers), tokenizer(), []
    for picture, prompt in zip(as_pil(pictures(5)), PROMPTS, strict=True):
        tokens = words(prompt, truncation=True, max_length=6, return_tensors="pt")
        pixels = prepare(picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(**tokens, pixel_values=pixels).logits_per_image
            similarities.append(float(logits / model.logit_scale.exp()))
    return torch.tensor(similarities)


def test_clip_score(clip, cosines):
    assert (cosines > 0.05).any() and (cosines < -0.05).any()
    scores = ClipScore(clip)(pictures(5).requires_grad_(), PROMPTS)
    torch.testing.assert_close(scores, 2.5 * cosines.clamp(min=0), atol=0.02, rtol=0)
    assert scores.dtype == torch.float32 and not scores.requires_grad


def test_pick_score(clip, cosines):
    reward = PickScore(clip)
    scores = reward(pictures(5), PROMPTS)
    scale = float(reward._model.logit_scale.exp())
    torch.testing.assert_close(scores / scale, cosines, atol=0.01, rtol=0)
    torch.testing.assert_close(
        PickScore(clip, dtype=torch.bfloat16)(pictures(5), PROMPTS) / scale, cosines, atol=0.1, rtol=0
    )


def test_prompts_are_encoded_once(clip):
    reward, seen = ClipScore(clip, prefix="a "), []
    reward.prepare()
    encode = reward._encode
    reward._encode = lambda texts, device: seen.extend(texts) or encode(texts, device)
    first = reward(pictures(5), PROMPTS)
    assert seen == ["a a cat", "a a red dog", "a dog", "a a red cat a dog a cat"]
    assert torch.equal(reward(pictures(5), PROMPTS), first)
    assert len(seen) == 4
    # One at a time, the same numbers.
    alone = torch.cat([reward(pictures(5)[[i]], [PROMPTS[i]]) for i in range(5)])
    torch.testing.assert_close(alone, first)
    reward.close()
    assert reward._model is None
    assert torch.equal(reward(pictures(5), PROMPTS), first)


def test_what_is_missing(clip, tmp_path):
    for path, message in [(tmp_path / "none", "there is no such folder"), (tmp_path, "the folder has no config.json")]:
        with pytest.raises(RewardError, match=message):
            AestheticScore(path, "x.pth").prepare()
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    with pytest.raises(RewardError, match=r"the folder has no \*\.safetensors"):
        AestheticScore(tmp_path, "x.pth").prepare()
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match=r"lacks \d+ tensors of CLIPModel, the first is text_model"):
        AestheticScore(tmp_path, "x.pth").prepare()
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(RewardError, match="cannot be loaded as CLIPModel") as caught:
        AestheticScore(tmp_path, "x.pth").prepare()
    assert "\n" not in str(caught.value)
    (tmp_path / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    with pytest.raises(RewardError, match=r"the folder has no tokenizer\.json"):
        ClipScore(tmp_path).prepare()
    (tmp_path / "tokenizer.json").write_text("junk")
    with pytest.raises(RewardError, match="cannot be loaded as AutoTokenizer") as caught:
        ClipScore(tmp_path).prepare()
    assert "\n" not in str(caught.value)


def predictor(width):
    """The shape of the published layers, narrower."""
    return nn.Sequential(
        nn.Linear(width, 10), nn.Dropout(0.2), nn.Linear(10, 7), nn.Dropout(0.2), nn.Linear(7, 5), nn.Dropout(0.1),
        nn.Linear(5, 4), nn.Linear(4, 1),
    ).eval()  # fmt: skip


def test_aesthetic(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    layers = predictor(6)
    tensors = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    torch.save(tensors, tmp_path / "layers.pth")
    save_file(tensors, tmp_path / "layers.safetensors")
    model = transformers.CLIPModel.from_pretrained(clip)
    pixels = image_processor(transformers)(as_pil(pictures(5)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        expected = layers(image / image.norm(dim=-1, keepdim=True)).squeeze(1)
    for file in ("layers.pth", "layers.safetensors"):
        reward = AestheticScore(clip, tmp_path / file)
        torch.testing.assert_close(reward(pictures(5), PROMPTS), expected, atol=0.01, rtol=0)
    assert not hasattr(reward._model, "text_model")
    reward.close()
    torch.testing.assert_close(reward(pictures(5)), expected, atol=0.01, rtol=0)


class Evil:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_aesthetic_weights_that_are_wrong(clip, tmp_path, capsys):
    wrong = {"width": predictor(5).state_dict(), "none": {}, "out": nn.Sequential(nn.Linear(6, 2)).state_dict()}
    wrong |= {"bias": {"0.weight": torch.zeros(1, 6), "0.bias": torch.zeros(2)}, "list": [1]}
    for name, tensors in wrong.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
    (tmp_path / "junk.safetensors").write_bytes(json.dumps({}).encode())
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for file, message in [
        ("gone.pth", "there is no such file"),
        ("width.pth", "do not lead from the 6 numbers of the CLIP model to one"),
        ("none.pth", "its layers are none"),
        ("out.pth", r"its layers are \[\(2, 6\)\]"),
        ("bias.pth", "do not lead"),
        ("list.pth", "holds list, not tensors"),
        ("junk.safetensors", "is not a file of weights"),
        ("evil.pth", r"is not a file of weights \(UnpicklingError\)"),
    ]:
        with pytest.raises(RewardError, match=message):
            AestheticScore(clip, tmp_path / file).prepare()
    assert "ran" not in capsys.readouterr().out
