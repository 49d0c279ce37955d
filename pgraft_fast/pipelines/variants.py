"""Which weight files of a pipeline's folder are read: the plain ones, or a variant such as fp16."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.errors import InputError

_LIBRARIES = ("diffusers", "transformers")
# model.safetensors, model.fp16.safetensors, whole or in shards; older shards have the variant behind their numbers.
_SHARD = r"-\d{5}-of-\d{5}"
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<before>(?!safetensors$|bin$)[^.]+?))?(?:{_SHARD})?"
    r"(?:\.(?P<behind>[^.]+))?\.(?:safetensors|bin)"
)


def variants_of(folder: Path, index: dict[str, Any], variant: str | None) -> dict[str, str]:
    """{component: variant} of those that a variant is read of; the plain files of the others are.

    index: model_index.json. variant: read where a component has it; None is the plain files where they are, else the
    only variant. Raises InputError for a variant that no component has, and where several could be meant.
    """
    variants = {name: sorted(_variants(folder / name), key=str) for name in _components(folder, index)}
    all_of_them = {value for values in variants.values() for value in values if value is not None}
    if variant is not None and variant not in all_of_them:
        known = ", ".join(sorted(all_of_them)) or "none"
        raise InputError(f"model.variant = {variant!r}: {folder} has no such weights; its variants: {known}")
    chosen = {name: _chosen(folder / name, values, variant) for name, values in variants.items() if values}
    return {name: value for name, value in chosen.items() if value is not None}


def check_components(index: Path, entries: dict[str, Any]) -> None:
    """Raise InputError for a component of another library than diffusers and transformers, or in another folder.

    Any module that Python finds would be imported, by a name that is data.
    """
    from diffusers import pipelines

    for name, value in entries.items():
        if not isinstance(value, list) or name.startswith("_") or value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            # Settings of the pipeline may be lists, too, of anything but a library and a class.
            continue
        library, kind = value
        ours = library.partition(".")[0] in _LIBRARIES or hasattr(pipelines, library)
        if not ours or not kind.isidentifier() or not name.isidentifier():
            raise InputError(
                f"{index}: component {name!r} is {library}.{kind}; components of {' and '.join(_LIBRARIES)} alone are "
                "loaded"
            )


def load_part(folder: Path, entry: list[str], variant: str, dtype: torch.dtype) -> Any:
    """A component from its folder. entry: its library and class. Raises InputError."""
    library, name = entry
    try:
        model: Any = getattr(importlib.import_module(library), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{folder}: {library}.{name} of model_index.json is not known ({error})") from error
    kind = {"dtype" if library == "transformers" else "torch_dtype": dtype}
    return model.from_pretrained(str(folder), variant=variant, local_files_only=True, use_safetensors=True, **kind)


def _components(folder: Path, index: dict[str, Any]) -> Iterator[str]:
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[0] and (folder / name).is_dir():
            yield name


def _variants(folder: Path) -> set[str | None]:
    """Of the weight files in a component's folder; None stands for plain ones."""
    matches = (_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    return {match["before"] or match["behind"] for match in matches if match}


def _chosen(folder: Path, variants: list[str | None], variant: str | None) -> str | None:
    if variant in variants:
        return variant
    if None in variants:
        return None
    if variant is None and len(variants) == 1:
        return variants[0]
    names = ", ".join(str(name) for name in variants)
    wanted = "no plain weights" if variant is None else f"neither plain weights nor {variant!r}"
    raise InputError(f"{folder}: {wanted}, but {names}: name one of them as model.variant")
