"""VQAScore on tiny encoder-decoders and chat models, against one question at a time by the models' own classes."""

import sys

import pytest
import torch
from reward_models import WORDS, as_pil, pictures

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards.vqa_score import QUESTION, VqaScore

PROMPTS = ["a cat", "a red dog a cat", "dog"]
YES = WORDS.index("Yes")


def yes(logits):
    return float(torch.softmax(logits[0, -1], dim=0)[YES])


@pytest.mark.parametrize("kind", ["Blip2", "InstructBlip"])
def test_encoder_decoder(kind, encoder_decoder):
    transformers = pytest.importorskip("transformers")
    folder = encoder_decoder(kind)
    model = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(folder)
    processor = getattr(transformers, f"{kind}Processor").from_pretrained(folder)
    expected = []
    for picture, prompt in zip(as_pil(pictures(3)), PROMPTS, strict=True):
        inputs = processor(
            images=picture, text=f'Does this figure show "{prompt}"? Please answer yes or no.', return_tensors="pt"
        )
        with torch.no_grad():
            expected.append(yes(model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits))
    scores = VqaScore(folder)(pictures(3), PROMPTS)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert scores.dtype == torch.float32 and len(set(scores.tolist())) == 3


def test_llava(llava):
    transformers = pytest.importorskip("transformers")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    processor = transformers.LlavaProcessor.from_pretrained(llava)
    expected = []
    for picture, prompt in zip(as_pil(pictures(3)), PROMPTS, strict=True):
        inputs = processor(images=picture, text=f"USER <image> {prompt} figure ASSISTANT", return_tensors="pt")
        with torch.no_grad():
            expected.append(yes(model(**inputs).logits))
    scores = VqaScore(llava, question="{prompt} figure")(pictures(3), PROMPTS)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    no = VqaScore(llava, question="{prompt} figure", answer="No")(pictures(3), PROMPTS)
    assert (no + scores < 1).all() and not torch.equal(no, scores)
    half = VqaScore(llava, question="{prompt} figure", dtype=torch.bfloat16)(pictures(3), PROMPTS)
    torch.testing.assert_close(half, scores, atol=0.05, rtol=0.2)


def test_qwen(qwen):
    transformers = pytest.importorskip("transformers")
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(qwen)
    images = transformers.AutoImageProcessor.from_pretrained(qwen)
    pad, expected = WORDS.index("<|image_pad|>"), []
    for picture, prompt in zip(as_pil(pictures(3)), PROMPTS, strict=True):
        pixels = images(images=[picture], return_tensors="pt")
        # A grid of 4 x 4 patches is 4 tokens after merging 2 x 2.
        assert pixels["image_grid_thw"].tolist() == [[1, 4, 4]]
        words = ["USER", "<|vision_start|>", *["<|image_pad|>"] * 4, "<|vision_end|>", *prompt.split(), "ASSISTANT"]
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=(ids == pad).int(), **pixels).logits
        expected.append(yes(logits))
    scores = VqaScore(qwen, question="{prompt}")(pictures(3), PROMPTS)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert "torchvision" not in sys.modules


def test_what_is_wrong(llava, tmp_path):
    assert QUESTION.count("{prompt}") == 1
    with pytest.raises(InputError, match=r"question = 'is it good': must hold \{prompt\}"):
        VqaScore(llava, question="is it good")
    with pytest.raises(InputError, match="answer = ' ': must be a word"):
        VqaScore(llava, answer=" ")
    with pytest.raises(RewardError, match="has no token for the answer 'Maybe'"):
        VqaScore(llava, answer="Maybe").prepare()
    with pytest.raises(RewardError, match="there is no such folder"):
        VqaScore(tmp_path / "none")(pictures(1), ["a cat"])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in llava.iterdir():
        if file.name != "chat_template.jinja":
            (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RewardError, match="has no chat template"):
        VqaScore(copy).prepare()
