"""`pgraft-fast bench fleet`: what rounds on 8, 64 and 1,024 GPUs send over the network, and what that costs.

Computed, not measured: there are no such machines here. Every number that goes in stands below with its source; the
tables of docs/scale.md are made from them. `bench scaling` measures how a round grows on the machine at hand.
"""

import math
from dataclasses import dataclass

from pgraft_fast_benchmarks.fleet_faults import goodput, slowest

FLEETS = (8, 64, 1024)

# Of an NVIDIA H100 SXM, dense bf16. NVIDIA's data sheet.
PEAK = 989.4e12
# Share of the peak that networks of this size reach in bf16 with checkpointing; assumed, of published trainings the
# better half has 35 to 45 %.
UTILISATION = 0.40
# Bytes a second that a GPU sends: NVLink 4, 900 GB/s in both directions together; 400 Gb/s of InfiniBand a GPU, as a
# DGX H100 has. NVIDIA's data sheets. Collectives reach about four fifths of either; assumed.
NVLINK, NETWORK, REACHED = 450e9, 50e9, 0.8
GPUS_OF_A_NODE = 8
# Seconds of one hop of a collective between nodes; assumed, NCCL's small messages take 10 to 30 us.
HOP = 20e-6
# Bytes a second of one process that writes, flushed; assumed, of a good NVMe drive or a parallel file system.
DISK = 2e9
# Interruptions that nobody planned: 419 in 54 days on 16,384 H100s. Llama 3, arXiv 2407.21783, section 3.3.4.
FAILURES_A_GPU_HOUR = 419 / (54 * 24 * 16_384)
# From the failure to the first call of the next process: noticing, scheduling, loading; assumed.
RESTART = 600.0
# Standard deviation of a GPU's time for the same calls; assumed.
SPREAD = 0.02

# A round of one GPU: prompts, candidates of each of which one is kept, passes over the kept rows, rows at once.
PROMPTS, CANDIDATES, EPOCHS, ROWS = 16, 8, 4, 4
# A round of a fixed size, whatever the fleet.
FIXED_PROMPTS, FIXED_BATCH = 1024, 64
# Sample id and reward: int64 and float64.
ID_AND_REWARD = 16
FLOAT32, BF16 = 4, 2


@dataclass(frozen=True)
class Work:
    """parameters: of the denoiser. flops: of a forward call of one row. state: numbers of a sample's state. trained:
    parameters that are trained. steps, sides: of a trajectory, calls of a step. Counted on the `meta` device with
    torch.utils.flop_counter, of the classes of diffusers at the published configs (a call of SD 2 has 77 tokens, of
    FLUX 512, of SD 3.5 333); LoRAs are of rank 16, SDXL's of 32, on the projections of attention.
    """

    name: str
    parameters: float
    flops: float
    state: int
    trained: float
    steps: int
    sides: int
    sharded: bool = False

    @property
    def full(self) -> bool:
        return self.trained == self.parameters

    @property
    def sampling_flops(self) -> float:
        """Of a GPU in a round."""
        return PROMPTS * CANDIDATES * self.steps * self.sides * self.flops

    @property
    def training_flops(self) -> float:
        """Of a GPU in a round: forward, again for checkpointing, and backward, once for the activations and, where all
        weights are trained, once for these.
        """
        return EPOCHS * PROMPTS * (4.0 if self.full else 3.0) * self.flops

    @property
    def training_steps(self) -> int:
        """Of a round; the batch is `ROWS` a GPU."""
        return EPOCHS * PROMPTS // ROWS

    @property
    def checkpoint_bytes(self) -> float:
        """Weights, their average and two moments in float32."""
        return 4.0 * FLOAT32 * self.trained


