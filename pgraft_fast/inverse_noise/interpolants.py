"""Paths between data and noise on which a vector field is learned, u = 1 noise and u = 0 data.

    x_u = a(u) data + b(u) noise,    dx_u/du = scale f(x_u, u)

linear: a = 1 - u, b = u (rectified flow). trigonometric: a = cos(pi u / 2), b = sin(pi u / 2), variance preserving:
where the data are standard normal themselves the best field is exactly zero, so a network that starts at zero starts at
the identity and learns the deviation alone. scale is 1 and pi / 2, so that f is of the size of the data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError
from pgraft_fast.threads import team_of

INTERPOLANTS = ("trigonometric", "linear")


@dataclass(frozen=True)
class Interpolant:
    """One of INTERPOLANTS. Raises InputError for another name."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in INTERPOLANTS:
            raise InputError(f"interpolant={self.name!r} is unknown; known: {', '.join(INTERPOLANTS)}")

    @property
    def scale(self) -> float:
        """dx/du = scale f."""
        return 0.5 * math.pi if self.name == "trigonometric" else 1.0

    def between(self, data: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """x_u and the target of f. data, noise: (B, ...), u: (B,)."""
        share = u.view(-1, *[1] * (data.ndim - 1)).to(data.dtype)
        if self.name == "linear":
            return (1.0 - share) * data + share * noise, noise - data
        cosine, sine = torch.cos(0.5 * math.pi * share), torch.sin(0.5 * math.pi * share)
        return cosine * data + sine * noise, cosine * noise - sine * data

    @torch.no_grad()
    def integrate(self, field: nn.Module, noise: Tensor, steps: int, batch_size: int = 4096) -> Tensor:
        """Data from noise (B, ...) by Euler steps from u = 1 to 0."""
        h, parts = self.scale / steps, []
        with team_of(field, min(batch_size, noise.shape[0]), noise.shape[1:], noise.device):
            for x in noise.split(batch_size):
                for step in range(steps):
                    u = torch.full((x.shape[0],), 1.0 - step / steps, dtype=x.dtype, device=x.device)
                    x = torch.add(x, field(x, u), alpha=-h)  # noqa: PLW2901
                parts.append(x)
        return torch.cat(parts)
