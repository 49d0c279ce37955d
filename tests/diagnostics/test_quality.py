"""Metrics against closed forms."""

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from pgraft_fast.diagnostics import frechet_distance, mean_interval, precision_recall
from pgraft_fast.errors import InputError


def test_frechet_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, dtype=torch.float64, generator=generator)
    b = 2.0 * torch.randn(200_000, 3, dtype=torch.float64, generator=generator) + torch.tensor([1.0, 0.0, -1.0])
    # |mu|^2 + sum (s_a - s_b)^2
    assert frechet_distance(a, b) == pytest.approx(2.0 + 3.0, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_is_that_of_torchmetrics():
    class Features(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    metric = FrechetInceptionDistance(feature=Features(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    a, b = torch.rand(300, 3, 2, 2), torch.rand(400, 3, 2, 2) ** 2
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(a.flatten(1), b.flatten(1)) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_frechet_distance_of_few_rows():
    """Fewer rows than dimensions: the covariances are singular."""
    a, b = torch.randn(5, 20), torch.randn(6, 20)
    assert 0.0 < frechet_distance(a, b) < 1e3
    with pytest.raises(InputError, match="at least 2 rows"):
        frechet_distance(a[:1], b)


def test_precision_and_recall():
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(1500, 2, generator=generator)
    same = torch.randn(1500, 2, generator=generator)
    narrow = 0.2 * torch.randn(1500, 2, generator=generator)
    wide = 8.0 * torch.randn(1500, 2, generator=generator)
    assert min(precision_recall(same, reference)) > 0.85
    precision, recall = precision_recall(narrow, reference)
    assert precision > 0.95 and recall < 0.3
    precision, recall = precision_recall(wide, reference)
    assert precision < 0.3 and recall > 0.9
    with pytest.raises(InputError, match="more than k=3"):
        precision_recall(same[:3], reference)


def test_intervals_cover():
    generator = torch.Generator().manual_seed(2)
    hits = 0
    for _ in range(400):
        interval = mean_interval(torch.randn(10, generator=generator) * 3 + 5)
        hits += interval.low <= 5 <= interval.high
    assert 0.92 < hits / 400 < 0.98


def test_intervals_leave_out_what_is_not_finite():
    interval = mean_interval(torch.tensor([1.0, float("nan"), 3.0]))
    assert interval.mean == 2.0
    assert mean_interval(torch.tensor([2.0])).high == float("inf")
    with pytest.raises(InputError, match="no finite value"):
        mean_interval(torch.tensor([float("nan")]))
