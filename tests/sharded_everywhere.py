"""Every pipeline's denoiser, sharded over one rank: the same answers and gradients. See `rank_checks`."""

import torch
from every_pipeline import SERVED, build, call_of, prompts_of

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.sharded import check_shardable, trial_of
from pgraft_fast.pipelines.ways import UNGUIDED
from pgraft_fast.ranks.parts import whole_of
from pgraft_fast.ranks.sharded import blocks_of, shard


def _answers(model, x, t, condition):
    """With and without guidance, and the gradient of what is trained."""
    with torch.no_grad():
        guided = model(x, t, condition)
    plain = model.like(way=UNGUIDED)(x, t, condition)
    weights = list(model.net.parameters())
    plain.double().square().mean().backward()
    gradients = [None if weight.grad is None else whole_of(weight.grad).flatten() for weight in weights]
    for weight in weights:
        weight.grad = None
    there = [gradient is not None for gradient in gradients]
    return there, guided, plain.detach(), torch.cat([gradient for gradient in gradients if gradient is not None])


def one(name):
    def check(mesh, ranks):
        pipe = build(name).to(mesh.device_type)
        model = Driven.of(facts_of(Calls(pipe, prompts_of(name), call_of(name))))
        try:
            check_shardable(model)
        except InputError as error:
            return {"refused": str(error)}
        facts = model.facts
        model.prepare([0, 1])
        x = torch.randn(2, *facts.shape, generator=torch.Generator().manual_seed(0)).to(mesh.device_type)
        t, condition = torch.tensor([0.9, 0.7]).to(x) * facts.begin, torch.tensor([0, 1]).to(x.device)
        model.net.requires_grad_(True)
        before = _answers(model, x, t, condition)
        blocks = blocks_of(model.net, call=trial_of(model))
        shard(model.net, mesh, blocks=blocks)
        after = _answers(model, x, t, condition)
        far = [float((old - new).abs().max() / old.abs().max()) for old, new in zip(before[1:], after[1:], strict=True)]
        model.close()
        every = blocks_of(build(name).components[facts.denoiser])
        return {
            "blocks": len(blocks),
            "opened": len(every) - len(blocks),
            "off": max(far),
            "same gradients": before[0] == after[0],
        }

    return check


CHECKS = {name: one(name) for name in SERVED}
