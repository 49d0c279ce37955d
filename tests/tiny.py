"""A fine-tuning run of a few seconds, as a TOML file."""

from pathlib import Path

TEXT = """
run = "{run}"
[sample]
prompts = 2
candidates = 8
steps = 4
[select]
k = 2
[train]
rounds = {rounds}
steps = 6
batch_size = 8
learning_rate = 1e-3
[evaluate]
samples = 16
"""


def tiny_config(folder: Path, rounds: int = 2, more: str = "", run: str = "run") -> Path:
    """Write folder/config.toml, which runs in folder/run. more: further TOML."""
    path = folder / "config.toml"
    path.write_text(TEXT.format(run=folder / run, rounds=rounds) + more)
    return path
