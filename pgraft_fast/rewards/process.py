"""A reward in a process of its own, and so in an environment of its own.

The command is started once and asked over stdin. It says that it is ready with one line,

    {"ready": true}

(lines before it are ignored), and is then sent, for every batch, one line of JSON followed by raw bytes:

    {"id": 7, "count": 2, "shape": [2, 512, 512, 3], "dtype": "uint8", "prompts": [...], "sample_ids": [40, 41]}

count: B. shape: (B, H, W, C) of the pictures, 8 bits a channel, row by row. Samples that are not (B, C, H, W) come in
their own shape as little-endian float32. It answers on stdout with one line, samples in any order,

    {"id": 7, "sample_ids": [41, 40], "rewards": [0.1, 0.7]}

null standing for no reward, or {"id": 7, "error": "what is wrong"}; an error that is null or empty is none. Everything
else it has to say belongs on stderr. At the end of stdin it should end. `serve` does all this for a Python function.
"""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards.answers import MAX_ANSWER_BYTES, parse, question, rewards_in_order
from pgraft_fast.rewards.child import Child, EndedError
from pgraft_fast.rewards.pixels import to_bytes
from pgraft_fast.rewards.protocol import RewardTimeoutError, of_samples, one_line
from pgraft_fast.rewards.urls import without_secrets


class CommandReward:
    """command: a command line, or its words; see the module for what it must say and is told.

    timeout_seconds: for the answer to one batch; a process that is late, or answers nonsense, is ended with all that it
    started, and a new one started for the next batch. start_seconds: from the start until it is ready. log: file that
    its stderr is added to. folder: where it runs. Raises InputError.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        name: str = "command",
        timeout_seconds: float = 300.0,
        start_seconds: float = 600.0,
        log: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        try:
            self.command = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise InputError(f"command = {without_secrets(str(command))!r}: {error}") from error
        if not self.command:
            raise InputError(f"command = {command!r}: names no program")
        self.name, self.timeout_seconds, self.start_seconds = name, timeout_seconds, start_seconds
        self.log, self.folder = log, folder
        self._child: Child | None = None
        self._number = 0

    @property
    def longest_call_seconds(self) -> float:
        """A call may have to start the process anew."""
        return self.start_seconds + self.timeout_seconds

    @property
    def pid(self) -> int | None:
        """Of the process, None where there is none."""
        return None if self._child is None else self._child.pid

    def prepare(self) -> None:
        """Start the process and wait until it is ready. Raises RewardError."""
        if self._child is not None:
            return
        program = self.command[0]
        try:
            self._child = Child(self.command, self.folder, self.log)
        except OSError as error:
            raise RewardError(f"reward {self.name!r}: {program!r} cannot be started ({error.strerror})") from error
        deadline = time.monotonic() + self.start_seconds
        while not _is_ready(self._exchange((), deadline - time.monotonic(), "before it was ready")):
            pass

    def __call__(self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int] | None = None) -> Tensor:
        """samples: (B, ...), pictures (B, C, H, W) in [-1, 1]. Returns (B,) float32 on their device.

        Raises RewardError in one line that names the samples, and quotes the last line of stderr where it crashed.
        """
        self.prepare()
        self._number += 1
        ids = list(range(samples.shape[0])) if sample_ids is None else list(sample_ids)
        array = to_bytes(samples) if samples.ndim == 4 else samples.float().cpu().contiguous().numpy().astype("<f4")
        header = question(self._number, array.shape, "uint8" if samples.ndim == 4 else "<f4", prompts, ids)
        where = f"at {of_samples(ids)}"
        parts = (json.dumps(header).encode() + b"\n", memoryview(array.reshape(-1).data))
        line = self._exchange(parts, self.timeout_seconds, where)
        try:
            answer = parse(line, self.name)
        except RewardError as error:
            raise RewardError(f"{error} ({where}); what it prints must go to stderr") from self._ended(error)
        if answer.get("id") != self._number:
            self._end()
        rewards = rewards_in_order(answer, ids, self._number, self.name)
        return torch.tensor(rewards, dtype=torch.float32, device=samples.device)

    def interrupt(self) -> None:
        """End the process at once, from any thread: a call that waits for it fails."""
        child = self._child
        if child is not None:
            child.interrupt()

    def close(self) -> None:
        """End the process; the next call starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _exchange(self, parts: Sequence[bytes | memoryview], seconds: float, where: str) -> bytes:
        child = self._child
        assert child is not None
        try:
            return child.exchange(parts, seconds, MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise RewardTimeoutError(
                f"reward {self.name!r} did not answer within {self._limit(parts):g} s ({where}); its process was ended"
            ) from self._ended(error)
        except EndedError as error:
            how, words = child.how_it_ended(), child.last_words()
            said = f", its last line was {one_line(words, 200)!r}" if words else ""
            raise RewardError(f"reward {self.name!r}: its process {how} ({where}){said}") from self._ended(error)
        except ValueError as error:
            raise RewardError(f"reward {self.name!r} answered {error} ({where})") from self._ended(error)
        except BaseException:
            self._end()
            raise

    def _limit(self, parts: Sequence[object]) -> float:
        return self.timeout_seconds if parts else self.start_seconds

    def _end(self) -> None:
        self.interrupt()
        self.close()

    def _ended(self, error: BaseException) -> BaseException:
        self._end()
        return error


def _is_ready(line: bytes) -> bool:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("ready") is True