WORKS = (
    Work("SD 2.1, 512, LoRA", 865_910_724, 0.804257e12, 4 * 64 * 64, 3_319_808, 50, 2),
    Work("SDXL, 1024, LoRA", 2_567_463_684, 6.761236e12, 4 * 128 * 128, 46_448_640, 30, 2),
    Work("FLUX.1-dev, 1024, LoRA, FSDP2", 11_901_408_320, 74.384653e12, 16 * 128 * 128, 18_677_760, 28, 1, True),
    Work("SD 3.5 large, 1024, all weights, FSDP2", 8_056_627_520, 31.121115e12, 16 * 128 * 128, 8_056_627_520, 28, 2,
         True),
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """A round on R GPUs, each with the work of one: bytes that a GPU sends, and seconds.

    deterministic: gradients of all micro-batches are gathered instead of summed on the way. hybrid: weights are
    sharded among the GPUs of a node alone.
    """

    work: Work
    gpus: int
    deterministic: bool = False
    hybrid: bool = False

    @property
    def rewards(self) -> float:
        """Bytes of the gather of ids and rewards."""
        return _gathered(ID_AND_REWARD * PROMPTS * CANDIDATES * self.gpus, self.gpus)

    @property
    def rows(self) -> float:
        """Bytes of the gather of kept rows: states at the cut in float32, and the numbers of their prompts."""
        return _gathered((FLOAT32 * self.work.state + 8) * PROMPTS * self.gpus, self.gpus)

    @property
    def gradients(self) -> float:
        """Bytes of one optimiser step, without the gathers of sharded weights."""
        size = FLOAT32 * self.work.trained
        if self.deterministic:
            return _gathered(size * self.gpus, self.gpus)
        if self.work.full and self.hybrid:
            # Scattered in the node, and each shard summed over the nodes.
            return _gathered(size, self.shards) + 2.0 * _gathered(size / self.shards, self.gpus // self.shards)
        return (1.0 if self.work.full else 2.0) * _gathered(size, self.gpus)

    @property
    def weights(self) -> float:
        """Bytes of one gather of all sharded weights in bf16; 0 where each GPU has them."""
        return _gathered(BF16 * self.work.parameters, self.shards) if self.work.sharded else 0.0

    @property
    def shards(self) -> int:
        return GPUS_OF_A_NODE if self.hybrid else self.gpus

    @property
    def sampling(self) -> float:
        """Seconds. Weights are gathered while the call before runs: the longer of the two counts."""
        calls = self.work.sampling_flops / (ROWS * self.work.flops)
        return calls * max(computing(ROWS * self.work.flops), self._gathering)

    @property
    def training(self) -> float:
        """Seconds, with the gradients' way over the network, which nothing hides."""
        # Two gathers a step, for the forward and the backward call.
        step = max(computing(self.work.training_flops) / self.work.training_steps, 2.0 * self._gathering)
        return self.work.training_steps * (step + self._summing)

    @property
    def saving(self) -> float:
        """Seconds of one process that writes while the others wait."""
        return self.work.checkpoint_bytes / DISK

    @property
    def computing(self) -> float:
        """Seconds of a GPU alone, if everything fitted."""
        return computing(self.work.sampling_flops + self.work.training_flops)

    @property
    def seconds(self) -> float:
        """Of the whole round when all GPUs are equally fast and none fails."""
        return self.sampling + self.training + _sending(self.rewards + self.rows, self.gpus) + self.saving

    @property
    def efficiency(self) -> float:
        """Work of a GPU alone over the time of the round: stragglers and failures included."""
        return self.computing / (self.seconds * self.straggling) * self.goodput

    @property
    def straggling(self) -> float:
        return slowest(self.gpus, SPREAD)

    @property
    def goodput(self) -> float:
        return goodput(self.seconds, RESTART, self.gpus * FAILURES_A_GPU_HOUR / 3600.0)

    @property
    def _summing(self) -> float:
        """Seconds of a step's gradients."""
        if not (self.work.full and self.hybrid):
            return _sending(self.gradients, self.gpus)
        size = FLOAT32 * self.work.trained
        in_node = _gathered(size, self.shards)
        return _sending(in_node, self.shards) + _sending(self.gradients - in_node, self.gpus)

    @property
    def _gathering(self) -> float:
        return _sending(self.weights, self.shards) if self.work.sharded else 0.0


def _gathered(size: float, gpus: int) -> float:
    """Bytes that each of R sends in a ring so that all have `size` bytes: (R - 1)/R of them."""
    return (gpus - 1) / gpus * size


def _sending(size: float, gpus: int) -> float:
    """Seconds: the bytes of a ring at the slowest link's rate, and the hops of a tree, as NCCL takes the better one."""
    rate = REACHED * (NVLINK if gpus <= GPUS_OF_A_NODE else NETWORK)
    return size / rate + 2.0 * math.ceil(math.log2(gpus)) * HOP


def computing(flops: float) -> float:
    """Seconds on one GPU."""
    return flops / (UTILISATION * PEAK)
