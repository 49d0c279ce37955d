"""The corrector: from standard normal noise to the noise that data come from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.files import json_of, read_folder, to_json, write_folder
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.inverse_noise.interpolants import INTERPOLANTS, Interpolant
from pgraft_fast.inverse_noise.matching import FitSettings, fit_field
from pgraft_fast.inverse_noise.networks import default_field, make_field
from pgraft_fast.inverse_noise.sources import Rows, Source
from pgraft_fast.ranks.ranks import ALONE, Ranks

KINDS = (*INTERPOLANTS, "affine")
_CONFIG, _WEIGHTS = "corrector.json", "corrector.safetensors"
_LARGEST_AFFINE = 4096


class NoiseCorrector:
    """corrector(z): standard normal noise (B, *shape) made into a draw from the law of inverse noise.

    A small flow by Euler steps, or an affine map. Inputs of a flow are then corrector(z) instead of z:
    `pipe(latents=corrector(z))` works with any pipeline. base_steps: the number of steps of the base for which it was
    made; another one has other inverse noise. steps: its own. Source: arXiv 2510.02692, inverse noise correction; the
    trigonometric interpolant and the affine map are this project's.
    """

    def __init__(
        self, kind: str, shape: tuple[int, ...], network: nn.Module, config: dict[str, Any], *, steps: int = 5,
        base_steps: int | None = None, summary: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if kind not in KINDS:
            raise InputError(f"interpolant={kind!r} is unknown; known: {', '.join(KINDS)}")
        if steps < 1:
            raise InputError(f"steps={steps}: at least 1")
        self.kind, self.shape, self.network, self.config = kind, tuple(shape), network.eval(), config
        self.steps, self.base_steps, self.summary = steps, base_steps, summary or {}

    @classmethod
    def fit(
        cls,
        noise: Tensor | Source,
        *,
        device: torch.device | str | None = None,
        interpolant: str = "trigonometric",
        steps: int = 5,
        base_steps: int | None = None,
        network: dict[str, Any] | None = None,
        settings: FitSettings | None = None,
        folder: Path | None = None,
        identity: dict[str, Any] | None = None,
        log: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = lambda: None,
        ranks: Ranks = ALONE,
    ) -> "NoiseCorrector":
        """Learn the law of inverse noise (n, *shape); rows that are nan, samples that did not invert, are left out. A
        source, such as `InverseNoise.source()`, has none of these.

        device: to train on, by default that of the noise. interpolant: "trigonometric", "linear", or "affine": mean and
        covariance alone, without training. network: config of the field, see `networks.make_field`. settings: of the
        training; by default a tenth of the rows is held out and ends it. folder: of checkpoints, from which the same
        call goes on; identity: what else must be the same then. ranks: among which the rows of a step are dealt.
        Raises InputError.
        """
        rows, left_out = (noise, 0) if not isinstance(noise, Tensor) else _whole(noise)
        if left_out:
            log(f"{left_out} rows of noise are not finite and left out")
        first = rows.rows(torch.arange(1), 0)
        shape = tuple(first.shape[1:])
        summary: dict[str, Any] = {"rows": len(rows), "left_out": left_out}
        if interpolant == "affine":
            affine = Affine(shape)
            affine.fit(rows.rows(torch.arange(len(rows)), 0))
            return cls("affine", shape, affine, {}, steps=1, base_steps=base_steps, summary=summary)
        path = Interpolant(interpolant)
        settings = FitSettings(steps=6000, learning_rate=3e-4, held_out=0.1) if settings is None else settings
        config = default_field(shape) if network is None else network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            field = make_field(shape, {**config, "zero": True}).to(first.device if device is None else device)
        fitted = fit_field(
            field, rows, path, settings, folder=folder, identity={"network": config, **(identity or {})}, log=log,
            check=check, ranks=ranks,
        )  # fmt: skip
        summary |= {"trained_steps": fitted.steps, "history": fitted.history}
        return cls(interpolant, shape, fitted.network, config, steps=steps, base_steps=base_steps, summary=summary)

    def __call__(self, z: Tensor) -> Tensor:
        """z: (B, *shape), in any floating dtype, which the result has too. Raises InputError."""
        if tuple(z.shape[1:]) != self.shape or not z.is_floating_point():
            raise InputError(
                f"the corrector takes (B, {', '.join(map(str, self.shape))}) floating, got {tuple(z.shape)}"
            )
        self.network.to(z.device)
        with torch.no_grad():
            state = z.to(torch.float32)
            if isinstance(self.network, Affine):
                return self.network(state).to(z.dtype)
            return Interpolant(self.kind).integrate(self.network, state, self.steps).to(z.dtype)

    def save(self, folder: Path | str) -> None:
        """Write a folder of safetensors and JSON, whole or not at all. Raises StorageError."""
        described = {
            "kind": self.kind, "shape": list(self.shape), "network": self.config, "steps": self.steps,
            "base_steps": self.base_steps, "summary": self.summary,
        }  # fmt: skip
        weights = tensor_bytes(self.network.state_dict())
        write_folder(Path(folder), {_CONFIG: to_json(described), _WEIGHTS: weights})

    @classmethod
    def load(cls, folder: Path | str) -> "NoiseCorrector":
        """Read what `save` wrote. Raises CheckpointError."""
        files = read_folder(Path(folder))
        with told_as_damage(f"{folder}: not a corrector"):
            config = json_of(files[_CONFIG])
            shape = tuple(config["shape"])
            # "told" in files of earlier versions.
            kind, summary = config["kind"], dict(config["summary" if "summary" in config else "told"])
            network = Affine(shape) if kind == "affine" else make_field(shape, {**config["network"], "zero": True})
            network.load_state_dict(tensors_from_bytes(files[_WEIGHTS], Path(folder) / _WEIGHTS))
            network.requires_grad_(False)
            return cls(kind, shape, network, config["network"], steps=config["steps"], base_steps=config["base_steps"],
                       summary=summary)  # fmt: skip


class Affine(nn.Module):
    """z -> mean + L z with L L^T the covariance: the best map where inverse noise is Gaussian."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        size = math.prod(shape)
        if size > _LARGEST_AFFINE:
            raise InputError(f"an affine corrector of {size} numbers: at most {_LARGEST_AFFINE}, its matrix is square")
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))

    def fit(self, noise: Tensor) -> None:
        """Mean and covariance of the rows, in float64."""
        flat = noise.flatten(1).to(torch.float64)
        covariance = torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1])
        values, vectors = torch.linalg.eigh(covariance)
        # The symmetric root, the nearest one to the identity; it exists for singular covariances, too.
        root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
        self.mean.copy_(flat.mean(dim=0))
        self.factor.copy_(root)

    def forward(self, z: Tensor) -> Tensor:
        return (self.mean + z.flatten(1) @ self.factor.T).view_as(z)


def _whole(noise: Tensor) -> tuple[Rows, int]:
    """The rows that are numbers, and how many are not."""
    if noise.ndim < 2 or not noise.is_floating_point():
        raise InputError(f"noise is {noise.dtype} {tuple(noise.shape)}: (n, ...) floating is needed")
    rows = noise[torch.isfinite(noise.flatten(1)).all(dim=1)].to(torch.float32)
    if rows.shape[0] < 10:
        raise InputError(f"{rows.shape[0]} of {noise.shape[0]} rows of noise are whole: at least 10 are needed")
    return Rows(rows), noise.shape[0] - rows.shape[0]
