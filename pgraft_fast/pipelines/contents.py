"""What a pipeline consists of, by content: every part's class, settings and weights, and the tokenizers' tables."""

import inspect
import json
from typing import Any

from torch import nn

from pgraft_fast.finetune.identity import sha256_of, sha256_of_module

# Of transformers' configs: not what a model computes, but where and by what it was saved.
_PASSED_OVER = ("transformers_version", "dtype", "torch_dtype", "architectures")


def pipeline_contents(pipe: Any) -> dict[str, Any]:
    """JSON that another pipeline has only if it draws the same pictures: {"class", "settings", part: {...}}.

    Settings at their defaults are left out, so that a later version may know more of them.
    """
    parts = dict(sorted(pipe.components.items()))
    settings = {key: value for key, value in pipe.config.items() if key not in parts and not key.startswith("_")}
    return {
        "class": type(pipe).__name__,
        "settings": _plain(settings),
        **{name: "none" if part is None else _part(part) for name, part in parts.items()},
    }


def _part(part: Any) -> dict[str, Any]:
    contents: dict[str, Any] = {"class": type(part).__name__, **_settings(part)}
    if isinstance(part, nn.Module):
        contents["weights"] = sha256_of_module(part)
    if hasattr(part, "get_vocab"):
        contents["vocabulary"] = _vocabulary(part)
    return contents


def _settings(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", None)
    if config is None:
        return {}
    if hasattr(config, "to_diff_dict"):
        return _plain({key: value for key, value in config.to_diff_dict().items() if key not in _PASSED_OVER})
    parameters = inspect.signature(type(part).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return _plain({key: value for key, value in config.items() if key not in defaults or value != defaults[key]})


def _vocabulary(tokenizer: Any) -> str:
    """Of words, merges, special tokens and length. Cutting and padding are set by each call."""
    vocabulary: dict[str, Any] = {
        "words": tokenizer.get_vocab(), "length": tokenizer.model_max_length, "side": tokenizer.padding_side,
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
    }  # fmt: skip
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        vocabulary["rules"] = {k: v for k, v in json.loads(fast.to_str()).items() if k not in ("truncation", "padding")}
    return sha256_of(_plain(vocabulary))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, without private keys."""
    shown = {key: value for key, value in settings.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(shown, default=str, sort_keys=True))
    return plain
