"""Layouts and molecules on a GPU: the samples of the CPU, sets without padding, whole runs with the mode left open."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pydantic")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

from gpu_graphs import own_failures  # noqa: E402, F401

from pgraft_fast.commands.config import RunConfig  # noqa: E402
from pgraft_fast.commands.subjects import subject_of  # noqa: E402
from pgraft_fast.finetune import Ledger  # noqa: E402
from pgraft_fast.runs.mode import with_mode  # noqa: E402
from pgraft_fast.runs.run import trainer_of  # noqa: E402
from pgraft_fast.sampling import GraphCache, graphs, rollout  # noqa: E402
from pgraft_fast.tasks.known import load_task  # noqa: E402
from pgraft_fast.tasks.layouts.attention import Packing, packed_attention  # noqa: E402

TASKS = {
    "layouts flow": {"name": "layouts", "variant": "flow", "reward": "tidy"},
    "layouts vp": {"name": "layouts", "variant": "vp", "prompts": "labels", "reward": "alignment"},
    "molecules": {"name": "molecules", "reward": "share_of_stable_atoms"},
}


def config_of(folder, name, device, **more):
    return RunConfig.model_validate(
        {
            "run": str(folder), "task": {**TASKS[name], "device": device},
            "sample": {"prompts": 8, "candidates": 8, "steps": 8, "solver": "ddpm"}, "select": {"k": 2},
            "train": {"cut": 0.25, "steps": 6, "batch_size": 16, "learning_rate": 1e-4, "rounds": 2},
            "evaluate": {"samples": 16}, **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_samples_of_the_cpu(tmp_path, name):
    """As they are and from graphs: the noise is the same, what is left is rounding."""
    drawn = {}
    for device, cache in (("cpu", None), ("cuda", None), ("cuda graphs", GraphCache())):
        task = load_task(config_of(tmp_path, name, device.split()[0]).task)
        condition = task.prompts.condition[:16]
        drawn[device] = rollout(
            task.model, task.schedule, shape=task.shape, sample_ids=torch.arange(16), steps=8, solver="ddpm",
            parameterization=task.parameterization, condition=condition.to(device.split()[0]),
            device=device.split()[0], graphs=cache,
        ).x_0.cpu()  # fmt: skip
        assert cache is None or len(cache)
    torch.testing.assert_close(drawn["cuda"], drawn["cpu"], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(drawn["cuda graphs"], drawn["cuda"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_attention(dtype):
    """Against float64 within each sample, values and gradients."""
    if dtype == torch.float32:
        pytest.importorskip("xformers")
    counts = torch.tensor([3, 25, 1, 0, 14])
    element = (torch.arange(25) < counts[:, None]).cuda()
    packing = Packing.of(element)
    parts = torch.randn(3, int(counts.sum()), 4, 32, device="cuda", dtype=dtype).unbind()
    parts = [part.requires_grad_() for part in parts]
    exact = [part.detach().double().requires_grad_() for part in parts]
    mine = packed_attention(*parts, packing)
    wanted = torch.cat(
        [
            F.scaled_dot_product_attention(*(part[low:high].transpose(0, 1) for part in exact)).transpose(0, 1)
            for low, high in zip(packing.starts[:-1], packing.starts[1:], strict=True)
        ]
    )
    weights = torch.randn_like(wanted)
    (mine * weights).sum().backward()
    (wanted * weights).sum().backward()
    allowed = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    pairs = [(mine, wanted), *((part.grad, other.grad) for part, other in zip(parts, exact, strict=True))]
    for value, other in pairs:
        assert float((value.double() - other).norm() / other.norm()) < allowed


@pytest.mark.parametrize("mode", ["auto", "graph"])
@pytest.mark.parametrize("name", TASKS)
def test_a_run(tmp_path, monkeypatch, name, mode):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path / "cache"))
    lines = []
    subject = with_mode(subject_of(config_of(tmp_path / "run", name, "cuda", mode=mode), print), lines.append)
    assert mode != "auto" or lines[0].startswith("mode = ")
    trainer = trainer_of(subject, tmp_path / "run", Ledger())
    trainer.run_rounds()
    assert trainer.rounds_done == 2 and not graphs._failed
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in trainer.history)
