"""Correctors: identity at the start, closed forms for Gaussian noise, files, resume, bad input."""

import json

import pytest
import torch
from repeats import repeats

from pgraft_fast import NoiseCorrector
from pgraft_fast.errors import CheckpointError, InputError, StoppedError
from pgraft_fast.files import to_json, write_folder
from pgraft_fast.inverse_noise import INTERPOLANTS, FitSettings, Interpolant, Rows, fit_field
from pgraft_fast.inverse_noise.networks import Perceptron, PictureField, make_field

NETWORK = {"kind": "perceptron", "width": 32, "depth": 2}
QUICK = FitSettings(steps=30, batch_size=32, held_out=0.2, check_every=10, save_every=7, seed=3)


def gaussian(n, seed=0):
    """Rows of N(mu, Sigma) in two dimensions."""
    mean = torch.tensor([0.4, -0.2])
    factor = torch.tensor([[1.2, 0.0], [0.3, 0.8]])
    return mean, factor @ factor.T, mean + torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) @ factor.T


def close_in_law(drawn, mean, covariance, relative):
    scale = float(covariance.diagonal().max())
    assert float((drawn.mean(0) - mean).abs().max()) < relative * scale**0.5
    assert float((torch.cov(drawn.T) - covariance).abs().max()) < relative * scale


def test_affine_is_the_closed_form():
    mean, covariance, noise = gaussian(200_000)
    corrector = NoiseCorrector.fit(noise, interpolant="affine")
    z = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(1))
    close_in_law(corrector(z), mean, covariance, 0.01)
    # The symmetric root: the map nearest to the identity.
    assert torch.allclose(corrector.network.factor, corrector.network.factor.T)


@pytest.mark.parametrize("interpolant", [INTERPOLANTS[0], *repeats(*INTERPOLANTS[1:])])
def test_a_trained_corrector_has_the_law_of_the_noise(interpolant):
    mean, covariance, noise = gaussian(50_000)
    settings = FitSettings(steps=3000, batch_size=512, learning_rate=2e-3, ema=0.995, held_out=0.0)
    corrector = NoiseCorrector.fit(
        noise, interpolant=interpolant, steps=50 if interpolant == "trigonometric" else 200, settings=settings,
        network={"kind": "perceptron", "width": 48, "depth": 2},
    )  # fmt: skip
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    # With the mean and covariance of the law itself, so that those of the result are off by what the map is alone.
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T)), (z - z.mean(0)).T, upper=False).T
    close_in_law(corrector(z), mean, covariance, 0.02)


def test_the_trigonometric_one_starts_at_the_identity():
    """And stays there where nothing is to be corrected; the linear one must learn the identity first."""
    z = torch.randn(500, 4)
    for name in INTERPOLANTS:
        field = Perceptron((4,), 16, 2, zero=True)
        moved = Interpolant(name).integrate(field, z, 5)
        assert torch.equal(moved, z)
        x, target = Interpolant(name).between(torch.randn(100_000, 4), torch.randn(100_000, 4), torch.rand(100_000))
        # The best linear field: zero for the trigonometric path between two normal laws.
        slope = float((x * target).sum() / x.square().sum())
        assert abs(slope) < 0.02 if name == "trigonometric" else abs(slope) < 0.05
    field = fit_field(
        Perceptron((4,), 16, 2, zero=True), Rows(torch.randn(20_000, 4)), Interpolant("trigonometric"),
        FitSettings(steps=300, batch_size=512),
    ).network  # fmt: skip
    assert float((Interpolant("trigonometric").integrate(field, z, 5) - z).square().mean().sqrt()) < 0.15


def test_paths_end_in_data_and_noise():
    data, noise = torch.randn(6, 3), torch.randn(6, 3)
    for name in INTERPOLANTS:
        path = Interpolant(name)
        assert torch.allclose(path.between(data, noise, torch.zeros(6))[0], data)
        assert torch.allclose(path.between(data, noise, torch.ones(6))[0], noise, atol=1e-6)
        # The target is the slope of the path.
        u = torch.full((6,), 0.3)
        x, target = path.between(data, noise, u)
        ahead, _ = path.between(data, noise, u + 1e-3)
        assert torch.allclose((ahead - x) / 1e-3, path.scale * target, atol=5e-3)


def test_files_bring_it_back(tmp_path):
    noise = torch.randn(400, 2, 3) * 1.3
    z = torch.randn(7, 2, 3)
    for kind in (*INTERPOLANTS, "affine"):
        made = NoiseCorrector.fit(noise, interpolant=kind, steps=4, base_steps=20, network=NETWORK, settings=QUICK)
        made.save(tmp_path / kind)
        again = NoiseCorrector.load(tmp_path / kind)
        assert torch.equal(again(z), made(z)) and again.base_steps == 20 and again.summary == made.summary
        assert again.steps == made.steps == (1 if kind == "affine" else 4)
    assert sorted(path.name for path in (tmp_path / "linear").iterdir()) == [
        "corrector.json", "corrector.safetensors", "manifest.json"
    ]  # fmt: skip
    weights = tmp_path / "linear" / "corrector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged, its hash differs"):
        NoiseCorrector.load(tmp_path / "linear")
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        NoiseCorrector.load(tmp_path / "nowhere")


