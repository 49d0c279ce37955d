"""Rewards that hang, crash, answer nan, too little or in another order, under every policy."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rewards.faulty import (
    FAULTS,
    IDS,
    PROMPTS,
    RIGHT,
    SAMPLES,
    Faulty,
    hangs,
    limit,
    masked,
    nan,
    none_in_a_list,
    none_in_an_array,
    policed,
    raises,
)

import pgraft_fast.rewards
from pgraft_fast.errors import InputError, RewardError, StoppedError
from pgraft_fast.rewards import PolicedReward, Policy, score
from pgraft_fast.rewards.policy import Policy as SamePolicy
from pgraft_fast.rewards.process import CommandReward


@pytest.mark.parametrize("fault", FAULTS)
def test_stop(fault):
    reward = Faulty(fault, bad=(2, 5))
    with pytest.raises(RewardError, match=f"reward 'faulty' {FAULTS[fault]}; mend the reward, ") as caught:
        policed(reward, on_failure="stop", timeout_seconds=limit(fault))(SAMPLES, PROMPTS, IDS)
    assert "\n" not in str(caught.value) and 'set policy.on_failure = "drop"' in str(caught.value)
    assert reward.calls == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_retry(fault):
    lines = []
    reward = Faulty(fault, bad=(2, 5), times=1)
    rewards = policed(reward, lines, retries=2, timeout_seconds=2.0 if fault is hangs else 30.0)(SAMPLES, PROMPTS, IDS)
    assert rewards.tolist() == RIGHT and reward.calls == 2
    assert [line.rpartition("; ")[2] for line in lines] == ["trying again, 1 of 2"]
    with pytest.raises(RewardError, match=f"{FAULTS[fault]}.*, tried 2 times; mend the reward, "):
        policed(Faulty(fault, bad=(2, 5)), retries=1, timeout_seconds=limit(fault))(SAMPLES, PROMPTS, IDS)


@pytest.mark.parametrize("fault", FAULTS)
def test_drop(fault):
    lines = []
    reward = Faulty(fault, bad=(2, 5))
    rewards = policed(reward, lines, on_failure="drop", timeout_seconds=limit(fault))(SAMPLES, PROMPTS, IDS)
    bad = [True] * 8 if fault is hangs else [i in (2, 5) for i in range(8)]
    assert torch.isnan(rewards).tolist() == bad
    assert [x for x, b in zip(rewards.tolist(), bad, strict=True) if not b] == [
        x for x, b in zip(RIGHT, bad, strict=True) if not b
    ]
    # Whole, halves, quarters, eighths; once where the answer tells which samples have none.
    once = fault in (hangs, nan, none_in_a_list, none_in_an_array, masked)
    assert reward.calls == (1 if once else 1 + 2 + 4 + 4)
    assert len(lines) == 1
    assert lines[0].endswith("dropped" if once else "dropped samples 42, 45")


def test_drop_is_bounded():
    """At most 64 calls more, and one time-out more, however many samples fail."""
    samples, ids = torch.arange(256.0).view(256, 1, 1, 1), list(range(256))
    reward = Faulty(raises, bad=range(0, 256, 2))
    rewards = policed(reward, on_failure="drop")(samples, [""] * 256, ids)
    assert reward.calls == 65 and torch.isnan(rewards).all()
    reward = Faulty(lambda values, hit: time.sleep(0.05), bad=range(256))
    policed(reward, on_failure="drop", timeout_seconds=0.5)(samples, [""] * 256, ids)
    # As many as go into two time-outs; none for each of the 64.
    assert 1 <= reward.calls <= 2 * 0.5 / 0.05 + 2
    # A failure that passes leaves nothing to drop.
    lines = []
    rewards = policed(Faulty(raises, times=1), lines, on_failure="drop")(SAMPLES, PROMPTS, IDS)
    assert rewards.tolist() == RIGHT
    assert lines[0].endswith("all answered one half at a time")


def test_share_of_the_dropped():
    samples, prompts, ids = torch.arange(40.0).view(40, 1, 1, 1), [""] * 40, torch.arange(40)
    for n, share, good in [(2, 0.05, True), (3, 0.05, False), (20, 0.5, True), (1, 0.0, False)]:
        reward = policed(Faulty(nan, bad=range(n)), on_failure="drop", max_dropped_share=share)
        if good:
            assert int(torch.isnan(score(reward, samples, prompts, ids)).sum()) == n
        else:
            message = rf"'faulty' gave no finite number for {n} of 40 samples .*; at most {int(100 * share)} % may fail"
            with pytest.raises(RewardError, match=message):
                score(reward, samples, prompts, ids)


def test_batches_and_gradients():
    seen = []

    def reward(samples, prompts, sample_ids):
        assert not torch.is_grad_enabled() and not samples.requires_grad and samples.grad_fn is None
        assert threading.current_thread() is not threading.main_thread()
        seen.append((threading.get_ident(), list(prompts), list(sample_ids)))
        return samples.flatten(1).mean(1)

    samples = (SAMPLES * torch.ones(1, requires_grad=True)).sqrt() ** 2
    with policed(reward, batch_size=3) as call:
        rewards = score(call, samples, PROMPTS, torch.tensor(IDS), batch_size=6)
    torch.testing.assert_close(rewards, torch.tensor(RIGHT))
    assert not rewards.requires_grad
    assert [prompts for _, prompts, _ in seen] == [list("abc"), list("def"), list("gh")]
    assert seen[2][2] == [46, 47]
    assert len({thread for thread, _, _ in seen}) == 1
    assert policed(reward)(samples[:0], [], []).shape == (0,)


def test_samples_that_are_not_finite():
    samples, lines = SAMPLES.clone(), []
    samples[2, 0, 0, 0], samples[5, 0, 0, 0] = float("nan"), float("inf")
    reward = Faulty(raises, bad=())
    for how in ("retry", "stop"):
        with pytest.raises(
            RewardError, match="'faulty' was not asked about samples 42, 45: nan or inf in the sample itself; look"
        ):
            policed(reward, on_failure=how)(samples, PROMPTS, IDS)
    rewards = policed(reward, lines, on_failure="drop")(samples, PROMPTS, IDS)
    assert torch.isnan(rewards).tolist() == [i in (2, 5) for i in range(8)]
    assert reward.calls == 1 and lines[0].endswith("; dropped")


def test_changes_in_place():
    def reward(samples):
        return samples.mul_(2).flatten(1).mean(1)

    message = r"reward 'reward' changes its samples in place; let it work on samples.clone\(\)"
    for call in (policed(reward), policed(reward, on_failure="drop"), reward):
        with pytest.raises(RewardError, match=message):
            score(call, SAMPLES.clone(), PROMPTS, torch.tensor(IDS))


def mean(samples):
    return samples[:, 0, 0, 0]


ORDERS = {
    "turned": lambda x: mean(x).flip(0),
    "sorted": lambda x: -(-mean(x)).sort().values.roll(1),
    "shifted": lambda x: mean(x).roll(1),
}
FINE = {
    "right": mean,
    "all equal": lambda x: torch.ones(len(x)),
    "by batch": lambda x: (mean(x) - mean(x).mean()) / (mean(x).std(correction=0) + 1e-3),
    "ranks": lambda x: mean(x).argsort().argsort().float(),
    "random": lambda x: torch.rand(len(x)),
    "noisy": lambda x: mean(x) * (1 + 0.003 * torch.randn(len(x))),
    "not alone": lambda x: mean(x) if len(x) > 1 else 1 / 0,
    "nan": lambda x: torch.where(mean(x) == 1, torch.nan, mean(x)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_wrong_order(name):
    shuffled = SAMPLES[[3, 0, 5, 1, 7, 2, 6, 4]]
    for how in ("stop", "retry", "drop"):
        reward = policed(ORDERS[name], name=name, on_failure=how, check_order=True)
        message = rf"reward '{name}' answers in another order than it is asked \(at samples 40 to 47\)"
        with pytest.raises(RewardError, match=message):
            reward(shuffled, PROMPTS, IDS)


@pytest.mark.parametrize("name", FINE)
def test_right_order(name):
    calls = []

    def reward(samples):
        calls.append(len(samples))
        return FINE[name](samples)

    call = policed(reward, on_failure="drop", check_order=True, batch_size=4)
    shuffled = SAMPLES[[3, 0, 5, 1, 7, 2, 6, 4]]
    rewards = call(shuffled, PROMPTS, IDS)
    assert calls[:2] == [4, 4] and calls.count(4) == 3
    call(shuffled, PROMPTS, IDS)
    assert calls[-2:] == [4, 4]
    if name == "right":
        assert rewards.tolist() == [3, 0, 5, 1, 7, 2, 6, 4]


@contextlib.contextmanager
def traced(function):
    """As by a debugger; None: by nothing, coverage neither."""
    before = sys.gettrace()
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_loop_is_ended():
    """Python code that hangs does not go on beside the next try; where Python is traced, before 3.12, it does."""
    running = []

    def reward(samples):
        while True:
            running.append(time.sleep(0.01))

    late = pytest.raises(
        RewardError, match=r"did not answer within 0.1 s \(at samples 40 to 47\).*, tried 2 times; mend"
    )
    with traced(None), late:
        policed(reward, retries=1, timeout_seconds=0.1)(SAMPLES, PROMPTS, IDS)
    for _ in range(50):
        count = len(running)
        time.sleep(0.1)
        if len(running) == count:
            return
    pytest.fail("it goes on")


@pytest.mark.parametrize("tracer", [None, lambda *args: None])
def test_a_stop_while_it_waits(tracer):
    """A reward that hangs does not keep a run from being stopped, in a debugger neither."""

    def check():
        raise StoppedError("stop")

    hold, answered = threading.Event(), []

    def waits(values, hit):
        try:
            hold.wait(60.0)
        finally:
            answered.append(True)

    try:
        with traced(tracer), pytest.raises(StoppedError):
            score(policed(Faulty(waits), timeout_seconds=500.0), SAMPLES, PROMPTS, torch.tensor(IDS), on_batch=check)
        assert answered == []
    finally:
        hold.set()


def test_start():
    class Prepared(Faulty):
        """Loads for longer than a batch may take."""

        def prepare(self):
            self.prepared = getattr(self, "prepared", 0) + 1
            time.sleep(2.2)

        def close(self):
            self.closed = True

    reward = Prepared(raises, bad=())
    with policed(reward, timeout_seconds=2.0) as call:
        call(SAMPLES, PROMPTS, IDS)
        call(SAMPLES, PROMPTS, IDS)
    assert reward.prepared == 1 and reward.closed
    reward.prepare = lambda: 1 / 0
    with pytest.raises(
        RewardError, match="reward 'faulty' cannot start: it raised ZeroDivisionError: division by zero"
    ):
        policed(reward, on_failure="drop")(SAMPLES, PROMPTS, IDS)


SCORER = """
import os, time
def score(images, prompts):
    if "c" in prompts and not os.path.exists(FLAG):
        open(FLAG, "w").close()
        FAULT
    if "f" in prompts and "FAULT" != "pass" and KEEPS:
        FAULT
    return images[:, 0, 0, 0] / 255
