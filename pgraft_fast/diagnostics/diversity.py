"""How different the samples of one prompt are, in a feature space."""

import torch
from torch import Tensor

from pgraft_fast.errors import InputError


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosine similarities of features (n, d): 1 for n equal rows,
    n for orthogonal ones. Friedman and Dieng 2023, arXiv 2210.02410. Raises InputError for no row.
    """
    if features.ndim != 2 or features.shape[0] == 0:
        raise InputError(f"vendi_score: features are {tuple(features.shape)}, (n, d) with n >= 1 is needed")
    rows = torch.nn.functional.normalize(features.detach().cpu().to(torch.float64), dim=1)
    values = torch.linalg.eigvalsh(rows @ rows.T / rows.shape[0]).clamp(min=0.0)
    values = values[values > 1e-12]
    values = values / values.sum()
    return float(torch.exp(-(values * values.log()).sum()))


def diversity(groups: Tensor) -> dict[str, float | None]:
    """{"vendi", "feature_variance"} of features (P, N, d), each taken over the N samples of a prompt, mean over P.

    feature_variance: trace of the covariance; None for N = 1. Features are centred at the mean of all before cosines
    are taken, or else everything looks alike.
    """
    if groups.ndim != 3 or groups.numel() == 0:
        raise InputError(f"diversity: features are {tuple(groups.shape)}, (P, N, d) is needed")
    groups = groups.detach().cpu().to(torch.float64)
    variance = float(groups.var(dim=1).sum(dim=1).mean()) if groups.shape[1] > 1 else None
    centred = groups - groups.mean(dim=(0, 1))
    vendi = sum(vendi_score(features) for features in centred) / groups.shape[0]
    return {"vendi": vendi, "feature_variance": variance}