def test_a_file_of_an_earlier_version(tmp_path):
    corrector = NoiseCorrector.fit(torch.randn(40, 3), interpolant="affine")
    corrector.save(tmp_path / "new")
    config = json.loads((tmp_path / "new/corrector.json").read_text())
    config["told"] = config.pop("summary")
    weights = (tmp_path / "new/corrector.safetensors").read_bytes()
    write_folder(tmp_path / "old", {"corrector.json": to_json(config), "corrector.safetensors": weights})
    again, z = NoiseCorrector.load(tmp_path / "old"), torch.randn(5, 3)
    assert again.summary == corrector.summary == {"rows": 40, "left_out": 0} and torch.equal(again(z), corrector(z))
    del config["told"]
    write_folder(tmp_path / "none", {"corrector.json": to_json(config), "corrector.safetensors": weights})
    with pytest.raises(CheckpointError, match="not a corrector"):
        NoiseCorrector.load(tmp_path / "none")


@pytest.mark.parametrize("stop", [1, 7, 20, 29])
def test_a_fit_that_was_stopped_ends_with_the_same_bytes(tmp_path, stop):
    noise = torch.randn(300, 4)
    straight = NoiseCorrector.fit(noise, network=NETWORK, settings=QUICK, folder=tmp_path / "straight")
    left = [stop]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        NoiseCorrector.fit(noise, network=NETWORK, settings=QUICK, folder=tmp_path / "stopped", check=check)
    lines = []
    again = NoiseCorrector.fit(noise, network=NETWORK, settings=QUICK, folder=tmp_path / "stopped", log=lines.append)
    straight.save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("corrector.json", "corrector.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # The check comes before each step.
    assert (stop < 7) or lines[0] == f"goes on after step {stop // 7 * 7}"
    with pytest.raises(InputError, match=r"seed=4 differs from 3 of the run in .*stopped; set it back or use another"):
        NoiseCorrector.fit(
            noise, network=NETWORK, settings=FitSettings(**{**vars(QUICK), "seed": 4}), folder=tmp_path / "stopped"
        )


def test_training_ends_early_where_rows_held_out_get_no_better():
    """Twenty rows are learned by heart: the best weights are those of the best check."""
    noise = 2.0 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    settings = FitSettings(
        steps=3000, batch_size=64, learning_rate=3e-3, ema=0.9, held_out=0.5, check_every=20, patience=3
    )
    corrector = NoiseCorrector.fit(noise, network={**NETWORK, "width": 128}, settings=settings)
    history = [entry["held_out_loss"] for entry in corrector.summary["history"]]
    assert corrector.summary["trained_steps"] < 3000
    assert len(history) == 3 + 1 + history.index(min(history))


def test_rows_that_failed_are_left_out():
    noise = torch.randn(100, 3)
    noise[::10] = float("nan")
    lines = []
    corrector = NoiseCorrector.fit(noise, interpolant="affine", log=lines.append)
    assert corrector.summary == {"rows": 90, "left_out": 10}
    assert lines == ["10 rows of noise are not finite and left out"]
    assert torch.isfinite(corrector(torch.randn(5, 3))).all()


def test_dtype_and_shape():
    corrector = NoiseCorrector.fit(torch.randn(50, 2, 3), interpolant="affine")
    assert corrector(torch.randn(4, 2, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16
    with pytest.raises(InputError, match=r"the corrector takes \(B, 2, 3\) floating, got \(4, 3\)"):
        corrector(torch.randn(4, 3))


def test_fields_of_pictures():
    field = make_field((3, 16, 16), {"kind": "unet", "channels": [8, 16], "attention": [8], "layers": 1, "zero": True})
    assert isinstance(field, PictureField)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(field(x, torch.rand(2)), torch.zeros_like(x))
    with pytest.raises(InputError, match=r"a UNet needs \(C, H, H\) with H a multiple of 4"):
        make_field((3, 18, 18), {"kind": "unet", "channels": [8, 8, 8]})
    with pytest.raises(InputError, match="network kind 'mlp' is unknown; known: perceptron, unet"):
        make_field((3,), {"kind": "mlp"})
    with pytest.raises(InputError, match=r"network perceptron: .*unexpected keyword argument 'channels'"):
        make_field((3,), {"kind": "perceptron", "channels": [1]})


@pytest.mark.parametrize(
    ("noise", "arguments", "message"),
    [
        (torch.randn(5, 2), {}, "5 of 5 rows of noise are whole: at least 10 are needed"),
        (torch.zeros(20, dtype=torch.int64), {}, "noise is torch.int64"),
        (torch.randn(20, 2), {"interpolant": "cubic"}, "interpolant='cubic' is unknown; known: trigonometric, linear"),
        (torch.randn(20, 2), {"steps": 0}, "steps=0: at least 1"),
        (torch.randn(20, 70, 70), {"interpolant": "affine"}, "an affine corrector of 4900 numbers: at most 4096"),
        (torch.randn(20, 2), {"settings": FitSettings(held_out=0.01)}, "20 rows with held_out=0.01: too few"),
    ],
)
def test_bad_input(noise, arguments, message):
    options = {"network": NETWORK, "settings": FitSettings(steps=1, batch_size=4)} | arguments
    with pytest.raises(InputError, match=message):
        NoiseCorrector.fit(noise, **options)
