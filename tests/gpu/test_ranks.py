"""Ranks on a GPU: NCCL with one of them, and two that share the GPU and speak through gloo."""

import json
import os

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("pydantic")
pytest.importorskip("tyro")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

import ranked  # noqa: E402
import safetensors.torch  # noqa: E402
import sharded_everywhere  # noqa: E402
import sharded_nets  # noqa: E402
import torch.distributed as dist  # noqa: E402

from pgraft_fast.ranks.ranks import Ranks  # noqa: E402
from pgraft_fast.ranks.sharded import mesh_of  # noqa: E402

SHAPES = """
run = "{run}"
deterministic = {deterministic}
mode = "eager"
memory = "fixed"
[model]
shipped = "sd"
device = "cuda"
[[rewards]]
kind = "task"
name = "questions"
[sample]
prompts = 4
candidates = 4
steps = 4
guidance = 2.0
[select]
k = 2
[train]
rounds = 3
steps = 3
batch_size = 12
learning_rate = 1e-4
[lora]
rank = 4
[evaluate]
samples = 8
"""


@pytest.fixture
def one_rank(monkeypatch):
    """That speaks NCCL with itself."""
    for name, value in ranked.environment(0, 1, ranked.free_port()).items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    yield Ranks(0, 1)
    dist.destroy_process_group()


def test_nccl_on_one_rank(one_rank):
    """What several would send: sums of gradients, rows, and what stays on the CPU."""
    gradients = torch.randn(1000, device="cuda")
    assert torch.equal(one_rank._summed(gradients.clone()), gradients)
    (rows,) = one_rank._gathered(gradients.view(torch.uint8))
    assert rows.is_cuda and torch.equal(rows.view(torch.float32), gradients)
    (told,) = one_rank._gathered(torch.tensor([3]))
    assert not told.is_cuda and told.tolist() == [3]


def test_shares_by_nccl_are_trained(one_rank):
    one, two = sharded_nets.pair(mesh_of(torch.device("cuda")), sharded_nets.blocks().cuda(), recompute=True)
    found = {**sharded_nets.gradients_off(one, two, None), **sharded_nets.train_both(one, two, None, 3)}
    found["state"] = sharded_nets.off(two.gathered(), one.tensors())
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", ["sd", "flux", "wan", "qwen_image"])
def test_shares_by_nccl_answer(one_rank, name):
    told = sharded_everywhere.one(name)(mesh_of(torch.device("cuda")), one_rank)
    assert told["blocks"] > 0 and told["same gradients"] and told["off"] < 1e-4, told


def newest(run):
    return max((run / "checkpoints").glob("round-*"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_two_ranks_on_one_gpu(tmp_path, deterministic):
    runs = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        config = folder / "config.toml"
        config.write_text(SHAPES.format(run=folder / "run", deterministic=str(deterministic).lower()))
        ended = ranked.run(size, ["-m", "pgraft_fast", "finetune", str(config)])
        assert [status for status, _, _ in ended] == [0] * size, ended
        runs[size] = folder / "run"
    weights = {size: safetensors.torch.load_file(newest(run) / "ema.safetensors") for size, run in runs.items()}
    # Kernels without an order give other bits in each run, which AdamW turns into whole steps.
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[2][name], value, rtol=0, atol=0 if deterministic else 5e-5)
    for number in (2, 3):
        kept = [
            safetensors.torch.load_file(run / f"checkpoints/round-{number:06d}/candidates.safetensors")["accepted"]
            for run in runs.values()
        ]
        assert torch.equal(*kept)
    spent = json.loads((runs[2] / "result.json").read_text())["spent"]
    assert spent["ranks"] == 2 and os.environ.get("RANK") is None
