"""Pipelines built from configs with random weights: nothing is downloaded.

`stable_diffusion` is complete and tiny. LARGE are denoisers of real size, in pipelines that take embeddings and return
latents.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import transformers

# Of the beta schedule of Stable Diffusion.
SD_BETAS: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
WIDTH = 16


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """The pipeline that `make` builds, in eval mode, without a progress bar; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = make()
    # Models made from a config are in training mode: T5 would drop out.
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(pipe: Any, denoiser: nn.Module | None = None) -> Any:
    """Another pipeline of the same kind with a scheduler of its own; its models are shared, but the denoiser given."""
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    if denoiser is not None:
        parts[denoiser_name(pipe)] = denoiser
    # The others are arguments of the class that are no models.
    options = {name: value for name, value in pipe.config.items() if name not in parts and not name.startswith("_")}
    again = type(pipe)(**parts, **options)
    again.set_progress_bar_config(disable=True)
    return again


def denoiser_name(pipe: Any) -> str:
    """The attribute of a pipeline that holds its denoiser."""
    return "unet" if "unet" in pipe.components else "transformer"


def stable_diffusion(size: str = "tiny") -> diffusers.StableDiffusionPipeline:
    """Latents of 8 x 8 with 4 channels, images 16 x 16. size: "tiny", or "bench" with a UNet of 0.8 M weights."""
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_clip(tokenizer),
        tokenizer=tokenizer,
        unet=louder(tiny_unet({"tiny": (8, 16), "bench": (32, 56)}[size], WIDTH), 1.5),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SD_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_unet(channels: tuple[int, int], cross: int, **more: Any) -> diffusers.UNet2DConditionModel:
    """Two levels, with text in the lower one."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=cross,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def tiny_vae(**more: Any) -> diffusers.AutoencoderKL:
    """Halves the sides."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def clip_tokenizer() -> "transformers.CLIPTokenizer":
    """One token for a byte, another for one that ends a word; no merges."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def tiny_clip(
    tokenizer: "transformers.CLIPTokenizer", projection: bool = False, width: int = WIDTH
) -> "transformers.PreTrainedModel":
    """Two layers."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return louder(cls(config), 3.0)


def louder(model: Any, factor: float) -> Any:
    """Multiply matrices by factor: initial weights, meant for wide models, let nearly no word through narrow ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model


@dataclass(frozen=True)
class Large:
    """A denoiser of real size. config: of the published model; what is not named is the class's default.

    tokens: of the prompt. guidance: the published scale.
    """

    model: str
    config: dict[str, Any]
    pipeline: str
    scheduler: Callable[[], Any]
    tokens: int
    guidance: float

    def denoiser(self, **smaller: Any) -> Any:
        """The model with random weights, in eval mode. smaller: in place of the config's."""
        return getattr(diffusers, self.model)(**self.config | smaller).eval()

    def drawn(self, device: torch.device, **smaller: Any) -> Any:
        """The model made on a device, the same weights each time; the caller's generators stay as they are."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            return self.denoiser(**smaller)

    def pipe(self, denoiser: Any) -> Any:
        """A pipeline of this denoiser alone."""
        own = "unet" if self.model.startswith("UNet") else "transformer"
        parts = {**dict.fromkeys(_ABSENT[self.pipeline]), own: denoiser, "scheduler": self.scheduler()}
        options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = getattr(diffusers, self.pipeline)(**parts, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def shape(self, config: Any) -> tuple[int, int, int]:
        """Of one latent."""
        return (config.in_channels, config.sample_size, config.sample_size)

    def arguments(self, denoiser: Any, batch: int, steps: int) -> dict[str, Any]:
        """Of a call for `batch` latents; the first latent and its prompt are the same in every batch."""
        config, weight = denoiser.config, next(denoiser.parameters())

        def draw(salt: int, *shape: int) -> Tensor:
            return normal(shape, batch, salt).to(weight.device, weight.dtype)

        # Stable Diffusion XL appends six sizes to its pooled prompt.
        sizes = 6 * (config.get("addition_time_embed_dim") or 0)
        pooled = config.get("pooled_projection_dim") or config.get("projection_class_embeddings_input_dim")
        prompt = (self.tokens, config.get("joint_attention_dim") or config.cross_attention_dim)
        texts: dict[str, Any] = {"prompt_embeds": (1, *prompt), "negative_prompt_embeds": (2, *prompt)}
        if pooled:
            pooled -= sizes
            texts |= {"pooled_prompt_embeds": (3, pooled), "negative_pooled_prompt_embeds": (4, pooled)}
        return {
            **{name: draw(*shape) for name, shape in texts.items()},
            "latents": draw(0, *self.shape(config)),
            "guidance_scale": self.guidance,
            "num_inference_steps": steps,
            "output_type": "latent",
        }


def normal(shape: Sequence[int], batch: int, salt: int) -> Tensor:
    """(batch, *shape) normal numbers; a sample's do not depend on the batch."""
    generators = [torch.Generator().manual_seed(1000 * salt + sample) for sample in range(batch)]
    samples = [torch.randn(math.prod(shape), generator=generator) for generator in generators]
    return torch.stack(samples).view(batch, *shape)


_ABSENT = {
    "StableDiffusionPipeline": ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    "StableDiffusionXLPipeline": ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "StableDiffusion3Pipeline": (
        "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3",
    ),
}  # fmt: skip
_SD21 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
# The first one is 2.1 base, of 512 pixels.
LARGE = {
    "sd21": Large(
        "UNet2DConditionModel", _SD21, "StableDiffusionPipeline",
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SD_BETAS), 77, 7.5,
    ),
    "sdxl": Large(
        "UNet2DConditionModel", _SDXL, "StableDiffusionXLPipeline",
        lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **SD_BETAS), 77, 5.0,
    ),
    "sd35m": Large(
        "SD3Transformer2DModel", _SD35_MEDIUM, "StableDiffusion3Pipeline",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 333, 4.5,
    ),
}  # fmt: skip
