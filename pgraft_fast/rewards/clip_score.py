"""How well a picture fits its prompt, by CLIP."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pgraft_fast.rewards.clip_images import ClipImages
from pgraft_fast.rewards.local_models import load_model, load_tool

_TEXTS_AT_ONCE = 64
_TEXTS_KEPT = 65_536


class _ClipReward:
    """cos(image, prompt) of a CLIP model in a local folder, loaded at the first call.

    device: of the model, the samples' own where None. dtype: of the model; features are compared in float32. Every
    distinct prompt is encoded once. Prompts longer than the model reads are cut off.
    """

    name = "clip"

    def __init__(
        self, model: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.folder, self.device, self.dtype = Path(model), device, dtype
        self._model: Any = None
        self._placed = torch.device("cpu")
        self._tokenizer: Callable[..., Any] | None = None
        self._images = ClipImages()
        self._texts: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Load. Raises RewardError where files are missing or damaged."""
        if self._model is None:
            self._tokenizer = load_tool("AutoTokenizer", self.folder)
            model = load_model("CLIPModel", self.folder, self.dtype)
            self._images = ClipImages.from_folder(self.folder, model.config.vision_config.image_size)
            self._model = model

    def close(self) -> None:
        """Let go of the weights; the next call loads them again."""
        self._model, self._texts, self._placed = None, {}, torch.device("cpu")

    def similarity(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of image and text features, (B,) float32 in [-1, 1] on the model's device."""
        self.prepare()
        device = torch.device(samples.device if self.device is None else self.device)
        if self._placed != device:
            self._placed = device
            self._model.to(device)
            self._texts.clear()
        pixels = self._images(samples.to(device)).to(self.dtype)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        images = F.normalize(self._model.visual_projection(pooled).float(), dim=-1)
        return (images * self._features_of(prompts, device)).sum(dim=-1)

    def _features_of(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        new = [text for text in dict.fromkeys(prompts) if text not in self._texts]
        if len(self._texts) + len(new) > _TEXTS_KEPT:
            self._texts.clear()
            new = list(dict.fromkeys(prompts))
        for low in range(0, len(new), _TEXTS_AT_ONCE):
            texts = new[low : low + _TEXTS_AT_ONCE]
            self._texts.update(zip(texts, self._encode(texts, device), strict=True))
        return torch.stack([self._texts[text] for text in prompts])

    def _encode(self, texts: list[str], device: torch.device) -> Tensor:
        assert self._tokenizer is not None
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")}
        pooled = self._model.text_model(**tokens).pooler_output
        return F.normalize(self._model.text_projection(pooled).float(), dim=-1)


class ClipScore(_ClipReward):
    """CLIPScore, 2.5 max(cos(image, prefix + prompt), 0), in [0, 2.5] (Hessel et al. 2021, equation 1).

    prefix: the paper puts "A photo depicts " before captions; prompts are taken as they are by default.
    """

    name = "clip_score"

    def __init__(
        self,
        model: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        prefix: str = "",
    ) -> None:
        super().__init__(model, device=device, dtype=dtype)
        self.prefix = prefix

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1]. prompts: B. Returns (B,) float32. Raises RewardError."""
        return 2.5 * self.similarity(samples, [self.prefix + p for p in prompts]).clamp(min=0.0)


class PickScore(_ClipReward):
    """PickScore, exp(logit_scale) cos(image, prompt), of CLIP-H tuned on human choices (Kirstain et al. 2023, eq. 1).

    Made for differences between pictures of one prompt. In bf16 the scale is rounded too, by up to 2 %.
    """

    name = "pick_score"

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1]. prompts: B. Returns (B,) float32. Raises RewardError."""
        cosine = self.similarity(samples, prompts)
        return self._model.logit_scale.float().exp() * cosine
