"""Whole runs of the Trainer: rounds, resume, budgets, refusals."""

import pytest
import torch
from clock import Clock
from small_nets import Mlp

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import CheckpointError, InputError, RewardError, StoppedError, StorageError
from pgraft_fast.finetune import (
    BudgetSettings,
    FinetuneSettings,
    Ledger,
    Prompts,
    SampleSettings,
    SelectSettings,
    Trainer,
    TrainSettings,
)
from pgraft_fast.finetune.checkpoint import History, load_newest, save_checkpoint

FLOW = Schedule.linear_flow()
CALLS = 8 * 5 + 3 * 6 * 4


def settings(rounds=3, **update):
    values = {
        "sample": SampleSettings(prompts=2, candidates=4, steps=5),
        "select": SelectSettings(k=2),
        "train": TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, cut=0.4, rounds=rounds),
    }
    return FinetuneSettings(**(values | update))


def trainer(run, config=None, reward=lambda x: x.sum(1), **update):
    config = settings() if config is None else config
    arguments = {"shape": (4,), "parameterization": "velocity", "log": lambda text: None} | update
    return Trainer(Mlp(), FLOW, reward, config, run=run, **arguments)


def weights(a):
    return {f"{name}.{key}": value for name, group in a._learner.tensors().items() for key, value in group.items()}


def assert_same(a, b):
    assert a._learner.steps_done == b._learner.steps_done
    assert all(torch.equal(weights(a)[key], value) for key, value in weights(b).items())
    kept = ("reward", "reward_accepted", "accepted", "loss", "steps", "t_cut")
    assert [[entry[k] for k in kept] for entry in a.history] == [[entry[k] for k in kept] for entry in b.history]


def test_rounds_raise_the_reward(tmp_path):
    run = trainer(tmp_path / "run", settings(rounds=4, train=TrainSettings(
        steps=60, batch_size=16, learning_rate=1e-2, cut=0.2, rounds=4)),
        prompts=Prompts(["x"]))  # fmt: skip
    run.run_rounds()
    assert run.rounds_done == 4
    rewards = [entry["reward"] for entry in run.history]
    assert rewards[-1] > rewards[0] + 0.5
    assert all(entry["reward_accepted"] > entry["reward"] for entry in run.history)


def test_resumed_run_is_bit_identical(tmp_path):
    straight = trainer(tmp_path / "straight")
    straight.run_rounds()
    for rounds in (1, 2, 3):
        resumed = trainer(tmp_path / "parts", settings(rounds=rounds))
        resumed.run_rounds()
    assert_same(straight, resumed)
    assert straight.ledger.model_calls == 3 * straight.calls_of_a_round() == 3 * CALLS


@pytest.mark.parametrize("frozen", ["reference", "ema"])
def test_contrast_trains_both_sides_and_goes_on_bit_identical(tmp_path, frozen):
    def contrast_settings(rounds):
        return settings(rounds, train=TrainSettings(
            steps=6, batch_size=4, learning_rate=1e-2, cut=0.4, rounds=rounds, objective="contrast", frozen=frozen,
        ))  # fmt: skip

    straight = trainer(tmp_path / "straight", contrast_settings(3))
    straight.run_rounds()
    for rounds in (1, 2, 3):
        resumed = trainer(tmp_path / "parts", contrast_settings(rounds))
        resumed.run_rounds()
    assert_same(straight, resumed)
    # A row that is trained on asks the frozen model once.
    assert straight.ledger.model_calls == 3 * straight.calls_of_a_round() == 3 * (8 * 5 + 4 * 6 * 4)
    assert straight.history[-1]["steps"] == 6


def test_where_contrast_starts_from_matters_from_the_second_round_on(tmp_path):
    runs = {}
    for frozen in ("reference", "ema"):
        train = TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, rounds=2, objective="contrast", frozen=frozen)
        runs[frozen] = trainer(tmp_path / frozen, settings(train=train))
        runs[frozen].run_rounds()
    losses = [[entry["loss"] for entry in run.history] for run in runs.values()]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_contrast_learns_nothing_where_all_are_accepted(tmp_path):
    lines: list[str] = []
    everything = {"select": SelectSettings(rule="threshold", threshold=-1e9)}
    train = TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, cut=0.4, objective="contrast")
    run = trainer(tmp_path / "contrast", settings(train=train, **everything), log=lines.append)
    run.run_rounds()
    assert run.history[0]["steps"] == 0 and run.ledger.model_calls == 8 * 5
    assert any("no group has accepted and rejected candidates: nothing is learned" in line for line in lines)
    assert all(torch.equal(a, b) for a, b in zip(run.tuned.parameters(), Mlp().parameters(), strict=True))
    # The ordinary loss learns, whatever the reward.
    run = trainer(tmp_path / "state", settings(1, **everything))
    run.run_rounds()
    assert not all(torch.equal(a, b) for a, b in zip(run.tuned.parameters(), Mlp().parameters(), strict=True))


