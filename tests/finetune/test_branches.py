"""One fresh continuation of each accepted state, against 64 by hand: digits, where nothing is known in closed form."""

import torch

from pgraft_fast.diagnostics.cut import base_rewards
from pgraft_fast.finetune import FinetuneSettings, Learner, Ledger, SampleSettings, SelectSettings, collect
from pgraft_fast.finetune.branches import Trials
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.work import Work
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.digits import DigitsSettings, digits_task

CUTS, TIMES = (0.25, 0.5), 64


def test_one_continuation_a_state_tells_the_share_that_64_tell():
    task = digits_task(DigitsSettings(reward="symmetry"))
    reward = task.rewards["symmetry"]
    settings = FinetuneSettings(sample=SampleSettings(prompts=12, candidates=8, steps=16), select=SelectSettings(k=3))
    work = Work(
        model=task.model, schedule=task.schedule, reward=reward, settings=settings, shape=task.shape,
        prompts=task.prompts, parameterization=task.parameterization, learner=Learner(task.model, settings.train),
        ledger=Ledger(), execution=Execution("eager", torch.device("cpu")), device=torch.device("cpu"),
        sampling=BatchSize(256), training=BatchSize(64), log=lambda line: None,
    )  # fmt: skip
    collected = collect(
        task.model, task.schedule, reward, task.prompts, settings, shape=task.shape, cuts=(0.0, *CUTS),
        parameterization=task.parameterization,
    )  # fmt: skip
    gains = Trials(work, collected, Ledger(), lambda: None).kept_gains(CUTS, 10**6)
    rows = collected.acceptance.index
    r, base = collected.rewards.flatten()[rows].double(), base_rewards(collected.rewards, "top_k").flatten()[rows]
    whole = float((r - base).sum())
    for number, cut in enumerate(CUTS):
        again = rollout(
            task.model, task.schedule, shape=task.shape, steps=16, parameterization=task.parameterization, seed=99,
            sample_ids=torch.arange(rows.numel() * TIMES) + (number + 7 << 50), start=cut,
            x_start=collected.rollout.x_cut[cut][rows].repeat_interleave(TIMES, dim=0),
            condition=collected.condition[rows].repeat_interleave(TIMES), solver=settings.sample.solver,
        )  # fmt: skip
        fresh = torch.as_tensor(reward(again.x_0)).double().view(-1, TIMES)
        share = float((fresh.mean(dim=1) - base).sum()) / whole
        # Of the same states both differ by the noise of the continuations alone.
        error = float(fresh.var(dim=1).sum() * (1 + 1 / TIMES)) ** 0.5 / whole
        assert gains[cut].rows == rows.numel() == 36
        assert abs(gains[cut].share - share) < 3.5 * error < 0.5
        assert share < 0.97
