"""Whether a picture shows its prompt, asked of a vision-language model."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards.local_models import load_model
from pgraft_fast.rewards.pixels import to_pil
from pgraft_fast.rewards.protocol import RewardMisuseError
from pgraft_fast.rewards.vqa_inputs import Prepare, is_encoder_decoder, preparation

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = "Yes"


class VqaScore:
    """VQAScore, P(first token of the answer = "Yes" | picture, question), in [0, 1] (Lin et al. 2024, section 3).

    The probability is normalised over the whole vocabulary, in float32. question: `{prompt}` stands for the prompt.
    model: folder of an encoder-decoder (BLIP-2 or InstructBLIP with flan-t5) or of a chat model of
    AutoModelForImageTextToText (LLaVA, Qwen2-VL, ...), loaded at the first call. An answer of several tokens counts
    by its first. device: the samples' own where None. Raises InputError.
    """

    name = "vqa_score"

    def __init__(
        self,
        model: str | Path,
        *,
        question: str = QUESTION,
        answer: str = ANSWER,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if "{prompt}" not in question:
            raise InputError(f"question = {question!r}: must hold {{prompt}}")
        if not answer.strip():
            raise InputError(f"answer = {answer!r}: must be a word")
        self.folder, self.question, self.answer = Path(model), question, answer
        self.device, self.dtype = device, dtype
        self._model: Any = None
        self._prepare: Prepare | None = None
        self._answer_id = 0
        self._options: dict[str, int] = {"use_cache": False}

    def prepare(self) -> None:
        """Load. Raises RewardError where files or packages are missing."""
        if self._model is not None:
            return
        model = load_model("AutoModelForImageTextToText", self.folder, self.dtype)
        self._prepare, tokenizer = preparation(self.folder, model)
        ids = tokenizer(self.answer, add_special_tokens=False)["input_ids"]
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise RewardError(f"{self.folder}: its vocabulary has no token for the answer {self.answer!r}")
        self._answer_id = int(ids[0])
        if not is_encoder_decoder(model) and "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options = {"use_cache": False, "logits_to_keep": 1}
        self._model = model

    def close(self) -> None:
        """Let go of the weights; the next call loads them again."""
        self._model = None

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1]. prompts: B. Returns (B,) float32. Raises RewardError."""
        self.prepare()
        assert self._prepare is not None
        device = torch.device(samples.device if self.device is None else self.device)
        self._model.to(device)
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        inputs = {
            key: value.to(device, self.dtype if value.is_floating_point() else None)
            for key, value in self._prepare(to_pil(samples), questions).items()
        }
        if is_encoder_decoder(self._model):
            start = self._model.config.get_text_config().decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full((len(prompts), 1), start, device=device)
        elif not bool(inputs["attention_mask"][:, -1].all()):
            raise RewardMisuseError(f"{self.folder}: its processor pads on the right, where the answer would be read")
        logits = self._model(**inputs, **self._options).logits[:, -1].float()
        return logits.softmax(dim=-1)[:, self._answer_id]
