"""The features of layouts, which Frechet distances are taken in."""

import torch
from pages import drawn, shuffled

from pgraft_fast.tasks.layouts.conditions import condition_from
from pgraft_fast.tasks.layouts.elements import pack
from pgraft_fast.tasks.layouts.features import LayoutDecoder, LayoutEncoder, layout_features


def samples_of(labels, boxes):
    everything = torch.ones_like(labels, dtype=torch.bool)
    return pack(labels, boxes, 5), condition_from(labels, boxes, everything, ~everything, 5)


def test_features_are_those_of_the_set_alone():
    torch.manual_seed(0)
    encoder = LayoutEncoder().eval()
    labels, boxes, count = drawn(n=20)
    boxes = boxes.nan_to_num()
    features = layout_features(encoder, *samples_of(labels, boxes))
    assert features.shape == (20, 64) and not features.requires_grad
    torch.testing.assert_close(layout_features(encoder, *samples_of(*shuffled(labels, boxes, count))), features)
    torch.testing.assert_close(encoder(labels, boxes), features, rtol=1e-4, atol=1e-5)
    samples, condition = samples_of(labels, boxes)
    # Neither padding, nor more of it, nor how large the largest column of the label is.
    changed = samples.where((labels >= 0)[:, :, None], 7.0)
    changed[:, :, 4:] *= 0.3
    assert torch.equal(layout_features(encoder, changed, condition), features)
    wider = torch.nn.functional.pad(condition, (0, 0, 0, 4))
    wider[:, 25:, 0] = -1
    padded = torch.nn.functional.pad(samples, (0, 0, 0, 4), value=3.0)
    torch.testing.assert_close(layout_features(encoder, padded, wider), features)
    moved = boxes.clone()
    moved[:, 0, 0] += 0.05
    assert float((layout_features(encoder, *samples_of(labels, moved)) - features).abs().amax(dim=1).min()) > 0


def test_broken_samples_have_finite_features():
    labels, boxes, _ = drawn(n=4)
    samples, condition = samples_of(labels, boxes.nan_to_num())
    samples[0], samples[1, 0, 0], samples[2] = torch.nan, torch.inf, 1e20
    assert bool(layout_features(LayoutEncoder().eval(), samples, condition).isfinite().all())
    assert layout_features(LayoutEncoder().eval(), samples[:0], condition[:0]).shape == (0, 64)


def test_the_decoder_gives_a_logit_labels_and_boxes():
    labels, boxes, _ = drawn(n=3)
    real, kinds, places = LayoutDecoder()(LayoutEncoder()(labels, boxes.nan_to_num()), labels >= 0)
    assert real.shape == (3,) and kinds.shape == (3, 25, 5) and places.shape == (3, 25, 4)