@pytest.mark.parametrize("calls", [5, 60, 150, 200, 290])
def test_interrupted_run_goes_on_bit_identical(tmp_path, calls):
    straight = trainer(tmp_path / "straight")
    straight.run_rounds()

    def stop():
        if first.ledger.model_calls >= calls:
            raise StoppedError("stopped")

    first = trainer(tmp_path / "run", check=stop)
    with pytest.raises(StoppedError):
        first.run_rounds()
    first.ledger.close(finished=False)
    second = trainer(tmp_path / "run")
    assert second.rounds_done == first.rounds_done
    assert second.ledger.seconds["lost"] > 0
    second.run_rounds()
    assert_same(straight, second)


def test_a_damaged_checkpoint_falls_back(tmp_path):
    lines = []
    first = trainer(tmp_path / "run")
    first.run_rounds()
    (tmp_path / "run/checkpoints/round-000003/ema.safetensors").write_bytes(b"")
    second = trainer(tmp_path / "run", log=lines.append)
    assert second.rounds_done == 2
    assert "falling back" in lines[0]
    second.run_rounds()
    assert_same(first, second)
    for path in (tmp_path / "run/checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        trainer(tmp_path / "run")


def test_settings_that_change_the_future_are_refused(tmp_path):
    trainer(tmp_path, settings(rounds=1)).run_rounds()
    for update, key in [
        ({"seed": 1}, "seed=1 differs from 0"),
        ({"select": SelectSettings(k=1)}, "select.k=1 differs from 2"),
        ({"sample": SampleSettings(prompts=2, candidates=4, steps=5, solver="ddim")}, "sample.solver='ddim'"),
        ({"train": TrainSettings(steps=6, batch_size=4, learning_rate=1e-3, cut=0.4)}, "train.learning_rate"),
    ]:
        with pytest.raises(InputError, match=key):
            trainer(tmp_path, settings(**update))
    with pytest.raises(InputError, match="model='b'"):
        trainer(tmp_path, identity={"model": "b"})
    trainer(tmp_path, settings(rounds=2, budget=BudgetSettings(wall_seconds=600))).run_rounds()


def without(run, *settings):
    """As an earlier version wrote it, which did not know of these settings."""
    folder = run / "checkpoints"
    checkpoint = load_newest(folder, print)
    for name in settings:
        table, _, key = name.partition(".")
        del (checkpoint.state["settings"][table] if key else checkpoint.state["settings"])[key or table]
    checkpoint.state["history"] = History(checkpoint.state["history"])
    save_checkpoint(folder, checkpoint)


def test_what_an_earlier_version_did_not_know_of_is_at_its_default(tmp_path):
    trainer(tmp_path / "straight", settings(rounds=2)).run_rounds()
    train = TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, cut=0.4, rounds=2, low_noise=3.0)
    for name in ("a", "b", "c"):
        trainer(tmp_path / name, settings(rounds=1)).run_rounds()
    without(tmp_path / "a", "train.low_noise", "deterministic", "nft", "ddpo.variant")
    run = trainer(tmp_path / "a", settings(rounds=2))
    run.run_rounds()
    assert_same(trainer(tmp_path / "straight", settings(rounds=2)), run)
    without(tmp_path / "b", "train.low_noise")
    with pytest.raises(InputError, match=r"train\.low_noise=3\.0 differs from 1\.0"):
        trainer(tmp_path / "b", settings(train=train))
    without(tmp_path / "c", "seed")
    with pytest.raises(InputError, match="seed=1 differs from 0"):
        trainer(tmp_path / "c", settings(seed=1))


def test_budget_of_model_calls(tmp_path):
    lines = []
    run = trainer(tmp_path, settings(rounds=9, budget=BudgetSettings(model_calls=2 * CALLS + 50)), log=lines.append)
    run.run_rounds()
    assert run.rounds_done == 2
    assert run.ledger.model_calls == 2 * CALLS
    assert lines[-1] == f"budget: a round needs {CALLS} model calls, 50 are left"
    with pytest.raises(InputError, match="not one round fits"):
        trainer(tmp_path / "b", settings(budget=BudgetSettings(model_calls=CALLS - 1))).run_rounds()


@pytest.mark.parametrize("wall", [0.3, 0.7, 1.9])
def test_budget_of_wall_time(tmp_path, wall):
    clock = Clock()
    config = settings(rounds=50, budget=BudgetSettings(wall_seconds=wall))
    run = trainer(
        tmp_path,
        config,
        reward=clock.during(lambda x: x.sum(1), 0.05),
        check=clock.during(lambda: None, 0.01),
        ledger=Ledger(tmp_path / "ledger.jsonl", clock=clock),
    )
    run.run_rounds()
    spent = run.ledger.summary()
    round_seconds = spent["total_seconds"] / run.rounds_done
    assert 1 <= run.rounds_done < 50
    assert wall - round_seconds - 0.011 < spent["total_seconds"] <= wall
    assert sum(spent["seconds"].values()) == pytest.approx(spent["total_seconds"], rel=1e-5)
    assert spent["seconds"]["score"] >= 0.05 * run.rounds_done


