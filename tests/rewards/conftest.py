"""The tiny models as fixtures."""

from reward_models import clip, encoder_decoder, llava, qwen

__all__ = ["clip", "encoder_decoder", "llava", "qwen"]
