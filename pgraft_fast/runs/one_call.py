"""One call of a run's reference, for trials."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgraft_fast.finetune.execution import Execution
from pgraft_fast.runs.subject import Subject
from pgraft_fast.sampling.answers import answer_of
from pgraft_fast.sampling.graphs import weights_key

# A prompt must be encoded first.
_PROMPTS = 4


class OneCall:
    """A call of so many rows, of the first few prompts. rows: default the batch of sampling, or a smaller round."""

    def __init__(self, subject: Subject, device: torch.device, rows: int | None = None) -> None:
        self._task, sample = subject.task, subject.config.sample
        if rows is None:
            samples = sample.batch_size if sample.prompts is None else sample.prompts * sample.candidates
            rows = min(sample.batch_size, samples)
        self.rows, self._device = rows, device
        prompts = self._task.prompts
        numbers = torch.arange(self.rows) % min(len(prompts.text), _PROMPTS)
        prompts.prepare(numbers.unique())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, *self._task.shape, generator=generator).to(device)
        t = torch.linspace(0.9, 0.6, self.rows, dtype=x.dtype).to(device)
        condition = None if prompts.condition is None else prompts.condition[numbers].to(device)
        self._inputs = [x, t, *([] if condition is None else [condition])]

    def of(self, mode: str) -> Callable[[], list[Tensor]]:
        """The call in this mode."""
        run = Execution(mode, self._device)
        net = run.of(self._task.model)

        def plain(inputs: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
            condition = inputs[2] if len(inputs) > 2 else None
            answer = answer_of(net, inputs[0], inputs[1], condition)
            return [value for value in (answer.out, answer.out_null) if value is not None]

        def call() -> list[Tensor]:
            with torch.no_grad():
                if run.graphs is None:
                    return plain(self._inputs, [])
                outputs = run.graphs.run(weights_key(net), plain, self._inputs)
                if outputs is None:
                    raise RuntimeError("it cannot be captured")
                return outputs

        return call
