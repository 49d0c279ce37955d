"""The law that an acceptance rule asks for, in closed form.

The accepted law is p(x) rho(x) with rho = P(accept | x) / P(accept), and log rho is the reshaped reward
rhat(x) / a up to a constant. For rules that only look at ranks, rho is a function of F, the quantile of x's reward
under p within its prompt, whatever the reward. KL = E_p[rho log rho], in nats. Source: arXiv 2510.02692
for the tilted form; the expressions below follow from the order statistics of uniform variables.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AcceptanceLaw:
    """kl: KL(accepted, p) in nats. mean_quantile: E[F] of the accepted. acceptance_rate: share kept, nan where
    it depends on more than the rule.
    """

    rule: str
    kl: float
    mean_quantile: float
    acceptance_rate: float
    _curve: Curve

    def density_ratio(self, quantile: float | Tensor) -> Tensor:
        """rho(F) in float64 for quantiles F in [0, 1]; for binary with copies, rho(m) for an item of mass m."""
        values = torch.as_tensor(quantile, dtype=torch.float64)
        return torch.from_numpy(np.asarray(self._curve(values.cpu().numpy()))).reshape(values.shape)

    def reshaped_reward(self, quantile: float | Tensor) -> Tensor:
        """rhat(F) / a = log rho(F): the reward whose KL-regularised optimum the accepted law is."""
        return self.density_ratio(quantile).log()


def acceptance_law(
    rule: str,
    *,
    n: int | None = None,
    k: int | None = None,
    temperature: float | None = None,
    quantile: float | None = None,
    reward_of_quantile: Curve | None = None,
    masses: Tensor | None = None,
) -> AcceptanceLaw:
    """The law of a rule of `accept`.

      top_k        rho(F) = (n/k) sum_{j<k} C(n-1, j) (1-F)^j F^(n-1-j); n, k
      best_of_n    rho(F) = n F^(n-1), KL = log n - (n-1)/n; n
      preference   top_k with n=2, k=1
      threshold    rho(F) = 1[F >= quantile] / (1 - quantile): `quantile` of the threshold under p
      classical    rho(F) = exp(r(F)/temperature) / E[...], r = `reward_of_quantile` (default r(F) = F), for an
                   r_max that bounds every reward
      binary       rho(m) prop. to (1 - (1-m)^n) / m for a positive item of probability m, 0 for negatives;
                   n and `masses` (the probabilities of all distinct positives), or `quantile` = the share of
                   negatives when no two samples are alike

    Raises InputError for missing or impossible values.
    """
    match rule:
        case "top_k":
            return _top_k(rule, _whole("n", n), _whole("k", k))
        case "best_of_n":
            return _top_k(rule, _whole("n", n), 1)
        case "preference":
            return _top_k(rule, 2, 1)
        case "threshold":
            return _threshold(rule, quantile)
        case "classical":
            return _classical(temperature, reward_of_quantile or (lambda f: f))
        case "binary" if masses is None:
            return _threshold(rule, quantile)
        case "binary":
            return _binary(_whole("n", n), torch.as_tensor(masses, dtype=torch.float64).cpu().numpy())
    raise InputError(
        f"rule={rule!r} has no law here; known: top_k, best_of_n, preference, threshold, classical, binary"
    )


def _whole(name: str, value: int | None) -> int:
    if value is None or value < 1:
        raise InputError(f"{name}={value}: this rule needs a whole number of at least 1")
    return value


def _top_k(rule: str, n: int, k: int) -> AcceptanceLaw:
    from scipy.special import betainc

    if k > n:
        raise InputError(f"k={k} is more than the n={n} candidates of a group")

    def curve(f: np.ndarray) -> np.ndarray:
        # P(at most k-1 of the n-1 others are better) is a regularised incomplete beta function.
        return np.ones_like(f) if k == n else n / k * betainc(n - k, k, f)

    kl = math.log(n) - (n - 1) / n if k == 1 else _kl(curve)
    return AcceptanceLaw(rule, kl, (n - 0.5 * (k - 1)) / (n + 1), k / n, curve)


def _threshold(rule: str, quantile: float | None) -> AcceptanceLaw:
    if quantile is None or not 0.0 <= quantile < 1.0:
        raise InputError(f"quantile={quantile}: rule {rule!r} needs the share of rejected samples, in [0, 1)")
    rate = 1.0 - quantile
    return AcceptanceLaw(
        rule, -math.log(rate), 0.5 * (1.0 + quantile), rate, lambda f: np.where(f >= quantile, 1.0 / rate, 0.0)
    )


def _classical(temperature: float | None, reward: Curve) -> AcceptanceLaw:
    if temperature is None or not temperature > 0:
        raise InputError(f"temperature={temperature}: rule 'classical' needs a temperature above 0")
    nodes, weights = _quadrature()
    top = float(np.max(reward(nodes)))
    normaliser = float(weights @ np.exp((reward(nodes) - top) / temperature))

    def curve(f: np.ndarray) -> np.ndarray:
        return np.exp((reward(f) - top) / temperature) / normaliser

    mean_quantile = float(weights @ (nodes * curve(nodes)))
    return AcceptanceLaw("classical", _kl(curve), mean_quantile, math.nan, curve)


def _binary(n: int, masses: np.ndarray) -> AcceptanceLaw:
    if masses.ndim != 1 or masses.size == 0 or (masses <= 0).any() or masses.sum() > 1.0 + 1e-9:
        raise InputError("masses must be the probabilities of the distinct positives: above 0, at most 1 in sum")

    def kept(m: np.ndarray) -> np.ndarray:
        # E[1 / copies of x | x is in the batch of n] = (1 - (1-m)^n) / (n m); 1 for m -> 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = -np.expm1(n * np.log1p(-m)) / (n * m)
        return np.where(m > 0, ratio, 1.0)

    rate = float(masses @ kept(masses))
    ratio = kept(masses) / rate
    kl = float(masses @ (ratio * np.log(ratio)))
    return AcceptanceLaw("binary", kl, math.nan, rate, lambda m: kept(m) / rate)


def _kl(curve: Curve) -> float:
    nodes, weights = _quadrature()
    rho = curve(nodes)
    return float(weights @ np.where(rho > 0, rho * np.log(np.where(rho > 0, rho, 1.0)), 0.0))


def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on panels that shrink towards 0 and 1, where rank laws have their singular ends."""
    halves = 0.5 ** np.arange(1, 45)
    edges = np.concatenate(([0.0], halves[::-1], 1.0 - halves[1:], [1.0]))
    x, w = np.polynomial.legendre.leggauss(24)
    low, high = edges[:-1, None], edges[1:, None]
    nodes = 0.5 * (low + high) + 0.5 * (high - low) * x
    return nodes.ravel(), (0.5 * (high - low) * w).ravel()
