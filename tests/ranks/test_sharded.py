"""Two ranks with shares of a network train, sample and save as one rank with all of it does."""

import json
from pathlib import Path

import pytest
import rank_checks
import ranked
import torch
from safetensors import safe_open
from sharded_nets import blocks
from torch import nn

from pgraft_fast.ranks.sharded import blocks_of, skeleton

_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """found(check, module="sharded_checks"): of both ranks."""
    folder = ranked.shared_folder(tmp_path_factory)

    def of(check, module="sharded_checks", size=2):
        told = [
            rank.get(check, {"error": "an earlier check failed"}) for rank in rank_checks.results(module, size, folder)
        ]
        for rank in told:
            assert "error" not in rank, rank["error"]
        return told

    return of


def _is_same(told):
    for rank in told:
        assert rank["off"]
        for name, value in rank["off"].items():
            assert value < _TOLERANCE, name


def test_all_weights_with_recomputed_activations(found):
    told = found("full")
    _is_same(told)
    assert [rank["written by"] for rank in told] == [True, False]
    assert all(rank["sharded"] == [True, True, True] and not rank["captured"] for rank in told)


def test_samples_follow_what_was_trained(found):
    _is_same(found("samples"))


def test_checkpoints_are_the_same_with_shares_and_without(found):
    first, second = found("checkpoints")
    _is_same([first, second])
    assert {"one", "two", "given back"} == first["off"].keys() and first["moved"] > 1e-2
    assert first["steps"] == second["steps"] == 2
    assert first["share"] + second["share"] == pytest.approx(1.0, abs=0.01) and second["share"] > 0.45


def test_rounds_that_start_from_the_averaged_weights(found):
    told = found("round starts")
    _is_same(told)
    assert all(moved > 1e-2 for rank in told for moved in rank["moved"])


def test_weights_of_16_bits(found):
    told = found("halves")
    for dtype in ("torch.bfloat16", "torch.float16"):
        first, second = (rank[dtype] for rank in told)
        mine, of_one = first.pop("off")
        assert all(first.values()) and all(second.values())
        # From training in 32 bits no further than on one rank.
        assert 0.0 < mine < 1.2 * of_one
    # The scale is halved once, by all.
    assert told[0]["overflow"] == told[1]["overflow"]
    (done, overflows, scale), (again, _, later) = told[0]["overflow"]
    assert (done, overflows, again, later) == (False, True, True, scale)


def test_a_run_on_ranks_that_share_is_that_of_one_rank(found):
    """Begun by the one and ended by the other."""
    first, second = found("runs")
    assert len(first["off"]) == 6 and max(first["off"].values()) < _TOLERANCE
    assert first["moved"] > 1e-2
    # The second rank draws a group more, of four calls, in each round.
    assert (first["blank"], second["blank"]) == ([4, 4], [0, 0])


def test_a_reward_that_fails_ends_all_ranks(found):
    first, second = found("failed reward")
    assert "no answer" in second["told"] and "RewardError" in second["told"]
    assert first["told"] == second["told"]


@pytest.mark.parametrize("check", ["flux", "flux lora"])
def test_pipelines(found, check):
    _check_pipeline(found(check))


@pytest.mark.faults
@pytest.mark.parametrize("check", ["sd", "sd lora", "sd3", "qwen_image lora", "flux lora, base sharded first"])
def test_more_pipelines(found, check):
    told = found(check, "sharded_pipelines")
    _check_pipeline(told)
    assert [rank["one call"] for rank in told] == [check != "qwen_image lora"] * 2


def _check_pipeline(told):
    _is_same(told)
    assert "state" in told[0]["off"]
    for rank in told:
        assert 0.4 < rank["share"] < 0.6
        # By content and by name the reference is the one that it was.
        assert rank["same contents"] and rank["class"] and rank.get("left", True)
        result = rank.get("result", True)
        assert result is True or all(result)
        assert all(said == held for said, held in rank.get("held", {}).values())
    # The first rank made the second one's calls of the reference with it, which are one where rows go together.
    assert (told[0]["blank"] == 1) == told[0]["one call"] and told[0]["blank"] > told[1]["blank"] == 0


def test_unequal_numbers_of_calls(found):
    first, second = found("turns")
    # 5 calls and 2, 0 and 3 of two networks, 1 and 1, none.
    assert (first["blank"], second["blank"]) == ([1, 3, 0, 0], [4, 0, 0, 0])
    assert first["failed"] == "RankError rank 1 has failed while it called a sharded network"
    assert second["failed"] == "ZeroDivisionError"
    assert all(rank[name] < _TOLERANCE for rank in (first, second) for name in ("off", "after", "closed"))


def test_calls_that_raise_and_what_is_refused(found):
    for rank in found("failed calls"):
        assert rank["messages"] == ["RuntimeError", "ZeroDivisionError"]
        assert rank["gradient"] < _TOLERANCE
        assert rank["refused"] == [
            "Blocks is sharded, and cannot be copied; make its learner before",
            "ParameterList.0: weights of torch.int8 cannot be sharded; load it whole",
        ]


def test_a_rank_holds_what_is_told(found):
    """To the byte on the rank with the most rows."""
    first, second = found("holdings")
    assert 0.4 < first.pop("share") < 0.5 and second.pop("share")
    assert len(first) == 6
    for case, parts in first.items():
        for part, (said, held) in parts.items():
            assert said == held, (case, part)
        for part, (said, held) in second[case].items():
            assert held == said or (part == "moments" and 0.8 * said < held < said), (case, part)


