"""Saved LoRAs in diffusers pipelines that hand over to the base at the cut by themselves."""

import inspect
import math
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.pipelines.accelerated.accelerate import STATE
from pgraft_fast.pipelines.adapters.files import AdapterMetadata, read_adapter, read_file, save_adapter
from pgraft_fast.pipelines.adapters.fingerprint import base_fingerprint, base_weights, uncompiled
from pgraft_fast.pipelines.adapters.handover import HELD, Held, Switches, around
from pgraft_fast.pipelines.adapters.moved_cut import moved_by_schedule
from pgraft_fast.pipelines.adapters.names import check_fits, prefix_of, to_peft
from pgraft_fast.pipelines.around import watch
from pgraft_fast.pipelines.denoisers import denoiser_of

# Of a LoRA's configuration what its output follows from. Others, in a file of anybody, name modules to import
# (megatron_core), change the base's weights (init_lora_weights) or tell of its training.
_LAW = frozenset((
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "target_parameters",
    "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "lora_bias", "use_rslora", "use_dora",
    "fan_in_fan_out",
))  # fmt: skip

__all__ = ["AdapterMetadata", "base_fingerprint", "load_adapter", "read_adapter", "save_adapter", "unload_adapter"]


def load_adapter(pipe: Any, path: str | Path, *, weight: float = 1.0, adapter_name: str = "pgraft") -> Any:
    """Load a saved LoRA into a diffusers pipeline, which from now on hands over at its cut. Returns the pipeline.

        pgraft_fast.load_adapter(pipe, "tuned")
        pipe("a red circle")

    The LoRA acts while the state is noisier than the cut that it was trained for, with any scheduler and number of
    steps; at cut 0 it acts to the end. What else is active in the pipeline stays active on both sides. The caller's own
    callback_on_step_end is called as ever, and a PGraftCallback given there takes the place of the saved cut.
    `accelerate` before or after it, and `restore`, keep the handover. As diffusers asks after each step, the first one
    is always the LoRA's. After a call that was broken off, the LoRA is on again. Loading another file replaces the
    first. weight: of the LoRA in the sum; 0 gives the base's pictures.

    Raises InputError where the pipeline cannot hand over or its denoiser is of another kind than the file's, and
    CheckpointError for a file that cannot be read; the pipeline is as before then. Warns where the base has other
    weights, where the cut is another share of the steps on the scheduler's schedule, and in calls for pictures of
    another size than that of the training. `unload_adapter(pipe)` undoes it. Other pipelines with the same denoiser
    have the LoRA, but no handover.
    """
    tensors, metadata, config = read_file(path)
    denoiser = _checked(pipe, metadata)
    if not math.isfinite(weight):
        raise InputError(f"weight={weight}: a LoRA's weight is a finite number")
    try:
        tensors, config = to_peft(tensors, config, denoiser)
        check_fits(tensors, base_weights(denoiser), type(denoiser).__name__)
    except InputError as error:
        raise InputError(f"{path} does not fit: {error}") from None
    held = vars(pipe).get(HELD)
    taken = set(getattr(denoiser, "peft_config", {})) - ({held.name} if held else set())
    if adapter_name in taken:
        raise InputError(f"adapter_name={adapter_name!r} is taken by another adapter of the pipeline: give another")
    _compare(denoiser, metadata, path)
    if metadata.cut_logsnr is not None:
        moved = moved_by_schedule(pipe.scheduler, metadata.cut, metadata.cut_logsnr)
        if moved is not None:
            warnings.warn(f"{path}: {moved}", stacklevel=2)
    from peft import LoraConfig

    unload_adapter(pipe)
    # The first LoRA of a model freezes it.
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    held = Held(
        type(pipe), adapter_name, metadata.cut_logsnr, denoiser, Switches(denoiser), trained, metadata.sample_shape
    )
    # A later peft may have written more than this one knows.
    known = _LAW & set(inspect.signature(LoraConfig).parameters)
    config = {name: value for name, value in config.items() if name in known}
    try:
        with told_as_damage(path):
            _attach(pipe, denoiser, tensors, config, adapter_name)
            held.activate(weight)
    except BaseException:
        held.remove()
        raise
    vars(pipe)[HELD] = held
    watch(type(pipe), around, outside=True)
    _forget(pipe)
    return pipe


def unload_adapter(pipe: Any) -> Any:
    """Undo `load_adapter`: the LoRA is gone, the pipeline as before. Returns the pipeline."""
    held = getattr(pipe, "__dict__", {}).pop(HELD, None)
    if held is None:
        return pipe
    held.remove()
    _forget(pipe)
    return pipe


def _attach(pipe: Any, denoiser: Any, tensors: dict[str, Any], config: dict[str, Any], adapter_name: str) -> None:
    """To the denoiser, without random weights first, so that the caller's random state stays."""
    prefix = prefix_of(denoiser)
    if hasattr(denoiser, "load_lora_adapter"):
        denoiser.load_lora_adapter(
            {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}, prefix=prefix,
            metadata={f"{prefix}.{name}": value for name, value in config.items()}, adapter_name=adapter_name,
            _pipeline=pipe, low_cpu_mem_usage=True,
        )  # fmt: skip
        return
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    inject_adapter_in_model(LoraConfig(**config), denoiser, adapter_name, low_cpu_mem_usage=True)
    set_peft_model_state_dict(denoiser, tensors, adapter_name, low_cpu_mem_usage=True)
    denoiser._hf_peft_config_loaded = True


def _checked(pipe: Any, metadata: AdapterMetadata) -> Any:
    """The denoiser, if the pipeline can hand over and its model is of the right kind."""
    what = type(pipe).__name__
    denoiser = uncompiled(denoiser_of(pipe))
    if not isinstance(denoiser, nn.Module):
        raise InputError(f"{what} has no denoiser of diffusers that takes a LoRA")
    if metadata.cut_logsnr is not None and not hasattr(pipe, "scheduler"):
        raise InputError(f"{what} has no scheduler: it cannot hand over at the cut")
    if type(denoiser).__name__ != metadata.base_class:
        raise InputError(f"the adapter is for {metadata.base_class}, {what} has {type(denoiser).__name__}")
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("load_adapter needs peft: pip install peft") from None
    return denoiser


def _compare(denoiser: Any, metadata: AdapterMetadata, path: str | Path) -> None:
    try:
        same = base_fingerprint(denoiser) == metadata.base_fingerprint
    except InputError as error:
        warnings.warn(f"{path}: whether the base is the one it was tuned from is not known: {error}", stacklevel=3)
        return
    if not same:
        what = f"{path}: tuned from another {metadata.base_class} than this one (base_fingerprint differs)"
        warnings.warn(f"{what}, the pictures can be worse", stacklevel=3)


def _forget(pipe: Any) -> None:
    """Graphs and loops that `accelerate` holds of the model as it was."""
    state = vars(pipe).get(STATE)
    if state is not None:
        state.runner.clear()
        state.known.clear()
