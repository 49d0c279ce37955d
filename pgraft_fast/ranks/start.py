"""A process takes its place among the ranks of a run, and leaves it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pgraft_fast.errors import RankError
from pgraft_fast.ranks.environment import Place, place_of, timeout_seconds
from pgraft_fast.ranks.lifeline import Lifeline, store_of
from pgraft_fast.ranks.ranks import ALONE, Ranks


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """The ranks that a launcher has started; `ALONE` where none has.

    CUDA tensors go by NCCL where each rank of a machine has a GPU of its own, all else by gloo. A process group that
    the script has begun itself is used, and stays. Raises InputError, RankError.
    """
    place = place_of(environment)
    if place is None:
        yield ALONE
        return
    own = not dist.is_initialized()
    seconds = timeout_seconds(environment)
    _take_device(place)
    if own:
        _meet(place, seconds)
    lifeline = None
    try:
        lifeline = Lifeline(
            store_of(place.address, place.port, f"pgraft_fast/{place.attempt}/{_number_of_run()}", seconds),
            place.rank, place.size,
        )  # fmt: skip
        lifeline.begin()
        yield Ranks(place.rank, place.size, lifeline)
    finally:
        if lifeline is not None:
            lifeline.close()
        if own:
            dist.destroy_process_group()


def _take_device(place: Place) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())


def backend_of(place: Place) -> str:
    """NCCL refuses two ranks on one GPU."""
    if torch.cuda.is_available() and place.local_size <= torch.cuda.device_count() and dist.is_nccl_available():
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def _meet(place: Place, seconds: float) -> None:
    address = {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    # The names that torch reads; Slurm has others.
    os.environ.update({key: value for key, value in address.items() if key not in os.environ})
    try:
        dist.init_process_group(
            backend_of(place), rank=place.rank, world_size=place.size, timeout=timedelta(seconds=seconds)
        )
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise RankError(
            f"rank {place.rank} of {place.size} does not reach the others at {place.address}:{place.port} ({text})"
        ) from error


_runs = 0


def _number_of_run() -> int:
    """A script may make several runs, one after the other: the same number on all ranks."""
    global _runs  # noqa: PLW0603
    _runs += 1
    return _runs