"""


@pytest.fixture
def command(tmp_path):
    """command(fault, keeps): a reward in a process that has a fault, once at "c" or always at "f"."""
    made = []

    def make(fault, keeps=False, **options):
        file = tmp_path / f"scorer_{len(made)}.py"
        text = SCORER.replace("FLAG", repr(str(tmp_path / f"flag_{len(made)}"))).replace("KEEPS", str(keeps))
        file.write_text(text.replace("FAULT", fault))
        serve = Path(pgraft_fast.rewards.__file__).with_name("serve.py")
        made.append(CommandReward([sys.executable, str(serve), f"{file}:score"], name="mine", **options))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


WHITE = torch.linspace(-1, 1, 8).view(8, 1, 1, 1).expand(8, 3, 2, 2)


def test_command_under_a_policy(command):
    right = ((torch.linspace(-1, 1, 8) + 1) * 127.5).round() / 255
    for fault in ("os._exit(1)", "time.sleep(600)"):
        lines = []
        seconds = 2.0 if "sleep" in fault else 30.0
        with policed(command(fault, timeout_seconds=seconds), lines, timeout_seconds=seconds) as reward:
            torch.testing.assert_close(reward(WHITE, PROMPTS, IDS), right)
        assert len(lines) == 1 and lines[0].endswith("trying again, 1 of 2")
    lines = []
    with policed(command("os._exit(1)", keeps=True), lines, on_failure="drop") as reward:
        rewards = reward(WHITE, PROMPTS, IDS)
    assert torch.isnan(rewards).tolist() == [i == 5 for i in range(8)]
    assert lines[0].endswith("ended with exit code 1 (at samples 40 to 47); dropped sample 45")


def test_a_stop_ends_the_process(command):
    inner = command("time.sleep(600)", timeout_seconds=500.0)
    inner.prepare()
    pid = inner.pid

    def check():
        raise StoppedError("stop")

    with policed(inner, timeout_seconds=500.0) as reward, pytest.raises(StoppedError):
        reward(WHITE, PROMPTS, IDS, check)
    assert not Path(f"/proc/{pid}").exists()


def test_policies_that_are_wrong():
    assert SamePolicy is Policy
    for options, key in [
        ({"on_failure": "ignore"}, "on_failure = 'ignore'"),
        ({"retries": -1}, "retries = -1"),
        ({"timeout_seconds": 0.0}, "timeout_seconds = 0.0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds = inf"),
        ({"max_dropped_share": 1.5}, "max_dropped_share = 1.5"),
    ]:
        with pytest.raises(InputError, match=f"policy.{key}: input should be "):
            Policy(**options)


@pytest.mark.parametrize("on_failure", ["retry", "drop", "stop"])
def test_a_reward_that_runs_out_of_memory_is_asked_for_fewer(on_failure):
    """Under every policy, without a failure, and the size is remembered."""
    batch_sizes, lines = [], []

    def reward(x):
        batch_sizes.append(len(x))
        if len(x) > 3:
            torch.empty(len(x) << 58, dtype=torch.uint8)
        return x.flatten(1).sum(1)

    policed = PolicedReward(reward, Policy(on_failure), log=lines.append)
    samples = torch.arange(20.0).view(10, 2)
    with policed:
        for _ in range(2):
            assert torch.equal(policed(samples, [""] * 10), samples.sum(1))
    assert batch_sizes == [10, 5, 2, 2, 2, 2, 2] + [2] * 5 and policed.batch_size == 2 and lines == []


def test_a_reward_without_memory_for_one_sample_fails():
    def reward(x):
        raise MemoryError

    with (
        PolicedReward(reward, Policy("stop"), name="big") as policed,
        pytest.raises(RewardError, match=r"reward 'big' raised MemoryError: *\(at sample 0\); mend the reward"),
    ):
        policed(torch.zeros(4, 2), [""] * 4)
