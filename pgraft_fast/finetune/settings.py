"""Settings of a run, each checked when it is made: closed schemas, no unknown key."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.ddpo_settings import DdpoSettings
from pgraft_fast.finetune.identity import lasting
from pgraft_fast.finetune.nft_settings import NftSettings
from pgraft_fast.schema import (
    Batch,
    Count,
    Cut,
    Decay,
    Part,
    Positive,
    Power,
    Rate,
    Real,
    Seed,
    Settings,
    Steps,
    Times,
)  # fmt: skip
from pgraft_fast.selection.rules import check_options

# Of a round, all of which are in memory at once; of a run, whose samples are numbered below those of evaluations.
_MOST_IN_A_ROUND, _MOST_IN_A_RUN = 2**24, 2**40
Mode = Literal["auto", "eager", "compile", "compile_sampling", "compile_graph", "graph", "graph_sampling"]
Advantage = Literal["acceptance", "reward"]
# One forward pass, and a backward pass that counts as two.
CALLS_OF_A_TRAINED_SAMPLE = 3
# Of a batch in training, where it is left open.
_PARTS = 12
# Of a round's model calls, that choosing the cut may cost at most.
PLAN_SHARE = 0.15


class SampleSettings(Settings):
    """How the candidates of a round are drawn.

    prompts: groups a round. candidates: samples a group. steps, solver, eta: see `rollout`. batch_size:
    trajectories at once; halved when memory is full. overlap: score a batch while the next is drawn.
    """

    prompts: Count = 10
    candidates: Count = 16
    steps: Steps = 25
    solver: Literal["ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m"] = "ddpm"
    eta: Decay | None = None
    batch_size: Batch = 256
    overlap: bool = False


class SelectSettings(Settings):
    """Which candidates are kept: see `accept`.

    copies: of rule "binary", one sample of those that are the same is kept: of each "group", each "round" (default) or
    of the whole "run". Samples that are equal bit for bit hardly ever come; a task says what the same is.
    """

    rule: Literal["top_k", "best_of_n", "classical", "threshold", "preference", "binary"] = "top_k"
    k: Count | None = None
    temperature: Positive | None = None
    r_max: Real | None = None
    threshold: Real | None = None
    empty: Literal["skip", "best", "raise"] = "skip"
    copies: Literal["group", "round", "run"] | None = None

    @property
    def limit(self) -> float:
        """The threshold of the rules that have one; of "binary" it may be left out, see `accept`."""
        return 0.5 if self.threshold is None else self.threshold


class TrainSettings(Settings):
    """How the kept rows are trained on.

    cut: share of the steps left to the reference model, 0 is GRAFT; or "auto", see `finetune.cut_plan`. objective: see
    `pgraft_loss`. Of "contrast", which trains on groups with accepted and rejected candidates: strength, 1 aims at the
    accepted law and more goes beyond; advantage, whether the rows of such a group count by "acceptance" or by "reward";
    frozen, whether a round starts from the "reference" or from the averaged weights, "ema". low_noise: times are drawn
    above the cut with a density proportional to (t_begin - t)^(low_noise - 1): 1 is all alike, more is low ones more
    often, for a reward that is decided late. steps: optimiser steps a round of batch_size rows; or epochs: passes over
    the kept rows, instead of steps. micro_batch: rows at once, whose gradients are added up; halved when memory is
    full. ema: decay of the averaged weights, which are the result; 0 is off. clip: limit of the gradient's norm.
    null_prompt: share of rows that are trained without their prompt, for guidance; DDPO trains what it sampled, on both
    sides of the guidance.
    """

    cut: Cut = 0.25
    objective: Literal["state", "clean", "contrast"] = "state"
    strength: Positive = 1.0
    advantage: Advantage = "acceptance"
    frozen: Literal["reference", "ema"] = "reference"
    low_noise: Power = 1.0
    rounds: Times = 1
    steps: Times = 200
    epochs: Times | None = None
    batch_size: Batch = 64
    micro_batch: Batch | None = None
    learning_rate: Rate = 3e-4
    weight_decay: Decay = 0.0
    ema: Part = 0.98
    clip: Positive = 1.0
    null_prompt: Part = 0.0

    @property
    def calls_of_a_row(self) -> int:
        """Model calls of a row that is trained on: `contrast` asks the frozen model, too."""
        return CALLS_OF_A_TRAINED_SAMPLE + (self.objective == "contrast")

    def steps_of(self, rows: int) -> int:
        """Optimiser steps of a round that kept so many rows."""
        return self.steps if self.epochs is None else max(1, -(-self.epochs * rows // self.batch_size))


class BudgetSettings(Settings):
    """Limits of a run; none set means that the rounds alone end it.

    wall_seconds and gpu_hours count from start to exit on every device, idle and lost work included.
    joules: of the GPU, through NVML. model_calls: forward passes of one sample, a backward pass counts as two.
    Evaluation is measured, and limited by the others, but not counted in model_calls.
    """

    wall_seconds: Positive | None = None
    gpu_hours: Positive | None = None
    model_calls: int | None = Field(default=None, ge=1, le=2**63 - 1)
    joules: Positive | None = None

    def seconds(self, ranks: int = 1) -> float | None:
        """The tighter of the two time limits, in seconds of one device; a wall second is one on each rank."""
        limits = [
            None if self.wall_seconds is None else ranks * self.wall_seconds,
            None if self.gpu_hours is None else 3600.0 * self.gpu_hours,
        ]
        return min((limit for limit in limits if limit is not None), default=None)


class FinetuneSettings(Settings):
    """Everything that a `Trainer` needs to know beside the model and the reward.

    method: "pgraft"; "graft", which is the cut at 0 whatever train.cut says; "ddpo", see `finetune.ddpo`; "nft", see
    `finetune.nft`.
    mode: "eager"; "compile", the models through torch.compile, which takes a minute and more at the start;
    "compile_sampling", those that draw samples alone; "graph", the trajectories and the optimiser steps as CUDA graphs;
    "graph_sampling", the trajectories alone; "compile_graph", compiled models draw samples, the optimiser steps are
    CUDA graphs; "auto", on CUDA what a trial finds the fastest over the run that is planned, see `runs.mode`, elsewhere
    "eager".
    deterministic: the weights are the same bits in every run and on any number of ranks: samples are drawn and rows
    trained on in batches that do not depend on the ranks, gradients are added up in the order of the rows, and on CUDA
    made by kernels that have an order, too; slower.
    """

    seed: Seed = 0
    method: Literal["pgraft", "graft", "ddpo", "nft"] = "pgraft"
    mode: Mode = "auto"
    deterministic: bool = False
    sample: SampleSettings = SampleSettings()
    select: SelectSettings = SelectSettings(k=4)
    train: TrainSettings = TrainSettings()
    ddpo: DdpoSettings = DdpoSettings()
    nft: NftSettings = NftSettings()
    budget: BudgetSettings = BudgetSettings()

    @model_validator(mode="after")
    def _rule_fits(self) -> Self:
        select, n = self.select, self.sample.candidates
        if select.rule == "top_k" and select.k is None:
            raise ValueError("select.k is missing: rule top_k needs it")
        # Here, not after a round of samples.
        try:
            check_options(select.rule, **select.model_dump(exclude={"rule", "empty", "copies"}))
            if select.copies is not None and select.rule != "binary":
                raise InputError(f"copies= has no meaning for rule {select.rule!r}")
        except InputError as error:
            raise ValueError(f"select: {error}") from error
        if select.k is not None and select.k > n:
            raise ValueError(f"select.k={select.k} is more than sample.candidates={n}")
        return self

    @model_validator(mode="after")
    def _samples_can_be_held(self) -> Self:
        # Where prompts fill the budget, what is found is asked again.
        prompts, n, rounds = self.sample.prompts or 1, self.sample.candidates, self.train.rounds
        if prompts * n > _MOST_IN_A_ROUND:
            raise ValueError(
                f"sample.prompts={prompts} times sample.candidates={n}: at most {_MOST_IN_A_ROUND:,} samples a round"
            )
        if prompts * n * rounds > _MOST_IN_A_RUN:
            raise ValueError(
                f"train.rounds={rounds} of {prompts * n:,} samples each: at most {_MOST_IN_A_RUN:,} samples a run"
            )
        return self

    @property
    def plans_cut(self) -> bool:
        """Whether the first round chooses the cut."""
        return self.method == "pgraft" and self.train.cut == "auto"

    @property
    def cut(self) -> float:
        """Share of the steps left to the reference: train.cut for P-GRAFT, else 0. Raises InputError where it has not
        been chosen yet.
        """
        if self.method != "pgraft":
            return 0.0
        if self.train.cut == "auto":
            raise InputError("train.cut='auto' is chosen in the first round, and is not known before")
        return self.train.cut

    def in_fixed_batches(self) -> Self:
        """Of a deterministic run: a group at once, or even parts of it, and parts of a training batch that 2, 3 and 4
        ranks share evenly.
        """
        if not self.deterministic:
            return self
        n, sample, train = self.sample.candidates, self.sample, self.train
        group = next(size for size in range(min(n, sample.batch_size), 0, -1) if n % size == 0)
        rows = -(-train.batch_size // _PARTS) if train.micro_batch is None else train.micro_batch
        return self.model_copy(
            update={
                "sample": sample.model_copy(update={"batch_size": group}),
                "train": train.model_copy(update={"micro_batch": rows}),
            }
        )

    def with_cut(self, cut: float) -> Self:
        """The same with a cut that was chosen."""
        return self.model_copy(update={"train": self.train.model_copy(update={"cut": cut})})

    def most_kept(self) -> int:
        """Rows of a round that are trained on, at most."""
        select, sample = self.select, self.sample
        n, objective = sample.candidates, self.train.objective
        known = {"best_of_n": 1, "preference": n // 2, "top_k": select.k or 1}
        most = known.get(select.rule, n)
        if objective == "contrast":
            # As many rejected as accepted ones.
            balanced = 2 * min(most, n - most) if select.rule in known else n // 2 * 2
            most = balanced if self.train.advantage == "acceptance" else n
        return sample.prompts * most

    def calls(self, evaluations: int, calls_a_sample: int) -> int:
        """Model calls of a round, at most. evaluations: of the network, a trajectory."""
        samples = self.sample.prompts * self.sample.candidates
        return samples * evaluations * calls_a_sample + self.training_calls(calls_a_sample)

    def run_calls(self, evaluations: int, calls_a_sample: int) -> int:
        """Model calls of all rounds and of the choice of the cut, at most."""
        round_calls = self.calls(evaluations, calls_a_sample)
        return self.train.rounds * round_calls + (int(PLAN_SHARE * round_calls) if self.plans_cut else 0)

    def training_calls(self, calls_a_sample: int) -> int:
        """Model calls of a round's training, a backward pass counted as two, at most. calls_a_sample: 2 with guidance,
        which P-GRAFT and NFT train without.
        """
        if self.method == "ddpo":
            return CALLS_OF_A_TRAINED_SAMPLE * calls_a_sample * self.policy_rows()
        if self.method == "nft":
            return self.nft.calls_of_a_row * self.policy_rows()
        return self.train.calls_of_a_row * self.train.steps_of(self.most_kept()) * self.train.batch_size

    def policy_rows(self) -> int:
        """Pairs of sample and step that a round of DDPO or NFT trains, at most."""
        sample = self.sample
        if self.method == "nft":
            return self.nft.most_rows(sample.prompts * sample.candidates, sample.steps)
        return self.ddpo.most_rows(sample.prompts * sample.candidates, max(1, sample.steps - 1))

    def future(self) -> dict[str, object]:
        """The settings that decide what the run computes; a resumed run must have the same, see `identity`."""
        return lasting(self.model_dump())

    def defaults(self) -> dict[str, object]:
        """Those of them that were not set."""
        return lasting(type(self).model_construct().model_dump())
