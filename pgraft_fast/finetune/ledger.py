"""What a run spent, where: an append-only JSONL file whose parts sum to the total.

The process is always in exactly one phase, so the parts sum to the wall time by construction. Work after the last
finished round of a process that died is counted as "lost" by the next one.
"""

import errno
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgraft_fast.errors import told_as_damage
from pgraft_fast.files import json_of, storage_error

PHASES = ("start", "sample", "score", "accept", "plan", "train", "evaluate", "save", "lost")
_HEARTBEAT_SECONDS = 1.0


class Ledger:
    """Seconds by phase and model calls, of this process and the ones before it on the same file.

    seconds: {phase: wall seconds}; finished phases only, see `elapsed` for the running total.
    model_calls: forward passes of one sample; a backward pass counts as two. cpu_seconds: of all threads.
    joules: of the GPUs, None where `meter` was never given. clock: what is read for the seconds. ranks: processes of
    the run, each with a device; it may go on with another number of them.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.perf_counter, ranks: int = 1
    ) -> None:
        self._clock, self.ranks = clock, ranks
        self._device_seconds, self._own_joules, self._taken_joules = 0.0, 0.0, 0.0
        self._ranks_before = 1
        self._meter: Callable[[], float] | None = None
        self._joules_read = 0.0
        self.joules: float | None = None
        self.cpu_seconds, self._cpu_read = 0.0, time.process_time()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.model_calls = 0
        self._path = path
        self._file: io.FileIO | None = None
        self._phase = "start"
        self._calls_written = 0
        if path is not None:
            self._replay(path)
            self._file = self._open(path)
        if ranks != self._ranks_before:
            self._append({"ranks": ranks})
        self._earlier = sum(self.seconds.values())
        self._started = self._since = clock()

    @property
    def elapsed(self) -> float:
        """Wall seconds of the run so far, earlier processes and lost work included."""
        return self._earlier + self._clock() - self._started

    @property
    def device_seconds(self) -> float:
        """`elapsed` on every device."""
        return self._device_seconds + self.ranks * (self.elapsed - self._earlier)

    def measure(self, meter: Callable[[], float] | None) -> None:
        """Count joules from now on. meter() -> joules since some moment; None counts none."""
        if meter is not None:
            self._meter, self._joules_read = meter, meter()
            self.joules = self.joules or 0.0

    def joules_now(self) -> float:
        """Joules of the run so far; those of other ranks since the last `add_joules` are taken to be ours."""
        if self._meter is None:
            return self.joules or 0.0
        read = self._meter() - self._joules_read
        others = (self.ranks - 1) * (self._own_joules + read - self._taken_joules)
        return (self.joules or 0.0) + read + others

    def take_joules(self) -> float:
        """Of this rank, since the last time."""
        self._close_phase()
        taken = self._own_joules - self._taken_joules
        self._taken_joules = self._own_joules
        return taken

    def add_joules(self, of_ranks: Sequence[float]) -> None:
        """What each rank took, the first of which is counted here already."""
        others = sum(of_ranks[1:])
        if others:
            self.joules = (self.joules or 0.0) + others
            self._append({"other_joules": round(others, 6)})

    def enter(self, phase: str) -> None:
        """Leave the current phase and enter another."""
        if phase not in self.seconds:
            raise ValueError(f"phase {phase!r} is unknown; known: {', '.join(PHASES)}")
        self._close_phase()
        self._phase = phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Enter a phase and return to the one before."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def add_calls(self, calls: int) -> None:
        """Count model calls; long phases are noted on disk about every second."""
        self.model_calls += calls
        if self._clock() - self._since > _HEARTBEAT_SECONDS:
            self._close_phase()

    def commit(self, round_: int) -> None:
        """A round is safe on disk: what was spent until here is not lost any more."""
        self._close_phase()
        self._append({"round": round_})
        self._flush()

    def close(self, finished: bool) -> None:
        """Close the file. Without `finished`, what no round followed counts as lost when the run goes on."""
        try:
            self._close_phase()
            if finished:
                self._append({"end": True})
            self._flush()
        finally:
            if self._file is not None:
                self._file.close()
            self._file = None

    def summary(self) -> dict[str, object]:
        """{"seconds": {phase: s}, "total_seconds", "device_hours", "model_calls", "cpu_seconds", "joules"}."""
        self._close_phase()
        total = sum(self.seconds.values())
        return {
            "seconds": {phase: round(s, 6) for phase, s in self.seconds.items()},
            "total_seconds": round(total, 6),
            "device_hours": round((self._device_seconds + self.ranks * (total - self._earlier)) / 3600.0, 9),
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
            "model_calls": self.model_calls,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "joules": None if self.joules is None else round(self.joules, 3),
        }

    def _close_phase(self) -> None:
        now = self._clock()
        spent, calls = now - self._since, self.model_calls - self._calls_written
        self.seconds[self._phase] += spent
        self._since, self._calls_written = now, self.model_calls
        record = {"phase": self._phase, "seconds": round(spent, 6), "calls": calls, **self._used()}
        self._append(record)

    def _used(self) -> dict[str, float]:
        """CPU seconds and joules since the last time."""
        cpu = time.process_time()
        used = {"cpu": round(cpu - self._cpu_read, 6)}
        self.cpu_seconds, self._cpu_read = self.cpu_seconds + used["cpu"], cpu
        if self._meter is not None:
            read = self._meter()
            used["joules"] = round(read - self._joules_read, 6)
            self.joules, self._joules_read = (self.joules or 0.0) + used["joules"], read
            self._own_joules += used["joules"]
        return used

    def _append(self, record: dict[str, object]) -> None:
        if self._file is not None:
            line = f"{json.dumps(record)}\n".encode()
            with self._storage_errors(len(line)):
                # Unbuffered, so that nothing is left for later where the disk is full.
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _flush(self) -> None:
        if self._file is not None:
            with self._storage_errors(0):
                os.fsync(self._file.fileno())

    @contextmanager
    def _storage_errors(self, need: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(self._path or Path(), error, need) from error

    def _open(self, path: Path) -> io.FileIO:
        """For appending, after the last whole line."""
        with self._storage_errors(1):
            # A link could lead anywhere.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            file = io.FileIO(os.open(path, flags, 0o666), "r+b")
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                # Torn by a kill or a full disk: what follows would be read with it.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            return file

    def _replay(self, path: Path) -> None:
        """Add up what earlier processes wrote; work that no round followed becomes "lost"."""
        if not path.exists():
            return
        pending: dict[str, float] = {}
        for line in path.read_bytes().splitlines():
            try:
                record = json_of(line)
            except ValueError:
                continue  # The last line of a killed process may be torn.
            with told_as_damage(path):
                self._add(dict(record), pending)
        self._settle(pending, lost=True)
        self._calls_written = self.model_calls

    def _add(self, record: dict[str, Any], pending: dict[str, float]) -> None:
        if "ranks" in record:
            self._ranks_before = int(record["ranks"])
            return
        if "other_joules" in record:
            self.joules = (self.joules or 0.0) + float(record["other_joules"])
            return
        if "phase" not in record:
            self._settle(pending, lost=False)
            return
        phase, seconds = record["phase"], float(record["seconds"])
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r}")
        pending[phase] = pending.get(phase, 0.0) + seconds
        self._device_seconds += self._ranks_before * seconds
        self.model_calls += int(record["calls"])
        self.cpu_seconds += float(record.get("cpu", 0.0))
        if "joules" in record:
            self.joules = (self.joules or 0.0) + float(record["joules"])

    def _settle(self, pending: dict[str, float], lost: bool) -> None:
        for phase, seconds in pending.items():
            self.seconds["lost" if lost else phase] += seconds
        pending.clear()
