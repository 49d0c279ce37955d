"""What pipelines return, as arrays, pictures and sounds."""

import io
import wave

import numpy as np
import pytest
import torch

from pgraft_fast.pipelines.loop import NotServedError
from pgraft_fast.pipelines.media import differ, media_of, medium_of, picture_of, wav_of

RATE = 16000


class Returned:
    def __init__(self, **held):
        vars(self).update(held)


def tone(hertz, seconds=0.5):
    return np.sin(2.0 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def test_pictures_videos_and_audio():
    picture = np.linspace(0.0, 1.0, 48, dtype=np.float32).reshape(4, 4, 3)
    for form in (picture, torch.from_numpy(picture).permute(2, 0, 1), (picture * 255.0).round().astype(np.uint8)):
        (image,) = media_of(Returned(images=[form]))
        assert medium_of(image) == "image" and np.array_equal(image, (picture * 255.0).round().astype(np.uint8))
    (video,) = media_of(Returned(frames=[[picture, picture]]))
    assert medium_of(video) == "video" and video.shape == (2, 4, 4, 3)
    (audio,) = media_of(Returned(audios=[tone(440.0)]))
    assert medium_of(audio) == "audio" and audio.shape == (1, RATE // 2)
    with pytest.raises(NotServedError, match=r"^Returned: what the pipeline returns is neither"):
        media_of(Returned())


def test_a_tone_in_its_spectrogram():
    """Low frequencies are at the bottom; the darkest row is that of the tone, in bands of RATE / 128."""
    for band in (5, 20, 50):
        shown = picture_of(tone(band * RATE / 128)[None])
        assert shown.shape == (128, 128, 3)
        spectrum = shown[64:, :, 0].astype(int)
        # The last columns hold the end of the sound.
        assert 63 - int(spectrum[:, 5:-5].mean(axis=1).argmin()) == band
        assert spectrum.min() == 0 and np.median(spectrum) == 255
    silent = picture_of(np.zeros((1, RATE), dtype=np.float32))
    assert silent.shape == (128, 128, 3) and silent[64:].min() == 255


def test_a_wav_file():
    stereo = np.stack((tone(440.0), 2.0 * tone(330.0)))
    with wave.open(io.BytesIO(wav_of(stereo, RATE))) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (2, 2, RATE)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, 2).T
    # Beyond full scale it is cut off, not wrapped around.
    assert np.abs(samples - 32767.0 * stereo.clip(-1.0, 1.0)).max() <= 0.51


def test_which_samples_differ():
    picture = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert not differ([picture], [picture], 0.0)
    # A byte that was rounded to its neighbour is the same.
    near = picture.copy()
    near[0, 0, 0] = 101
    assert not differ([near], [picture], 0.0)
    assert differ([picture + 10], [picture], 1e-2)
    assert differ([picture[:2]], [picture], 1.0)
    broken = tone(440.0)[None].copy()
    broken[0, 0] = np.nan
    assert differ([broken], [tone(440.0)[None]], 1e-2)
