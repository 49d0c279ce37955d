"""The denoiser of an explained pipeline, called directly: rows of several prompts and times at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.agreement import allowed_of
from pgraft_fast.pipelines.arguments import Wanted, built
from pgraft_fast.pipelines.calls import seeds_of
from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.explain import Iteration, NotExplainedError, explained
from pgraft_fast.pipelines.grouping import in_order, rows_by
from pgraft_fast.pipelines.loop import Loop, NetCall
from pgraft_fast.pipelines.rules import Explanation, Time, tensors_of
from pgraft_fast.pipelines.table import PromptTable
from pgraft_fast.sampling.rounding import off


class FastLoop:
    """output(x, t, numbers): as the driven loop, for rows of different prompts and times, without the pipeline's loop.

    What a prompt's call gives the networks beside state and time is recorded once, in an iteration that computes
    nothing. nets: that are called, by name. together: whether prompts at different times go through them at once; where
    a check told that rows answer otherwise beside others, they go prompt by prompt and time by time. table: of prompts;
    `prepare` it.
    """

    def __init__(
        self, driver: Driver, nets: Mapping[str, nn.Module], explanation: Explanation, together: bool = False,
        table: PromptTable | None = None,
    ) -> None:  # fmt: skip
        self.driver, self.nets, self.explanation, self.together = driver, nets, explanation, together
        self._blanks: dict[Any, Any] = {}
        count = len(driver.calls.prompts)
        self.table = PromptTable(explanation, self._recorded, count, driver.state.device) if table is None else table

    @classmethod
    def of(cls, driver: Driver, times: Sequence[float]) -> "FastLoop":
        """Watched at these three timesteps, and compared with the driven loop on the first two prompts.

        Raises NotExplainedError, which says what is not understood.
        """
        generator = torch.Generator().manual_seed(0)
        single, several = _iterations(driver, 1, times, generator), _iterations(driver, 2, times[:2], generator)
        explanation = explained(single, several)
        nets = {rule.net: driver.net(rule.net) for rule in explanation.calls}
        fast = cls(driver, nets, explanation)
        numbers = [0, min(1, len(driver.calls.prompts) - 1)]
        x = torch.randn(len(numbers), *driver.state.shape, generator=generator)
        t, condition = torch.tensor(times[:2], dtype=torch.float64), torch.tensor(numbers)
        with torch.no_grad():
            wanted = torch.cat([driver.output(x[row : row + 1], times[row], n) for row, n in enumerate(numbers)])
            allowed = allowed_of(driver.calls.pipe, driver.state)
            if off(fast.output(x, t, condition), wanted) > allowed:
                raise NotExplainedError("called directly, its denoiser answers otherwise")
            together = cls(driver, nets, explanation, True, fast.table)
            try:
                agrees = off(together.output(x, t, condition), wanted) <= allowed
            except (RuntimeError, ValueError, TypeError):
                # A denoiser that takes one time for all rows.
                agrees = False
        return together if agrees else fast

    def mapped(self, change: Callable[[str, nn.Module], Any]) -> "FastLoop":
        """The same with others in the place of its networks. change(name, network)."""
        nets = {name: change(name, net) for name, net in self.nets.items()}
        return FastLoop(self.driver, nets, self.explanation, self.together, self.table)

    @property
    def graph_key(self) -> tuple[int, ...]:
        """See `PromptTable.graph_key`."""
        return self.table.graph_key

    def prepare(self, numbers: Sequence[int]) -> None:
        """See `PromptTable.prepare`."""
        self.table.prepare(numbers)

    @property
    def null(self) -> int | None:
        """See `Explanation.null`."""
        return self.explanation.null

    @property
    def on_device(self) -> bool:
        """Whether an output reads nothing back to the host, for the prompts that are prepared."""
        return self.together and self.table.on_device

    @property
    def one_call(self) -> bool:
        """Whether rows of any of the prompts that are prepared, at any times, go through its networks together."""
        return self.together and self.table.kinds <= 1

    def output(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        """(n, *shape) as x, in its dtype, on its device. t: (n,) float64 timesteps; numbers: (n,) int64, of prompts."""
        if not numbers.is_cuda:
            self.table.prepare(numbers.tolist())
        if self.on_device:
            return self._output(x, t, numbers, None).to(x)
        known = numbers.tolist()
        kinds = [self.table.kind(number) for number in known]
        groups = rows_by(kinds if self.together else zip(known, t.tolist(), strict=True))
        parts = [self._output(x[rows], t[rows], numbers[rows], kinds[rows[0]]).to(x) for rows in groups.values()]
        return in_order(parts, groups)

    def parts(self, x: Tensor, t: Tensor, numbers: Tensor, kind: Any = None) -> list[Tensor]:
        """The denoiser's answers for rows that go together, of which the output is the weighted sum."""
        state, leaves = self.driver.state, self.table.rows(numbers, kind)
        laid = x.to(state.device, state.dtype)
        times = (t if self.together else t[0]).to(state.device).to(state.time)
        parts: list[Tensor] = []
        answers: list[list[Tensor]] = []
        copies = self.explanation.copies
        wanted = Wanted(laid, lambda rule: _times(rule, times, laid.shape[0], copies), answers)
        for rule in self.explanation.calls:
            args, kwargs = built((rule.args, rule.kwargs), leaves, wanted)
            out = self.nets[rule.net](*args, **kwargs)
            if rule.part is None:
                answers.append(tensors_of(out))
            else:
                answers.append([])
                parts += rule.part.of(out, laid)
        return parts

    def _output(self, x: Tensor, t: Tensor, numbers: Tensor, kind: Any) -> Tensor:
        return self.explanation.output(self.parts(x, t, numbers, kind))

    def _recorded(self, number: int) -> list[NetCall]:
        calls: list[NetCall] = []
        call = self.driver.calls.of(number, 1, seeds_of(0, range(1)))
        Loop(self.driver.calls.pipe, call, nets=self.driver.nets, blanks=self._blanks, watch=calls.append).close()
        return calls


def _times(rule: Time, t: Tensor, n: int, copies: int) -> Tensor:
    """Of n rows with times t (n,), or one for all (). A time without rows becomes one with, where they may differ."""
    if rule.rows == 0 and t.ndim == 0:
        return rule.of(t).expand(rule.extra)
    value = rule.of(t.expand(n)).repeat(rule.rows or copies)
    return value.view(-1, *[1] * len(rule.extra)).expand(-1, *rule.extra) if rule.rows else value


def _iterations(driver: Driver, rows: int, times: Sequence[float], generator: torch.Generator) -> list[Iteration]:
    """At drawn states of the first prompt."""
    state, calls, iterations = driver.state, list[NetCall](), list[Iteration]()
    call = driver.calls.of(0, rows, seeds_of(0, range(rows)))
    loop = Loop(driver.calls.pipe, call, nets=driver.nets, watch=calls.append)
    try:
        for time in times:
            x = state.laid(torch.randn(rows, *state.shape, generator=generator))
            t = torch.tensor(time, device=state.device).to(state.time)
            calls.clear()
            with torch.no_grad():
                out = loop.output(x, t)
            # Where the pipeline has its states several times, one of each is what is explained.
            iterations.append(Iteration(x[:rows], t, tuple(calls), out[:rows]))
    finally:
        loop.close()
    return iterations