def test_the_line_that_ends_a_run_tells_what_a_round_takes(tmp_path):
    lines, clock = [], Clock()
    run = trainer(
        tmp_path,
        settings(rounds=10**6, budget=BudgetSettings(wall_seconds=0.5)),
        reward=clock.during(lambda x: x.sum(1), 0.02),
        log=lines.append,
        ledger=Ledger(tmp_path / "ledger.jsonl", clock=clock),
    )
    run.budget.reserve = 0.09
    run.run_rounds()
    assert run.rounds_done == 20
    assert lines[-1] == "budget: a round takes 20.0 ms, 10.0 ms are left"
    assert lines[-2].endswith(f"{20 * CALLS:,} model calls, 400 ms")


def test_no_time_at_all(tmp_path):
    clock = Clock()
    late = Ledger(clock=clock)
    clock.now += 1.0
    with pytest.raises(InputError, match=r"^budget: of 1.00 ms nothing is left for a first round: not one round fits"):
        trainer(tmp_path / "a", settings(budget=BudgetSettings(wall_seconds=1e-3)), ledger=late).run_rounds()
    config = settings(
        budget=BudgetSettings(wall_seconds=0.5), sample=SampleSettings(prompts=2, candidates=4, batch_size=1)
    )
    slow = clock.during(lambda x: x.sum(1), 0.2)
    with pytest.raises(InputError, match="the time is up before the first round has sampled"):
        trainer(tmp_path / "b", config, reward=slow, ledger=Ledger(clock=clock)).run_rounds()


def test_time_that_ends_in_a_later_round(tmp_path):
    lines = []
    run = trainer(tmp_path, settings(rounds=2, budget=BudgetSettings(wall_seconds=1e3)), log=lines.append)
    run._round()
    run.budget.reserve = 1e3
    run.budget.allows_round = lambda calls: True
    run.run_rounds()
    assert run.rounds_done == 1
    assert "the time is up in round 2, which is dropped" in lines[-1]


def test_nothing_accepted(tmp_path):
    config = settings(select=SelectSettings(rule="threshold", threshold=1e9))
    with pytest.raises(InputError, match="no candidate was accepted by rule 'threshold'"):
        trainer(tmp_path / "a", config).run_rounds()
    best = settings(rounds=1, select=SelectSettings(rule="threshold", threshold=1e9, empty="best"))
    run = trainer(tmp_path / "b", best)
    run.run_rounds()
    assert run.history[0]["accepted"] == 2


def test_a_failing_reward_loses_no_finished_round(tmp_path):
    calls = []

    def reward(x):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("no")
        return x.sum(1)

    straight = trainer(tmp_path / "straight")
    straight.run_rounds()
    with pytest.raises(RewardError, match="raised ValueError: no"):
        trainer(tmp_path / "run", reward=reward).run_rounds()
    second = trainer(tmp_path / "run")
    assert second.rounds_done == 2
    second.run_rounds()
    assert_same(straight, second)


def test_too_little_space(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match="MB free, has 0"):
        trainer(tmp_path).run_rounds()


@pytest.mark.parametrize("method", ["pgraft", "graft", "ddpo", "nft"])
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_the_result_is_named_as_the_model_however_it_is_called(tmp_path, monkeypatch, method, mode):
    """The twin of a module, and a compiled one, name their weights otherwise."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="eager"))
    monkeypatch.setattr("pgraft_fast.finetune.execution.onednn_pays", lambda: True)
    train = TrainSettings(steps=2, batch_size=4, cut=0.4)
    sample = SampleSettings(prompts=2, candidates=4, steps=5, solver="euler_sde")
    made = trainer(tmp_path, settings(method=method, mode=mode, train=train, sample=sample))
    made.run_rounds()
    other = Mlp()
    other.load_state_dict(made.tuned.state_dict())
    assert any(not torch.equal(*pair) for pair in zip(other.parameters(), Mlp().parameters(), strict=True))


@pytest.mark.parametrize("twins", [False, True])
def test_compiled_models_are_called_instead(tmp_path, monkeypatch, twins):
    """The reference, the average and the model in training, by dynamo and AOTAutograd; the run is that of the plain
    ones, bit for bit: the aot_eager backend runs torch's own kernels.
    """
    made, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compile_ = torch.compile

    def with_backend(module):
        made.append(module)
        return compile_(module, backend=backend)

    monkeypatch.setattr(torch, "compile", with_backend)
    monkeypatch.setattr("pgraft_fast.finetune.execution.onednn_pays", lambda: twins)
    torch._dynamo.reset()
    fast = trainer(tmp_path / "fast", settings(mode="compile"))
    fast.run_rounds()
    assert len(made) == 3
    # Each in training and without gradients, or without them alone.
    assert len(graphs) >= 3 and all(any(node.op == "call_function" for node in traced.graph.nodes) for traced in graphs)
    learner = fast._learner
    whose = [next(module.parameters()) for module in made]
    assert whose[0] is next(learner.model.parameters()) and whose[2] is next(learner.ema.parameters())
    plain = trainer(tmp_path / "plain")
    plain.run_rounds()
    assert_same(fast, plain)
