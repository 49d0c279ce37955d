"""Files of trained LoRAs: what diffusers reads, and what P-GRAFT needs besides, in one safetensors file."""

import json
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from pgraft_fast import __version__
from pgraft_fast.diffusion.schedule import Schedule
from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.files import json_of, storage_error, to_json, write_file
from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.adapters.fingerprint import base_fingerprint, uncompiled
from pgraft_fast.pipelines.adapters.names import prefix_of, to_kohya

FILE = "pytorch_lora_weights.safetensors"
FORMATS = ("diffusers", "kohya")
_KEY, _LORA_KEY = "pgraft_fast", "lora_adapter_metadata"


class AdapterMetadata(BaseModel):
    """What a saved adapter says of itself; `AdapterMetadata.of(denoiser, ...)` fills in what the model knows.

    cut: share of the reference steps in [0, 1) that the base makes; 0 is GRAFT, without a handover. cut_logsnr: the
    log-SNR of the handover; None where cut is 0. schedule: `Schedule.to_dict()` of the training. parameterization: what
    the network predicts. base_fingerprint, base_class: of the model that was tuned. rank, alpha, target_modules: of the
    LoRA. sample_shape: (C, H, W) of what was trained on, None where that is not known. reward: its name. version: of
    this package. extra: anything else that is JSON.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cut: float = Field(ge=0, lt=1)
    cut_logsnr: float | None = Field(allow_inf_nan=False)
    schedule: dict[str, Any]
    parameterization: str
    base_fingerprint: str
    base_class: str
    rank: int = Field(ge=1)
    alpha: float = Field(allow_inf_nan=False)
    target_modules: tuple[str, ...]
    sample_shape: tuple[int, ...] | None = Field(default=None, min_length=3, max_length=3)
    reward: str = ""
    version: str = __version__
    extra: dict[str, Any] = {}

    @field_validator("schedule", "extra")
    @classmethod
    def _as_read_back(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except TypeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _one_handover(self) -> Self:
        if (self.cut_logsnr is None) != (self.cut == 0.0):
            raise ValueError("cut_logsnr is None where cut is 0, and a number elsewhere")
        return self

    @classmethod
    def of(
        cls,
        denoiser: Any,
        *,
        cut: float,
        schedule: Schedule,
        parameterization: str,
        sample_shape: tuple[int, ...] | None = None,
        reward: str = "",
        extra: dict[str, Any] | None = None,
        adapter_name: str = "tuned",
        fingerprint: str | None = None,
    ) -> "AdapterMetadata":
        """Of the adapter on a denoiser. fingerprint: of its base, where it is known. Raises InputError where there is
        no adapter of that name, and for wrong values.
        """
        denoiser = uncompiled(denoiser)
        config = _config_of(denoiser, adapter_name)
        targets = config.target_modules
        try:
            return cls(
                cut=cut,
                cut_logsnr=schedule.cut_logsnr(cut) if cut else None,
                schedule=schedule.to_dict(),
                parameterization=parameterization,
                base_fingerprint=base_fingerprint(denoiser) if fingerprint is None else fingerprint,
                base_class=type(denoiser).__name__,
                rank=config.r,
                alpha=config.lora_alpha,
                target_modules=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
                sample_shape=sample_shape,
                reward=reward,
                extra=extra or {},
            )
        except ValidationError as error:
            raise InputError(_first(error)) from None

    def callback(self) -> PGraftCallback | None:
        """`callback_on_step_end` for plain diffusers; None at cut 0."""
        return None if self.cut_logsnr is None else PGraftCallback(cut_logsnr=self.cut_logsnr)

    def to_json(self) -> str:
        """JSON text with a fixed order of keys."""
        return to_json(self.model_dump()).decode()

    @staticmethod
    def from_json(text: str) -> "AdapterMetadata":
        """Inverse of `to_json`; keys of later versions are passed over. Raises CheckpointError."""
        try:
            return AdapterMetadata.model_validate_json(text)
        except ValidationError as error:
            raise CheckpointError(f"no metadata of an adapter ({_first(error)})") from None


def save_adapter(
    path: str | Path,
    denoiser: Any,
    metadata: AdapterMetadata,
    *,
    adapter_name: str = "tuned",
    format: Literal["diffusers", "kohya"] = "diffusers",
) -> Path:
    """Write the LoRA `adapter_name` of a denoiser as one safetensors file, whole or not at all. Returns its path.

    path: a name that ends in .safetensors, or a folder, which gets pytorch_lora_weights.safetensors.
    `pipe.load_lora_weights(path)` of plain diffusers takes both formats. "diffusers" keeps everything, the LoRA's
    configuration too; "kohya" has the names that ComfyUI and A1111 read, see `adapter_names.to_kohya`. Equal tensors
    and metadata give equal bytes.

    Raises InputError for an unknown format or adapter, or one that the format has no place for; StorageError.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r} is unknown; known: {', '.join(FORMATS)}")
    denoiser = uncompiled(denoiser)
    config = _config_of(denoiser, adapter_name)
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(denoiser, adapter_name=adapter_name)
    if foreign := [name for name in tensors if ".lora_" not in name]:
        raise InputError(f"the adapter {adapter_name!r} has {foreign[0]}, which is no LoRA's: diffusers cannot load it")
    texts = {"format": "pt", _KEY: metadata.to_json()}
    if format == "kohya":
        tensors = to_kohya(tensors, denoiser, adapter_name)
    else:
        prefix = prefix_of(denoiser)
        tensors = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        texts[_LORA_KEY] = json.dumps({f"{prefix}.{k}": _plain(v) for k, v in config.to_dict().items()}, sort_keys=True)
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(file, error) from error
    write_file(file, _bytes(tensors, texts))
    return file


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], AdapterMetadata]:
    """Tensors, under the names in the file, and metadata of a file or folder that `save_adapter` wrote.

    Raises CheckpointError, one line, for a file that is missing, damaged, or has no metadata of this package.
    """
    tensors, metadata, _ = read_file(path)
    return tensors, metadata


def read_file(path: str | Path) -> tuple[dict[str, Tensor], AdapterMetadata, dict[str, Any] | None]:
    """`read_adapter`, and the LoRA's configuration without the model's name in front; None where there is none."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            texts = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
        config = None
        if _LORA_KEY in texts:
            config = {name.partition(".")[2]: value for name, value in dict(json_of(texts[_LORA_KEY])).items()}
    except (OSError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged, or no safetensors file ({error})") from error
    if _KEY not in texts:
        raise CheckpointError(f"{file}: has no pgraft_fast metadata, it was not saved by save_adapter")
    try:
        metadata = AdapterMetadata.from_json(texts[_KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return tensors, metadata, config or None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole'}: {first['msg']}"


def _config_of(denoiser: Any, adapter_name: str) -> Any:
    configs = getattr(denoiser, "peft_config", {})
    if adapter_name not in configs:
        has = f"has {', '.join(configs)}" if configs else "has none; add one with denoiser.add_adapter"
        raise InputError(f"there is no adapter {adapter_name!r} on {type(denoiser).__name__}, it {has}")
    config = configs[adapter_name]
    if type(config).__name__ != "LoraConfig":
        raise InputError(f"the adapter {adapter_name!r} is no LoRA, its configuration is {type(config).__name__}")
    return config


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def _bytes(tensors: dict[str, Tensor], texts: dict[str, str]) -> bytes:
    """Safetensors bytes with the header's keys in order: the library leaves that of several texts to chance."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, texts)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]
