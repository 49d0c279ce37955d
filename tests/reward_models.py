"""Tiny models with random weights, saved as `transformers` saves the real ones."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

WORDS = ["<pad>", "</s>", "<unk>", "<image>", "Yes", "No", "a", "cat", "dog", "red", "USER", "ASSISTANT", "figure"]
WORDS += ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
CHAT = (
    "{%- for m in messages %}USER {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT{% endif %}"
)
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


def tokenizer(**options):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    tool = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tool.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tool, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", **options
    )


def spread(model):
    """Random weights large enough to tell pictures and words apart."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model.eval()


def pictures(count, height=12, width=12, seed=0):
    """Smooth random pictures (count, 3, height, width) in [-1, 1], whose values are those of 8 bits."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (height, width), mode="bilinear").tanh()
    return ((smooth + 1) * 127.5).round() / 127.5 - 1


def as_pil(samples):
    return [Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()) for x in samples]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP with pictures of 8 x 8."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    text = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 6, "eos_token_id": 1, "bos_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text | {"pad_token_id": 0}, vision_config=VISION | {"image_size": 8}, projection_dim=6
    )
    spread(transformers.CLIPModel(config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    image_processor(transformers).save_pretrained(folder)
    return folder


def image_processor(transformers):
    return transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory):
    """encoder_decoder("Blip2") or ("InstructBlip"): a folder with a T5 behind it."""
    transformers = pytest.importorskip("transformers")

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        t5 = {"vocab_size": len(WORDS), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
        t5 |= {"model_type": "t5", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        former = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        former |= {"num_attention_heads": 2, "encoder_hidden_size": 8, "cross_attention_frequency": 1}
        config = getattr(transformers, f"{kind}Config")(
            vision_config=VISION | {"image_size": 8}, qformer_config=former, text_config=t5, num_query_tokens=2,
            image_token_id=WORDS.index("<image>"), image_token_index=WORDS.index("<image>"),
        )  # fmt: skip
        spread(getattr(transformers, f"{kind}ForConditionalGeneration")(config)).save_pretrained(folder)
        images = transformers.BlipImageProcessor(size={"height": 8, "width": 8})
        tools = [images, tokenizer()] + ([tokenizer()] if kind == "InstructBlip" else [])
        getattr(transformers, f"{kind}Processor")(*tools, num_query_tokens=2).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llava")
    text = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=8),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=WORDS.index("<image>"),
        image_token_index=WORDS.index("<image>"),
    )
    spread(transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor(transformers), tokenizer(additional_special_tokens=["<image>"]), patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """A model whose own processor needs torchvision, for videos."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen")
    text = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}}
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, **{key: WORDS.index(word) for key, word in ids.items()}
    )
    spread(transformers.Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    words = tokenizer(additional_special_tokens=WORDS[-4:])
    words.chat_template = CHAT.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>")
    words.save_pretrained(folder)
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pil

    pil.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=1024).save_pretrained(folder)
    return folder
