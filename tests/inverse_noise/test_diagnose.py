"""The tests of normality: no alarm for normal noise, alarm for every kind of deviation."""

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise import diagnose
from pgraft_fast.inverse_noise.diagnose import energy_test


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_normal_noise_is_normal():
    diagnoses = [diagnose(normal(400, 12, seed), seed) for seed in range(12)]
    assert not any(diagnosis.correctable for diagnosis in diagnoses)
    for name in ("mean_p", "radius_p", "ks_p", "energy_p"):
        values = torch.tensor([getattr(diagnosis, name) for diagnosis in diagnoses])
        assert float(values.min()) > 1e-3 and float(values.max()) > 0.3, name
    low, high = diagnoses[0].spectrum_range
    assert all(
        low * 0.85 < float(diagnosis.spectrum.min()) and float(diagnosis.spectrum.max()) < high * 1.15
        for diagnosis in diagnoses
    )
    assert "nothing to correct was found" in diagnoses[0].summary()


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda z: z + 0.2, "mean_p"),
        (lambda z: 1.1 * z, "radius_p"),
        (lambda z: z * torch.tensor([1.6] + [1.0] * 11), "ks_p"),
        # Every coordinate is normal, but two are the same.
        (lambda z: torch.cat((z[:, :6], z[:, :6]), dim=1), "radius_p"),
        (lambda z: torch.sign(z) * z.abs().sqrt(), "energy_p"),
    ],
)
def test_deviations_are_seen(change, seen):
    diagnosis = diagnose(change(normal(1500, 12, 1)))
    assert getattr(diagnosis, seen) <= 2e-3 and diagnosis.correctable
    assert "a corrector has something to learn" in diagnosis.summary()


def test_the_energy_test_is_exact_under_permutation():
    """Its p-values under the hypothesis are spread evenly."""
    values = torch.tensor([energy_test(normal(60, 3, seed).double(), 1000 + seed)[1] for seed in range(40)])
    assert 0.35 < float(values.mean()) < 0.65 and float(values.min()) > 0.002
    assert energy_test(normal(200, 3, 0).double() + 1.0)[1] == pytest.approx(1 / 500)


def test_rows_that_are_nan_are_left_out():
    noise = normal(100, 4, 0)
    noise[::2] = float("nan")
    assert diagnose(noise).rows == 50
    with pytest.raises(InputError, match="diagnose: 10 whole rows of noise, at least 20 are needed"):
        diagnose(noise[:20])
