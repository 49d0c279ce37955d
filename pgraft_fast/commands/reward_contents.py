"""What the rewards of a config are, by content: their code with what it imports, their models' files."""

import ast
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pgraft_fast.commands.reward_settings import (
    AestheticSettings,
    CallableSettings,
    CommandSettings,
    HttpSettings,
    RewardSettings,
)
from pgraft_fast.finetune.identity import MAY_CHANGE, sha256_of_files
from pgraft_fast.rewards.urls import without_secrets

_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
# Of weights and settings that code reads; what it writes has other names.
_DATA = (".json", ".toml", ".yaml", ".yml", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".onnx", ".pkl")
_FREE = {name.removeprefix("rewards.") for name in MAY_CHANGE if name.startswith("rewards.")}


def reward_contents(rewards: Sequence[RewardSettings]) -> list[dict[str, Any]]:
    """JSON that others have only if they score alike; of a URL nothing but itself is known. Raises InputError."""
    return [_contents(reward) for reward in rewards]


def code_contents(function: str) -> dict[str, str]:
    """Of file.py:function; of a name, the name."""
    file, colon, name = function.rpartition(":")
    return {"function": name, "code": code_sha256(Path(file))} if colon else {"function": name}


def code_sha256(file: Path) -> str:
    """Of a Python file, of those beside it that it imports, and they in turn, and of the data files beside it that they
    name. Raises InputError.
    """
    file = file.resolve()
    root, files, left = file.parent, {}, [file]
    # Relative imports may reach into the package that the folder is a part of.
    while (root / "__init__.py").is_file():
        root = root.parent
    while left:
        path = left.pop()
        if path not in files:
            files[path] = path.relative_to(root).as_posix()
            left += _named(path, file.parent, root)
    return sha256_of_files({name: path for path, name in files.items()})


def _contents(reward: RewardSettings) -> dict[str, Any]:
    settings = reward.model_dump(exclude=_FREE)
    match reward:
        case CallableSettings():
            return {**settings, **code_contents(reward.function)}
        case CommandSettings():
            words = shlex.split(reward.command) if isinstance(reward.command, str) else reward.command
            return {**settings, "command": [_word(word, number) for number, word in enumerate(words)]}
        case HttpSettings():
            parts = urlsplit(reward.url)
            bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
            return {**settings, "url": without_secrets(bare)}
        case AestheticSettings():
            files = {"weights": Path(reward.weights)}
            return {**settings, "clip": _model(Path(reward.clip)), "weights": sha256_of_files(files)}
    return {**settings, "model": _model(Path(settings["model"]))} if "model" in settings else settings


def _model(folder: Path) -> str:
    files = (path for pattern in _MODEL_FILES for path in folder.glob(pattern))
    return sha256_of_files({path.name: path for path in files})


def _word(word: str, number: int) -> str:
    """A word of a command line: a file by its name and contents. A program that is no script is named alone: another
    version of Python is no other reward.
    """
    file, colon, rest = word.partition(":")
    path = Path(file)
    if not path.is_file():
        return word
    if number == 0 and path.suffix != ".py" and path.open("rb").read(2) != b"#!":
        return path.name
    digest = code_sha256(path) if path.suffix == ".py" else sha256_of_files({path.name: path})
    return f"{path.name}{colon}{rest} sha256 {digest}"


def _named(path: Path, folder: Path, root: Path) -> Iterator[Path]:
    """Files that a Python file imports, or names where they hold data: in `folder`, relative ones in `root`."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _modules(folder, name.name)
        elif isinstance(node, ast.ImportFrom):
            start = folder if node.level == 0 else path.parents[node.level - 1]
            if start == root or root in start.parents:
                for name in node.names:
                    yield from _modules(start, ".".join(part for part in (node.module, name.name) if part))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(_DATA):
            data = path.parent / node.value
            if (
                len(node.value) < 200
                and not Path(node.value).is_absolute()
                and ".." not in data.parts
                and data.is_file()
            ):
                yield data


def _modules(start: Path, dotted: str) -> Iterator[Path]:
    """The files of a module and of the packages around it."""
    place = start
    for part in dotted.split("."):
        place = place / part
        for path in (place.with_name(f"{part}.py"), place / "__init__.py"):
            if path.is_file():
                yield path
