"""Anderson mixing of fixed-point iterates, sample by sample.

With residuals r_i = g(y_i) - y_i and G_ij = <r_i, r_j>, the weights of least |sum_i w_i r_i| that sum to 1 solve
(G / tr G + ridge I) c = 1, w = c / sum c; then y = sum_i w_i g(y_i).
Source: Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 2011, eq. 1.3.
"""

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.checks import check_like, check_no_gradient, check_state
from pgraft_fast.ops.registration import register, traced

MAX_HISTORY = 8


def anderson_mix(following: Tensor, residual: Tensor, ridge: float = 1e-8) -> Tensor:
    """following: (m, B, ...) iterates g(y_i), the newest last, m <= 8. residual: the same shape. Returns (B, ...).

    ridge >= 0: relative regularisation. The weights are computed in float64; a sample whose residuals are all zero
    keeps its newest iterate. Dtype of `following`, arithmetic in float32 (float64 for float64). Raises InputError.
    """
    check_state("following", following)
    check_no_gradient("anderson_mix", following, residual)
    check_like("residual", residual, following)
    if following.ndim < 2 or not 1 <= following.shape[0] <= MAX_HISTORY:
        raise InputError(f"following is {tuple(following.shape)}: (m, B, ...) with 1 <= m <= {MAX_HISTORY} is needed")
    if ridge < 0:
        raise InputError(f"ridge={ridge}: it cannot be negative")
    return (_op if traced(following, residual) else _run)(following, residual, ridge)


def _run(following: Tensor, residual: Tensor, ridge: float) -> Tensor:
    launch = launcher("anderson_mix", following)
    if launch is None:
        return _reference(following, residual, ridge)
    states = following.float().contiguous()
    y = states.new_empty(states.shape[1:])
    launch(states, residual.float().contiguous(), ridge, y)
    return y.to(following.dtype)


def _reference(following: Tensor, residual: Tensor, ridge: float) -> Tensor:
    history, batch = following.shape[:2]
    r = residual.to(torch.float64).unsqueeze(-1).flatten(2)
    gram = torch.einsum("ibn,jbn->bij", r, r)
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    moving = trace > 0
    eye = torch.eye(history, dtype=torch.float64, device=r.device)
    scaled = gram / torch.where(moving, trace, torch.ones_like(trace)).view(-1, 1, 1) + ridge * eye
    scaled = torch.where(moving.view(-1, 1, 1), scaled, eye)
    weight, _ = torch.linalg.solve_ex(scaled, torch.ones(batch, history, dtype=torch.float64, device=r.device))
    weight = weight / weight.sum(dim=1, keepdim=True)
    weight = torch.where(moving.view(-1, 1), weight, eye[-1])
    dtype = torch.float64 if following.dtype is torch.float64 else torch.float32
    states = following.to(dtype)
    rows = weight.to(dtype).t().reshape(history, batch, *([1] * (following.ndim - 2)))
    return (rows * states).sum(dim=0).to(following.dtype).contiguous()


_op = register(
    "anderson_mix(Tensor following, Tensor residual, float ridge) -> Tensor",
    _run,
    lambda following, residual, ridge: following.new_empty(following.shape[1:]),
)
