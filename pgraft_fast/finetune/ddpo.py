"""DDPO: policy gradients on recorded trajectories, the baseline of P-GRAFT (Black et al. 2023, arXiv 2305.13301).

A trajectory is a chain of decisions x_t -> x_s with normal densities, and its reward comes at the end, so that
grad E[r] = E[r sum_steps grad log p(x_s | x_t)]. Steps without noise have no density and are left out: what the weights
change in the last step is not seen.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.ddpo_settings import DdpoSettings
from pgraft_fast.finetune.gradients import Gradients
from pgraft_fast.finetune.kernel_choice import training_kernels
from pgraft_fast.finetune.learner import Learner, OptimizerSteps
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.sample_steps import sample_step_batches
from pgraft_fast.finetune.settings import CALLS_OF_A_TRAINED_SAMPLE
from pgraft_fast.finetune.training import TrainReport
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling.answers import answer_of
from pgraft_fast.sampling.recorded import Recorded, combined, density_table, step_log_prob
from pgraft_fast.sampling.rollout import rows_of
from pgraft_fast.threads import team_of

_SMALLEST_SPREAD = 1e-6


class PromptStatistics:
    """The last `size` finite rewards of each prompt."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rewards: dict[int, deque[float]] = {}

    def add(self, prompt: int, rewards: Tensor) -> None:
        """rewards: (N,). Those that are not finite are left out."""
        self._rewards.setdefault(prompt, deque(maxlen=self._size)).extend(rewards[rewards.isfinite()].tolist())

    def of(self, prompt: int) -> Tensor:
        """(count,) float64, oldest first."""
        return torch.tensor(list(self._rewards.get(prompt, ())), dtype=torch.float64)

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint, JSON-ready."""
        return {str(prompt): list(rewards) for prompt, rewards in self._rewards.items()}

    def load(self, state: dict[str, list[float]]) -> None:
        """Inverse of `state`."""
        self._rewards = {int(prompt): deque(rewards, self._size) for prompt, rewards in state.items()}


def advantages(rewards: Tensor, prompts: Tensor, statistics: PromptStatistics, settings: DdpoSettings) -> Tensor:
    """(reward - mean) / (std + 1e-6), clipped; (P, N) in the dtype and on the device of rewards.

    rewards: (P, N), floating; those that are not finite count nowhere and have advantage 0. prompts: (P,) int64, the
    prompt of each group; it may come twice. statistics: takes up these rewards first, then gives mean and std over
    each prompt's rewards; those of the whole round serve a prompt with less than min_count, and statistics="global".
    Advantages are exactly 0 where all rewards are equal. Black et al. 2023, arXiv 2305.13301, section 4.3.
    """
    if rewards.ndim != 2 or not rewards.is_floating_point() or prompts.shape != rewards.shape[:1]:
        raise InputError(f"rewards {tuple(rewards.shape)}, prompts {tuple(prompts.shape)}: (P, N) and (P,) are needed")
    values = rewards.detach().to("cpu", torch.float64)
    groups = [int(prompt) for prompt in prompts]
    everything = values[values.isfinite()]
    if settings.statistics == "per_prompt":
        for prompt, row in zip(groups, values, strict=True):
            statistics.add(prompt, row)
    out = torch.zeros_like(values)
    for index, prompt in enumerate(groups):
        own = statistics.of(prompt) if settings.statistics == "per_prompt" else everything
        known = own if own.numel() >= settings.min_count else everything
        # Rounding of a mean must not look like an advantage.
        if known.numel() and known.min() < known.max():
            out[index] = (values[index] - known.mean()) / (known.std(correction=0) + _SMALLEST_SPREAD)
    limit = settings.advantage_clip
    return torch.where(values.isfinite(), out.clamp(-limit, limit), 0.0).to(rewards)


def policy_loss(log_prob: Tensor, log_prob_old: Tensor, advantage: Tensor, settings: DdpoSettings) -> Tensor:
    """(m,) losses of recorded steps: with ratio = exp(log_prob - log_prob_old),

        importance:  max(-advantage ratio, -advantage clip(ratio, 1 - clip_range, 1 + clip_range))
        score:       -advantage log_prob

    All (m,), log-densities after normalisation. Differentiable in log_prob. Black et al. 2023, eq. 4 and 5, and
    Schulman et al. 2017, arXiv 1707.06347, eq. 7.
    """
    if settings.variant == "score":
        return -advantage * log_prob
    ratio = (log_prob - log_prob_old).exp()
    clipped = ratio.clamp(1.0 - settings.clip_range, 1.0 + settings.clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def train_ddpo(
    learner: Learner,
    recorded: Recorded,
    advantage: Tensor,
    condition: Tensor | None,
    settings: DdpoSettings,
    *,
    seed: int,
    memory: BatchSize | None = None,
    ledger: Ledger | None = None,
    check: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    ordered: bool = False,
) -> TrainReport:
    """Train on the recorded steps of a round until all are used or enough() is true, for one optimiser step at least.

    recorded: drawn by `learner.sampled` with the weights that learner.model has now. advantage: (n,); samples with 0
    are left out and cost no model call. condition: (n, ...) or None, as in sampling. The loss of an optimiser step is
    the mean of `policy_loss` over its samples and their steps. Samples come in drawn orders, in batches of nearly
    equal size; a sample's steps are drawn by its id. The model is in evaluation mode: dropout would make it another
    policy than the one that sampled. memory: rows at once, default one step of each sample; results do not depend
    on it but for rounding. check() is called before each optimiser step and may raise. ranks, ordered: see `Gradients`;
    all ranks are given all trajectories.

    The report's clipped: share of steps whose ratio was outside of the clip range (importance). kl: mean of
    (log p - log p_old)^2 / 2 in nats a step, summed over the elements whatever `settings.log_prob` says; to second
    order the divergence from the model that sampled. No step and a loss of 0 where all advantages are 0.

    Raises InputError; PgraftError after three steps in a row whose gradient was not finite.
    """
    n = recorded.sample_id.numel()
    if advantage.shape != (n,) or not bool(advantage.isfinite().all()):
        raise InputError(f"advantage has shape {tuple(advantage.shape)}: ({n},) finite numbers are needed")
    condition = rows_of(condition, recorded.sample_id)
    ledger = Ledger() if ledger is None else ledger
    advantage = advantage.to(recorded.log_prob)
    density = density_table(recorded.table, advantage.dtype, advantage.device)
    make = _Losses(learner, recorded, density, advantage, condition, settings)
    learner.model.eval()
    batch_means: list[Tensor] = []
    optimizer, sums = OptimizerSteps(learner), None
    rows = -(-n // max(1, settings.optimizer_steps_of(n))) if memory is None else memory.value
    team = team_of(learner.sampled, rows, recorded.x_0.shape[1:], recorded.x_0.device)
    with ledger.phase("train"), team, training_kernels(recorded.x_0.device, ordered):
        for sample, step in _batches(recorded, advantage, settings, seed):
            if sums is None:
                memory = BatchSize(sample.unique().numel(), "training") if memory is None else memory
                sums = Gradients(learner, memory, check, enough, ranks, ordered)
            if sums.enough:
                break
            losses = partial(make.share, sample, step)
            batch_means.append(optimizer.step(partial(sums.of, sample.numel(), losses, values=3)))
            ledger.add_calls(CALLS_OF_A_TRAINED_SAMPLE * recorded.calls_a_sample * sample.numel())
    if not batch_means:
        return TrainReport(0.0, 0, 0)
    means = torch.stack(batch_means)
    loss, (_, clipped, kl) = float(means[-max(1, len(means) // 10) :, 0].mean()), means.mean(dim=0).tolist()
    return TrainReport(loss, len(means), optimizer.rejected, clipped if settings.variant == "importance" else None, kl)


@dataclass(frozen=True)
class _Losses:
    learner: Learner
    recorded: Recorded
    density: Tensor
    advantage: Tensor
    condition: Tensor | None
    settings: DdpoSettings

    def share(self, sample: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        """(3,) what some rows add to the means over a batch, as `rows` lists them."""
        return self.rows(sample[low:high], step[low:high]).sum(dim=1) / sample.numel()

    def rows(self, sample: Tensor, step: Tensor) -> Tensor:
        """(3, m) of pairs (m,): loss, whether the ratio is outside of the clip range, kl; the loss has a gradient."""
        recorded, settings, dtype = self.recorded, self.settings, self.recorded.x_0.dtype
        x_t, x_s = (recorded.states[index, sample].to(dtype) for index in (step, step + 1))
        times = recorded.times.to(sample.device, dtype)[step]
        condition = None if self.condition is None else self.condition[sample]
        out = combined(*answer_of(self.learner.sampled, x_t, times, condition))
        log_prob, log_prob_old = step_log_prob(out, x_t, x_s, self.density[step]), recorded.log_prob[step, sample]
        scale = 1.0 / x_t[0].numel() if settings.log_prob == "mean" else 1.0
        loss = policy_loss(scale * log_prob, scale * log_prob_old, self.advantage[sample], settings)
        change = (log_prob - log_prob_old).detach()
        clipped = ((scale * change).exp() - 1.0).abs() > settings.clip_range
        return torch.stack((loss, clipped.to(loss.dtype), 0.5 * change.square()))


def _batches(
    recorded: Recorded, advantage: Tensor, settings: DdpoSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(sample, step), (rows,) int64, of each optimiser step; samples without an advantage are left out."""
    chosen = advantage.nonzero().flatten()
    ids = recorded.sample_id[chosen]
    drawn = recorded.drawn.nonzero().flatten().to(ids.device)
    pairs = sample_step_batches(
        ids, drawn, count=settings.steps_of(drawn.numel()), parts=settings.optimizer_steps_of(chosen.numel()),
        epochs=settings.inner_epochs, seed=seed, most_steps=recorded.drawn.numel(),
    )  # fmt: skip
    return ((chosen[row], step) for row, step in pairs)
