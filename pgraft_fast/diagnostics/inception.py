"""Features of the Inception network of FID, through torch-fidelity and the user's copy of its weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pgraft_fast.errors import InputError


def inception_features(weights: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """(features, name): features takes pictures (n, 3 or 1, H, W) in [-1, 1] to (n, 2048); name tells library, version
    and resize, which a distance is worth nothing without.

    weights: pt_inception-2015-12-05 as torch-fidelity loads it, on disk; nothing is downloaded. Heusel et al. 2017,
    arXiv 1706.08500. Raises InputError without the library or the file.
    """
    if not weights.is_file():
        raise InputError(
            f"{weights}: no such file; torch-fidelity's releases hold weights-inception-2015-12-05-6726825d.pth"
        )
    try:
        import torch_fidelity
    except (ImportError, RuntimeError) as error:  # A torchvision of another torch raises the latter.
        raise InputError(f"Inception features need torch-fidelity ({error}): pip install 'pgraft_fast[fid]'") from error
    try:
        network = torch_fidelity.FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
    except Exception as error:  # What a broken pickle raises is not listed anywhere.
        raise InputError(f"{weights}: no weights of InceptionV3 ({type(error).__name__})") from error

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        device = next(network.buffers()).device
        if device != x.device:
            network.to(x.device)
        levels = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
        return network(levels.expand(-1, 3, -1, -1))[0]

    return features, (
        f"InceptionV3 pool, torch-fidelity {torch_fidelity.__version__}, 8-bit pictures resized to 299 x 299 "
        "bilinearly as in TensorFlow 1"
    )
