"""Text-to-image runs of a second on tiny pipelines."""

from pathlib import Path

from pipelines import build

TEXT = """
run = "run"
{top}
[model]
folder = "{name}"
device = "cpu"
height = 16
width = 16
{length}
[prompts]
train = "prompts.txt"
held_out = "held_out.csv"
[[rewards]]
kind = "{reward}"
{reward_more}
[sample]
prompts = 4
candidates = 4
steps = 4
guidance = 3.0
batch_size = 8
[select]
k = 2
[train]
objective = "state"
rounds = {rounds}
epochs = 2
batch_size = 4
learning_rate = 1e-2
[lora]
rank = 2
[evaluate]
samples = 8
{more}
"""


def config_file(
    folder: Path, name: str = "sd", *, rounds: int = 2, reward: str = "jpeg_size", reward_more: str = "",
    top: str = "", more: str = "",
) -> Path:  # fmt: skip
    """Write folder/config.toml, which runs in folder/run on the pipeline of this name, saved beside it."""
    if not (folder / name).exists():
        build(name).save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("".join(f"thing number {n}\n" for n in range(12)))
    (folder / "held_out.csv").write_text("prompt,category\na red cube,colour\ntwo cats,counting\na blue cube,colour\n")
    path = folder / "config.toml"
    length = "max_sequence_length = 64" if name in ("sd3", "flux") else ""
    text = TEXT.format(
        name=name, rounds=rounds, reward=reward, reward_more=reward_more, top=top, more=more, length=length
    )
    path.write_text(text.replace('run = "run"', f'run = "{folder / "run"}"'))
    return path