@pytest.mark.faults
def test_every_denoiser(found):
    """With its blocks, in the same calls and backward passes."""
    import sharded_everywhere

    opened, refused = [], []
    for name in sharded_everywhere.CHECKS:
        (told,) = found(name, "sharded_everywhere", 1)
        if "refused" in told:
            refused.append(name)
            continue
        assert told["off"] < _TOLERANCE and told["same gradients"], name
        assert told["blocks"] >= 2, name
        opened += [name] * told["opened"]
    # Its last layer calls a part of the first block.
    assert opened == ["dit"]
    assert refused == ["sd_inpaint", "flux_fill"]


def test_blocks_are_found_by_structure():
    net = blocks()
    assert blocks_of(net) == [f"blocks.{number}" for number in range(9)]
    # Fewer and larger ones are cut at the lists within, which these do not have.
    assert blocks_of(blocks(count=2)) == ["blocks.0", "blocks.1"]
    outer = nn.Sequential(nn.ModuleDict({"deep": nn.ModuleList([net])}), nn.Linear(8, 8))
    assert blocks_of(outer) == [*(f"0.deep.0.blocks.{number}" for number in range(9)), "0.deep.0"]
    # What shares a weight with others goes with what is around them.
    net.blocks[3].wide.weight = net.blocks[5].wide.weight
    assert blocks_of(net) == [f"blocks.{number}" for number in range(9) if number not in (3, 5)]
    # Next to nothing.
    net.extra = nn.ModuleList([nn.LayerNorm(2)])
    assert "extra.0" not in blocks_of(net)
    kept = [weight for part in (net.blocks, net.extra) for weight in part.parameters()]
    assert blocks_of(net, kept) == []


def test_a_block_that_is_called_in_parts_is_none():
    net = blocks()
    x, t = torch.zeros(1, 8), torch.ones(1)
    assert blocks_of(net, call=lambda: net(x, t)) == blocks_of(net)
    within = net.blocks[2].norm
    assert blocks_of(net, call=lambda: [net(x, t), within(x)]) == [f"blocks.{n}" for n in range(9) if n != 2]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_skeleton_has_no_weights_and_leaves_the_network():
    net = blocks()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bones = skeleton(net)
    assert all(weight.is_meta for weight in bones.parameters())
    assert bones.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# Of pipelines, on one rank and on two that share: a LoRA, and all weights.
RUN = """
run = "{run}"
shard = "always"
method = "{method}"
[model]
shipped = "sd"
[[rewards]]
kind = "task"
name = "questions"
[sample]
prompts = 3
candidates = 4
steps = 4
guidance = {guidance}
batch_size = 4
[select]
k = 2
[train]
rounds = 2
steps = 3
batch_size = 5
learning_rate = 1e-4
{train}
[lora]
rank = {rank}
[evaluate]
samples = 8
"""
_CONTRAST = 'objective = "contrast"\nstrength = 4.0\nfrozen = "ema"'
_METHODS = {
    "pgraft": {"train": _CONTRAST, "guidance": 2.0},
    "ddpo": {"train": "", "guidance": 2.0},
    "nft": {"train": "", "guidance": 1.0},
}
# Rank of the LoRA, 0 for all weights, and method.
_COMMANDS = {"lora": (4, "pgraft"), "full": (0, "pgraft"), "ddpo": (4, "ddpo"), "nft": (4, "nft")}


@pytest.mark.faults
@pytest.mark.parametrize("names", [["lora"], ["full", "ddpo", "nft"]])
def test_commands(tmp_path, names):
    """The same results in the same files."""
    commands = {name: _COMMANDS[name] for name in names}
    runs = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        configs = []
        for name, (rank, method) in commands.items():
            text = RUN.format(run=folder / name, rank=rank, method=method, **_METHODS[method])
            path = folder / f"{name}.toml"
            path.write_text(text)
            configs.append(str(path))
        ended = ranked.run(size, [str(Path(__file__).with_name("commands.py")), *configs])
        assert [status for status, _, _ in ended] == [0] * size, ended
        assert ("each of 2 ranks" in ended[0][2]) == (size == 2), ended[0][2]
        runs[size] = folder
    for name, (rank, _) in commands.items():
        file = "adapter/pytorch_lora_weights.safetensors" if rank else "model.safetensors"
        one, two = (json.loads((runs[size] / name / "result.json").read_text()) for size in (1, 2))
        for old, new in zip(one["rounds"], two["rounds"], strict=True):
            assert new["accepted"] == old["accepted"] and new["model_calls"] == old["model_calls"]
            assert new["loss"] == pytest.approx(old["loss"], abs=_TOLERANCE)
        with safe_open(runs[1] / name / file, "pt") as old, safe_open(runs[2] / name / file, "pt") as new:
            assert list(old.keys()) == list(new.keys())
            assert old.metadata() == new.metadata()
            far = [float((old.get_tensor(key) - new.get_tensor(key)).abs().max()) for key in old.keys()]  # noqa: SIM118
        assert max(far) < 1e-4 and sum(value > _TOLERANCE for value in far) < 0.05 * len(far)
