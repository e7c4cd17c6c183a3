"""Parts of an utterance: the receptive field, and the audio of a part with its context."""

import random

import pytest
import torch

from .test_waveglow import STRUCTURES, build


@pytest.fixture(params=STRUCTURES)
def model(request):
    return build(**STRUCTURES[request.param])


def part_of(model, mel, start, stop, context, seed):
    """Audio of frames [start, stop) from the mel within `context`."""
    before, after = context
    first, last = max(0, start - before), min(mel.shape[2], stop + after)
    audio = model.infer(mel[:, :, first:last], seed=seed, first_frame=first)
    stride = model.config.upsample_stride
    return audio[:, (start - first) * stride : (stop - first) * stride]


def test_parts_with_the_receptive_field_are_the_whole(model):
    n_frames = 2 * sum(model.receptive_field) + 7
    mel = torch.randn(2, model.n_mel_channels, n_frames, dtype=torch.float64)
    whole = model.infer(mel, seed=[3, 4])
    cuts = [0, *sorted(random.sample(range(1, n_frames), 4)), n_frames]
    parts = [part_of(model, mel, a, b, model.receptive_field, [3, 4]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-10, rtol=0)


def test_the_receptive_field_is_no_larger_than_needed(model):
    """A frame one further away has no effect at all, and one at its edge can have one."""
    before, after = model.receptive_field
    mel = torch.randn(1, model.n_mel_channels, before + after + 3, dtype=torch.float64)
    whole = model.infer(mel, seed=1)
    middle = slice((before + 1) * model.config.upsample_stride, (before + 2) * model.config.upsample_stride)
    for frame, inside in ((0, False), (before + after + 2, False), (before + 1, True)):
        changed = mel.clone()
        changed[:, :, frame] += 1
        assert bool((model.infer(changed, seed=1) - whole)[:, middle].abs().max()) == inside


def test_the_field_of_the_published_models():
    """12 flows of 8 layers see 12 * 255 groups of 8 samples each way, and the upsampling 3 frames back."""
    assert build(
        n_flows=12, n_early_every=4, WN_config={"n_layers": 8, "n_channels": 4, "kernel_size": 3},
        upsample_kernel_size=1024, upsample_stride=256,
    ).receptive_field == (99, 96)  # fmt: skip


def test_items_may_begin_at_different_frames():
    model = build()
    mel = torch.randn(2, model.n_mel_channels, 5, dtype=torch.float64)
    both = model.infer(mel, seed=[7, 8], first_frame=torch.tensor([0, 900]))
    for item, (seed, first) in enumerate(((7, 0), (8, 900))):
        alone = model.infer(mel[item : item + 1], seed=seed, first_frame=first)
        torch.testing.assert_close(both[item : item + 1], alone, atol=1e-12, rtol=0)
    assert (model.infer(mel, seed=[7, 8]) - both)[1].abs().max() > 1e-3
