"""What a pipeline returns, as arrays: pictures, videos or audio, one array a sample."""

import io
import wave
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.pipelines.loop import NotServedError

Medium = Literal["image", "video", "audio"]
_HOLDERS = ("images", "frames", "audios", "videos", "video", "audio")
_FRAMES = 4
_AUDIO_PICTURE = (64, 128)
# A spectrogram's frequencies, and decibels from white to black.
_BANDS, _RANGE = 64, 80.0


def media_of(returned: Any) -> list[np.ndarray]:
    """The samples of what a call returned: pictures (H, W, 3) uint8, videos (F, H, W, 3) uint8, audio (channels,
    samples) float32. Raises NotServedError.
    """
    for name in _HOLDERS:
        samples = getattr(returned, name, None)
        if samples is not None:
            return [_array(sample) for sample in samples]
    if isinstance(returned, (tuple, list)) and len(returned):
        return [_array(sample) for sample in returned[0]]
    raise NotServedError(f"{type(returned).__name__}: what the pipeline returns is neither pictures, video nor audio")


def medium_of(sample: np.ndarray) -> Medium:
    """Which of the three it is."""
    return "image" if sample.ndim == 3 else "video" if sample.ndim == 4 else "audio"


def picture_of(sample: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 that shows a sample: itself, some frames side by side, or the wave of the first channel
    over its spectrogram.
    """
    if sample.ndim == 3:
        return sample
    if sample.ndim == 4:
        return np.concatenate(sample[np.linspace(0, len(sample) - 1, min(len(sample), _FRAMES)).astype(int)], axis=1)
    height, width = _AUDIO_PICTURE
    peaks = [float(np.abs(part).max()) if part.size else 0.0 for part in np.array_split(sample[0], width)]
    reach = np.asarray(peaks) / max(1e-12, *peaks) * height / 2.0
    away = np.abs(np.arange(height)[:, None] + 0.5 - height / 2.0)
    drawn = np.where(away <= reach, 0, 255).astype(np.uint8)
    return np.repeat(np.concatenate((drawn, _spectrogram(sample[0], width)))[..., None], 3, axis=-1)


def _spectrogram(samples: np.ndarray, width: int) -> np.ndarray:
    """(_BANDS, width) uint8: power in decibels below the most, low frequencies at the bottom."""
    length = 2 * _BANDS
    starts = np.linspace(0, max(0, len(samples) - length), width).astype(int)
    padded = np.pad(samples.astype(np.float64), (0, length))
    frames = np.stack([padded[start : start + length] for start in starts]) * np.hanning(length)
    power = np.abs(np.fft.rfft(frames, axis=1)[:, :_BANDS]) ** 2
    decibels = 10.0 * np.log10(np.maximum(power, 1e-30) / max(float(power.max()), 1e-12))
    grey = 255.0 * np.clip(-decibels / _RANGE, 0.0, 1.0)
    return np.flipud(grey.T).round().astype(np.uint8)


def wav_of(sample: np.ndarray, rate: float) -> bytes:
    """A WAV file of 16 bits of audio (channels, samples) in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(sample))
        out.setsampwidth(2)
        out.setframerate(round(rate))
        out.writeframes((np.clip(sample.T, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes())
    return file.getvalue()


def pixels_of(samples: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) float32 in [-1, 1] from (n, H, W, 3) uint8."""
    return samples.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def stacked(samples: Sequence[np.ndarray]) -> Tensor:
    """One tensor of samples of one shape."""
    return torch.from_numpy(np.stack(samples))


def differ(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], allowed: float) -> bool:
    """Whether samples are others. allowed: root mean square of differences, as a share of the range."""
    if [a.shape for a in mine] != [b.shape for b in theirs]:
        return True
    for a, b in zip(mine, theirs, strict=True):
        span = 255.0 if b.dtype == np.uint8 else max(float(np.abs(b).max()), 1e-12)
        # Of bytes one may be rounded to its neighbour.
        if not np.sqrt(np.square(a.astype(np.float64) - b).mean()) <= max(allowed, 2e-3) * span:
            return True
    return False


def _array(sample: Any) -> np.ndarray:
    if isinstance(sample, (list, tuple)):
        return np.stack([_array(frame) for frame in sample])
    if isinstance(sample, Tensor):
        array = sample.detach().float().cpu().numpy()
        array = np.moveaxis(array, -3, -1) if array.ndim >= 3 and array.shape[-3] in (1, 3) else array
    else:
        array = np.asarray(sample)
    if array.ndim < 3 and array.dtype != np.uint8:
        return np.atleast_2d(array.astype(np.float32))
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8:
        array = (array.astype(np.float32).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
