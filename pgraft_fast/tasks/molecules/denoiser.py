"""What every network of molecules has around it: the parts of its answer that are known are exact.

A network sees centred positions and answers for positions and for the law of the elements. Known are

- a slot without an atom: x_0 = 0;
- the mean of the positions: that of x_0 is 0;
- the element of an atom whose condition names it;
- how likely the element columns are given the element: Gaussian, around alpha times one of five rows. The network
  gives the law of the elements from all else, Bayes' rule the rest, and x_0 is the mean over the elements.

Known x_0 goes over eps = (x - alpha x_0) / sigma into the parameterization, so a sampler needs to know of none of it.
"""

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule, target_coefficients
from pgraft_fast.tasks.molecules.conditions import ANY_ELEMENT
from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS, columns_of_elements

# Kinds of slots that a network sees: no atom, the elements, any element.
KINDS = len(SYMBOLS) + 2
# Below, t = 0 is data and no noise can be told.
_LEAST_SIGMA = 1e-6
# Rows: of fewer, calls cost more than slots.
_LEAST_PART = 64
# Of a logit that is not.
_NEVER = -1e9


class MoleculeDenoiser(nn.Module):
    """model(x, t, condition) -> prediction of the shape of x, in `parameterization`.

    x: (B, N, 9), see `elements.pack`. t: (B,) in [0, 1]. condition: (B, N) int64, see `conditions`. network(points,
    columns, kinds, atom, level) -> positions (B, N, 3), rotated and moved with `points`, and logits (B, N, 5) of the
    elements; points: (B, N, 3), centred, 0 where there is no atom; columns: (B, N, 6) of the elements; kinds: (B, N)
    int64 below KINDS; atom: (B, N) bool; level: (B, 3) float, t and what the
    state and the answer weigh in x_0 (`x_0_coefficients`).
    """

    # See `rollout`.
    thread_safe = True

    def __init__(self, network: nn.Module, schedule: Schedule, parameterization: str) -> None:
        super().__init__()
        self.network = network
        self.schedule, self.parameterization = schedule, parameterization
        self.codes: Tensor
        self.register_buffer("codes", columns_of_elements(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        parts = _parts_by_size(condition)
        if len(parts) < 2:
            return self._answer(x, t, condition)
        answers = [self._answer(x[rows], t[rows], condition[rows]) for rows in parts]
        return torch.cat(answers)[torch.cat(parts).argsort()]

    def _answer(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        t, used = t.to(x.dtype), _slots_used(condition)
        alpha, sigma = (value[:, None, None] for value in self.schedule.alpha_sigma(t))
        sigma = sigma.clamp(min=_LEAST_SIGMA)
        c, d = (value[:, None, None] for value in target_coefficients(self.schedule, t, self.parameterization))
        rest, x, condition = x[:, used:], x[:, :used], condition[:, :used]
        there = (condition != NO_ATOM)[:, :, None]
        absent = there.logical_not()
        count = there.sum(dim=1, keepdim=True).clamp(min=1)
        clean = x.masked_fill(absent, 0.0)
        centre = clean[:, :, :3].sum(dim=1, keepdim=True) / count
        points, columns = (clean[:, :, :3] - centre).masked_fill(absent, 0.0), clean[:, :, 3:]
        # As `x_0_coefficients`, of what is there already.
        determinant = d * alpha - c * sigma
        level = torch.cat((t[:, None, None], d / determinant, -sigma / determinant), dim=2)[:, 0]
        moves, logits = self.network(points, columns, condition + 1, there[:, :, 0], level)
        moves = moves.masked_fill(absent, 0.0)
        moves = moves - moves.sum(dim=1, keepdim=True) / count
        x_0 = self._columns(logits, columns, condition, alpha, sigma)
        known = c * x_0 + d * ((columns - alpha * x_0) / sigma)
        out = torch.cat((moves + (d / sigma) * centre, known), dim=2).where(there, d / sigma * x)
        return torch.cat((out, d / sigma * rest), dim=1) if rest.shape[1] else out

    def _columns(self, logits: Tensor, columns: Tensor, condition: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the element columns of x_0, (B, N, 6)."""
        scores = columns @ self.codes.T - 0.5 * alpha * self.codes.square().sum(dim=1)
        logits = logits + alpha / sigma.square() * scores
        named = condition[:, :, None] == torch.arange(ANY_ELEMENT, device=condition.device)
        free = condition[:, :, None] == ANY_ELEMENT
        return logits.masked_fill((named | free).logical_not(), _NEVER).softmax(dim=2) @ self.codes


def _parts_by_size(condition: Tensor) -> tuple[Tensor, ...]:
    """Rows of a batch, those of like numbers of atoms together, so that few slots without an atom are computed. None
    of a small batch, and where numbers could not be known without waiting for a device.
    """
    if condition.device.type != "cpu" or torch.compiler.is_compiling() or len(condition) < 2 * _LEAST_PART:
        return ()
    count = (condition != NO_ATOM).sum(dim=1)
    return count.argsort(stable=True).split(_LEAST_PART)


def _slots_used(condition: Tensor) -> int:
    """Slots up to the last atom of a batch. All of them where that could not be known without waiting for a device."""
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return condition.shape[1]
    used = (condition != NO_ATOM).any(dim=0).nonzero()
    return int(used[-1]) + 1 if used.numel() else condition.shape[1]
