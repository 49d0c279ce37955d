"""Operations: the eager reference of each, to which every faster backend is held."""

from pgraft_fast.ops.philox import philox_normal, philox_words, words_to_uniform

__all__ = ["philox_normal", "philox_words", "words_to_uniform"]
