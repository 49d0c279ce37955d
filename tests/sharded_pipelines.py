"""A pipeline's denoiser in training on two ranks that share it, beside one rank with all of it. See `rank_checks`."""

from functools import partial

import every_pipeline
import torch
from denoisers import NAMES, SETTINGS, answer, denoiser
from every_pipeline import build
from sharded_nets import gradients_off, train_both

from pgraft_fast.finetune.identity import sha256_of_module
from pgraft_fast.pipelines.adapters.fingerprint import base_fingerprint
from pgraft_fast.pipelines.adapters.handover import remove_adapters
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.learners import FullLearner, LoraLearner
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.pipelines.sharded import ShardedFullLearner, ShardedLoraLearner, take_turns
from pgraft_fast.ranks.holding import holding_lora
from pgraft_fast.ranks.parts import part_of
from pgraft_fast.ranks.sharded import shard, whole_state
from pgraft_fast.ranks.turns import Turns

# AdamW moves weights whose gradient is 0 but for rounding by the whole of it.
_SETTINGS = SETTINGS.model_copy(update={"learning_rate": 3e-4, "frozen": "ema"})


def _net(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def _model(pipe, name):
    if name in NAMES:
        return denoiser(pipe, 3.0)
    model = Driven.of(facts_of(Calls(pipe, every_pipeline.prompts_of(name), every_pipeline.call_of(name))))
    model.prepare([0, 1])
    return model


def _learner(pipe, name, mesh, lora, recompute, first):
    """mesh: None for one rank."""
    net = _net(pipe)
    if first:
        shard(net.requires_grad_(False), mesh)
    model = _model(pipe, name)
    if recompute:
        net.enable_gradient_checkpointing()
    if mesh is None:
        return LoraLearner(model, _SETTINGS, Lora(rank=2), 1) if lora else FullLearner(model, _SETTINGS)
    return (
        ShardedLoraLearner(model, _SETTINGS, Lora(rank=2), 1, mesh)
        if lora
        else (ShardedFullLearner(model, _SETTINGS, mesh))
    )


def learn(mesh, ranks, name, lora, recompute=False, first=False):
    """first: the base is sharded before the pipeline is watched."""
    rank = ranks.rank
    pipe, other = build(name), build(name)
    before = base_fingerprint(_net(pipe)), sha256_of_module(_net(pipe)), list(_net(pipe).state_dict())
    one, two = _learner(other, name, None, lora, recompute, False), _learner(pipe, name, mesh, lora, recompute, first)
    net, facts = _net(pipe), two.model.facts
    problem = {
        "shape": facts.shape, "condition": torch.tensor([0, 0, 0, 1, 0]), "schedule": facts.schedule,
        "parameterization": facts.parameterization,
    }  # fmt: skip
    found = {**gradients_off(one, two, rank, **problem), **train_both(one, two, rank, 2, **problem)}
    whole = two.gathered()
    if rank == 0:
        found["state"] = _off_where_it_is_trained(list(one._masters.by_name), whole, one.tensors())
    for kind in ("ema", "sampled", "reference", "averaged"):
        found[kind] = float((answer(getattr(one, kind)) - answer(getattr(two, kind))).abs().max())
    two.freeze()
    found["frozen"] = float((answer(two.frozen) - answer(two.averaged)).abs().max())
    base = [weight for key, weight in net.named_parameters() if ".lora_" not in f".{key}"]
    result = {
        "share": sum(part_of(weight).numel() for weight in base) / sum(weight.numel() for weight in base),
        "same contents": (base_fingerprint(net), sha256_of_module(net)) == before[:2],
        "class": type(net).__name__ == type(_net(other)).__name__,
    }
    if not lora:
        state, wanted = whole_state(two.ema.net), one.ema.net.state_dict()
        result["result"] = state == {} if rank else [state.keys() == wanted.keys(), _kinds(state) == _kinds(wanted)]
    result["one call"] = two.most_rows() > 1
    turns = Turns(30)
    take_turns(turns, two.ema, two.reference)
    with turns.open():
        answers = [answer(two.ema), *([answer(two.reference)] if rank else [])]
    turns.close()
    found["turns"], result["blank"] = float((answers[0] - answer(two.ema)).abs().max()), turns.blank
    if lora:
        told = holding_lora(_net(build(name)), two._masters.whole(), 2, sharded=True, averages=2)
        result["held"] = _held(two, base, told)
        remove_adapters(net)
        result["left"] = list(net.state_dict()) == before[2]
    return {"off": found, **result}


def _held(learner, base, told):
    """[told, allocated] of each part."""
    moments = [state[name] for state in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    others = [weight for key, weight in learner.model.net.named_parameters() if ".ema." in key or ".frozen." in key]
    return {
        "base": [told.base, sum(part_of(weight).untyped_storage().nbytes() for weight in base)],
        "weights": [told.weights, sum(weight.nbytes for weight in learner._masters.written())],
        "moments": [told.moments, sum(value.nbytes for value in moments)],
        "averages": [told.averages, sum(weight.nbytes for weight in others)],
    }


def _kinds(state):
    return [(value.dtype, value.shape) for value in state.values()]


def _off_where_it_is_trained(names, groups, others):
    """AdamW moves a weight whose gradient is 0 but for rounding by as much as others, to either side."""
    moment = others["optimizer"]
    assert len(moment) == 3 * len(names)
    most = max(float(value.max()) for key, value in moment.items() if key.endswith("exp_avg_sq"))
    worst = 0.0
    for index, name in enumerate(names):
        known = moment[f"{index}.exp_avg_sq"] > 1e-6 * most
        for group in ("model", "ema"):
            far = (groups[group][name] - others[group][name].detach()).abs()[known]
            worst = max([worst, *far.flatten().tolist()])
    return worst


CHECKS = {
    "sd": partial(learn, name="sd", lora=False),
    "sd lora": partial(learn, name="sd", lora=True, recompute=True),
    "sd3": partial(learn, name="sd3", lora=False, recompute=True),
    "qwen_image lora": partial(learn, name="qwen_image", lora=True),
    "flux lora, base sharded first": partial(learn, name="flux", lora=True, first=True),
}
