"""Every file that is read, where somebody else wrote it: no code of it runs, nothing is written, one line refuses."""

import itertools
import random

import hostile
import pytest
import torch
from torch import nn

from pgraft_fast.commands.correct_config import read_correct_config
from pgraft_fast.commands.pipeline_config import read_run_config
from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune import Ledger
from pgraft_fast.finetune.checkpoint import load_newest, tensor_bytes, tensors_from_bytes
from pgraft_fast.inverse_noise.corrector import NoiseCorrector
from pgraft_fast.inverse_noise.shards import open_shards
from pgraft_fast.pipelines.adapters.files import read_adapter
from pgraft_fast.rewards.aesthetic import load_layers
from pgraft_fast.rewards.answers import parse, rewards_in_order
from pgraft_fast.tasks.layouts.archive import read_npz as read_layouts
from pgraft_fast.tasks.layouts.readers import read_publaynet, read_rico
from pgraft_fast.tasks.molecules.readers import read_npz as read_molecules
from pgraft_fast.tasks.molecules.readers import read_xyz
from pgraft_fast.tasks.pictures import Pictures
from pgraft_fast.tasks.prompt_files import read_prompts
from pgraft_fast.tasks.weights import load_weights

MOST_MEMORY = 300e6


def proven(name, others, read):
    """In a folder whose manifest is right. others: files of it beside this one."""

    def prepare(folder, data):
        inner = folder / "round-000001"
        inner.mkdir()
        for other, contents in others.items():
            (inner / other).write_bytes(contents)
        (inner / name).write_bytes(data)
        hostile.manifest(inner)
        return read(folder, inner)

    return prepare


def plain(name, read):
    def prepare(folder, data):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return prepare


def tensors():
    return tensor_bytes({"noise": torch.zeros(2, 4)})


def answered(path):
    answer = parse(path.read_bytes(), "r")
    return rewards_in_order(answer, [1, 2], 1, "r")


def checkpoints(folder, _inner):
    return load_newest(folder, check_line)


def shard(folder, inner):
    inner.rename(folder / "shard-000000")
    (folder / "plan.json").write_text('{"total": 2, "shard": 2}')
    return open_shards(folder)


CORRECTOR = b'{"kind": "linear", "shape": [4], "network": {"kind": "mlp"}, "summary": {}, "steps": 2, "base_steps": 1}'
READERS = {
    "weights of a task": plain("w.safetensors", lambda path: load_weights(nn.Linear(2, 2), path)),
    "tensors": plain("w.safetensors", lambda path: tensors_from_bytes(path.read_bytes(), path)),
    "aesthetic, pth": plain("w.pth", lambda path: load_layers(path, 4)),
    "aesthetic, safetensors": plain("w.safetensors", lambda path: load_layers(path, 4)),
    "adapter": plain("w.safetensors", read_adapter),
    "tensors of a checkpoint": proven("model.safetensors", {"state.json": b"{}"}, checkpoints),
    "state of a checkpoint": proven("state.json", {"model.safetensors": tensors()}, checkpoints),
    "history of a checkpoint": proven("history.jsonl", {"state.json": b"{}"}, checkpoints),
    "corrector": proven("corrector.json", {"corrector.safetensors": tensors()}, lambda _, at: NoiseCorrector.load(at)),
    "weights of a corrector": proven(
        "corrector.safetensors", {"corrector.json": CORRECTOR}, lambda _, inner: NoiseCorrector.load(inner)
    ),
    "shard": proven("shard.safetensors", {"summary.json": b"{}"}, shard),
    "summary of a shard": proven("summary.json", {"shard.safetensors": tensors()}, shard),
    "plan of an inversion": plain("plan.json", lambda path: open_shards(path.parent)),
    "manifest": plain("round-000001/manifest.json", lambda path: load_newest(path.parent.parent, check_line)),
    "ledger": plain("ledger.jsonl", lambda path: Ledger(path).close(finished=True)),
    **{f"prompts{end}": plain(f"p{end}", read_prompts) for end in (".txt", ".csv", ".tsv", ".jsonl", ".json")},
    "molecules, npz": plain("m.npz", read_molecules),
    "molecules, xyz": plain("m.xyz", read_xyz),
    "layouts, npz": plain("l.npz", lambda path: read_layouts(path, ("a", "b"))),
    "layouts, PubLayNet": plain("l.json", read_publaynet),
    "layouts, RICO": plain("rico/l.json", lambda path: read_rico(path.parent)),
    "picture": plain("pictures/p.png", lambda path: Pictures.of(path.parent, 8).at(torch.arange(1))),
    "answer of a reward": plain("answer", answered),
    "config": plain("c.toml", lambda path: read_run_config(path, "r", None)),
    "config of correct": plain("c.toml", lambda path: read_correct_config(path, {"run": "r"})),
}


def check_line(text):
    assert text.isprintable() or all(c.isprintable() or c in "\u200c\u200d" for c in text), repr(text)
    assert "\n" not in text and 0 < len(text) < 2000, repr(text[:300])


def pairs():
    """Each reader with each file, then again with a few bytes of it changed."""
    for turn in itertools.count():
        for reader, maker in itertools.product(READERS, hostile.MAKERS):
            yield reader, maker, turn


def changed(draw, data):
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data))
        data[at] = draw.randrange(256)
    return bytes(data)


def read_hostile(folder, cases):
    """How many were refused."""
    outside = folder / "outside"
    outside.mkdir()
    hostile.aim(outside / "canary")
    assert hostile.fires(hostile.MAKERS["pickle 4"]()), "the files would do no harm to anybody"
    hostile.MAKERS["npz bomb"]()
    refused, before = 0, hostile.resident_peak()
    for number, (reader, maker, turn) in enumerate(cases):
        draw, data = random.Random(number), hostile.MAKERS[maker]()
        inner = outside / "inner" / str(number)
        inner.mkdir(parents=True)
        try:
            READERS[reader](inner, changed(draw, data) if turn else data)
        except PgraftError as error:
            refused += 1
            check_line(str(error))
        except Exception as error:
            raise AssertionError(f"{reader} of {maker}, {turn}: {type(error).__name__}: {error}") from error
        assert not hostile.ran(), (reader, maker)
        assert {path.name for path in outside.iterdir()} == {"inner"}, (reader, maker)
        assert {path.name for path in (outside / "inner").iterdir()} == {str(number)}, (reader, maker)
        remove(inner)
    assert hostile.resident_peak() - before < MOST_MEMORY
    return refused


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_some_hostile_files(tmp_path):
    cases = list(itertools.islice(pairs(), 0, len(READERS) * len(hostile.MAKERS), 23))
    assert read_hostile(tmp_path, cases) > 0.7 * len(cases)


@pytest.mark.faults
def test_every_hostile_file_by_every_reader(tmp_path):
    """More than a thousand, and as many that are changed."""
    total = 2 * len(READERS) * len(hostile.MAKERS)
    assert total > 1000
    assert read_hostile(tmp_path, itertools.islice(pairs(), total)) > 0.7 * total
