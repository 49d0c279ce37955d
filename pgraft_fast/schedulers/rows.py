"""The steps of diffusers' schedulers as rows of `ops.solver_step`, in float64.

    m   = p x + q out                          (m: x_0, or epsilon for algorithm_type "dpmsolver")
    x_s = a x + b m + c previous + d z

Each function takes the numbers that the scheduler holds and gives (R, 8) float64 rows; a row that the scheduler's own
formula leaves undefined (0/0, infinite) is not finite here either.
"""

import torch
from torch import Tensor


def stack(*columns: Tensor | float) -> Tensor:
    """(R, 8) rows from the columns p, q, a, b, c, d; noise number and slot are 0."""
    size = next(column.shape[0] for column in columns if isinstance(column, Tensor) and column.ndim)
    full = [torch.as_tensor(column, dtype=torch.float64).expand(size) for column in columns]
    zero = torch.zeros(size, dtype=torch.float64)
    return torch.stack((*full, zero, zero), dim=1)


def x_0_row(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of x_0 = p x + q out where x = alpha x_0 + sigma epsilon."""
    if prediction == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if prediction == "v_prediction":
        return alpha, -sigma
    if prediction == "flow_prediction":
        return torch.ones_like(alpha), -sigma
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def epsilon_row(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of epsilon = p x + q out."""
    if prediction == "epsilon":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "v_prediction":
        return sigma, alpha
    return 1.0 / sigma, -alpha / sigma


def share_left(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """alpha_t / alpha_s, divided in their own precision as diffusers does: 1 - it is small between neighbouring steps,
    and most of its digits are those of this rounding.
    """
    return (alpha_t / alpha_s).to(torch.float64)


def variances(alpha_t: Tensor, alpha_s: Tensor) -> tuple[Tensor, Tensor]:
    """Of the noise that is added from s to t, beta = 1 - alpha_t / alpha_s, and of x_s where x_t and x_0 are known,
    beta (1 - alpha_s) / (1 - alpha_t).
    """
    beta = 1.0 - share_left(alpha_t, alpha_s)
    return beta, (1.0 - alpha_s.to(torch.float64)) / (1.0 - alpha_t.to(torch.float64)) * beta


def ddim_rows(
    alpha_t: Tensor, alpha_s: Tensor, prediction: str, eta: float, clipped: bool, from_clipped: bool
) -> tuple[Tensor, bool]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12) between cumulative alphas; whether `previous` must be out.

    With a clipped x_0 and epsilon taken before the clip, x_s is not linear in x and x_0 alone.
    """
    std = eta * variances(alpha_t, alpha_s)[1].sqrt()
    alpha_t, alpha_s = alpha_t.to(torch.float64), alpha_s.to(torch.float64)
    root, sigma = alpha_t.sqrt(), (1.0 - alpha_t).sqrt()
    if eta == 0.0:
        std = torch.zeros_like(std)
    direction = (1.0 - alpha_s - std.square()).sqrt()
    if eta < 0.0:
        # diffusers takes it off the direction, and adds no noise.
        std = torch.zeros_like(std)
    p, q = x_0_row(prediction, root, sigma)
    needs_out = not from_clipped if clipped else bool((sigma == 0).any())
    if needs_out:
        e_x, e_out = epsilon_row(prediction, root, sigma)
        return stack(p, q, direction * e_x, alpha_s.sqrt(), direction * e_out, std), True
    a = direction / sigma
    return stack(p, q, a, alpha_s.sqrt() - a * root, 0.0, std), False


def ddpm_rows(alpha_t: Tensor, alpha_s: Tensor, prediction: str, variance: str, noisy: Tensor) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7). noisy: (R,) bool, the rows that draw noise.

    Where the model predicts the variance d is 1: the noise comes scaled.
    """
    alpha = share_left(alpha_t, alpha_s)
    beta, small = variances(alpha_t, alpha_s)
    alpha_t, alpha_s = alpha_t.to(torch.float64), alpha_s.to(torch.float64)
    p, q = x_0_row(prediction, alpha_t.sqrt(), (1.0 - alpha_t).sqrt())
    a = alpha.sqrt() * (1.0 - alpha_s) / (1.0 - alpha_t)
    b = alpha_s.sqrt() * beta / (1.0 - alpha_t)
    if variance in ("learned", "learned_range"):
        d = torch.ones_like(a)
    else:
        d = (beta if variance == "fixed_large" else small.clamp(min=1e-20)).sqrt()
    return stack(p, q, a, b, 0.0, torch.where(noisy, d, torch.zeros_like(d)))


def euler_rows(sigma: Tensor, churned: Tensor, sigma_next: Tensor, prediction: str) -> Tensor:
    """Euler on sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 2) from `churned` to sigma_next.

    For v_prediction x_0 is taken at sigma, as diffusers does.
    """
    if prediction == "epsilon":
        p, q = torch.ones_like(sigma), -churned
    elif prediction == "v_prediction":
        p, q = 1.0 / (sigma.square() + 1.0), -sigma / (sigma.square() + 1.0).sqrt()
    else:
        p, q = torch.zeros_like(sigma), torch.ones_like(sigma)
    share = (sigma_next - churned) / churned
    return stack(p, q, 1.0 + share, -share, 0.0, 0.0)


def flow_rows(sigma: Tensor, sigma_next: Tensor, stochastic: bool) -> Tensor:
    """Flow matching: x + (sigma_next - sigma) out; stochastic: (1 - sigma_next) x_0 + sigma_next z."""
    if stochastic:
        return stack(torch.ones_like(sigma), -sigma, 0.0, 1.0 - sigma_next, 0.0, sigma_next)
    return stack(torch.zeros_like(sigma), torch.ones_like(sigma), 1.0, sigma_next - sigma, 0.0, 0.0)


def dpm_rows(alpha: Tensor, sigma: Tensor, level: Tensor, prediction: str, algorithm: str, solver_type: str) -> Tensor:
    """DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv 2206.00927 and 2211.01095), ODE and SDE, multistep.

    alpha, sigma: (S + 1,) levels. level: (S + 1,) scheduler.sigmas, by which diffusers multiplies a flow even where
    they are sigma / alpha. Gives (3, S, 9): order, step, the eight columns and the weight of the m before the previous.
    """
    lam = alpha.log() - sigma.log()
    a_t, s_t, a_0, s_0 = alpha[1:], sigma[1:], alpha[:-1], sigma[:-1]
    h = lam[1:] - lam[:-1]
    r_0 = (lam[:-1] - lam.roll(1)[:-1]) / h
    r_1 = (lam.roll(1)[:-1] - lam.roll(2)[:-1]) / h
    data = algorithm.endswith("++")
    p, q = (x_0_row if data else epsilon_row)(prediction, a_0, level[:-1] if prediction.startswith("flow") else s_0)
    zero = torch.zeros_like(h)
    noise = zero
    # gain: weight of m; slope and bend: weights of its first and second differences.
    if algorithm == "dpmsolver++":
        grown = torch.expm1(-h)
        a, gain = s_t / s_0, -a_t * grown
        slope, bend = a_t * (grown / h + 1.0), -a_t * ((grown + h) / h.square() - 0.5)
    elif algorithm == "dpmsolver":
        grown = torch.expm1(h)
        a, gain = a_t / a_0, -s_t * grown
        slope, bend = -s_t * (grown / h - 1.0), -s_t * ((grown - h) / h.square() - 0.5)
    elif algorithm == "sde-dpmsolver++":
        lost = -torch.expm1(-2.0 * h)
        a, gain = s_t / s_0 * torch.exp(-h), a_t * lost
        slope = a_t * (lost / (-2.0 * h) + 1.0)
        bend = a_t * ((lost - 2.0 * h) / (2.0 * h).square() - 0.5)
        noise = s_t * lost.sqrt()
    else:
        grown = torch.expm1(h)
        a, gain = a_t / a_0, -2.0 * s_t * grown
        slope, bend = -2.0 * s_t * (grown / h - 1.0), torch.full_like(h, float("nan"))
        noise = s_t * torch.expm1(2.0 * h).sqrt()
    if data:
        # At sigma = 0 nothing is left of the noise.
        noise = torch.where(s_t == 0, zero, noise)
    second = 0.5 * gain if solver_type == "midpoint" else slope
    near = slope * (1.0 + r_0 / (r_0 + r_1)) + bend / (r_0 + r_1)
    far = -(slope * r_0 / (r_0 + r_1) + bend / (r_0 + r_1))
    orders = [
        (gain, zero, zero),
        (gain + second / r_0, -second / r_0, zero),
        (gain + near / r_0, far / r_1 - near / r_0, -far / r_1),
    ]
    return torch.stack([torch.cat((stack(p, q, a, b, c, noise), last[:, None]), dim=1) for b, c, last in orders])
