"""Tacotron 2 beyond the golden tensors: training, several frames per step, masking, configurations."""

import pytest
import torch

from fastglow import Tacotron2, Tacotron2Loss
from fastglow.errors import FastglowError

from .tiny_tacotron2 import NO_DROPOUT, TINY, build, training_batch


def test_default_model_is_the_published_one():
    with torch.device("meta"):
        model = Tacotron2()
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_193_153
    assert len(model.state_dict()) == 84


def test_forward_shapes(r):
    (text, input_lengths, mel, *rest), _ = training_batch()
    outputs = build(n_frames_per_step=r)((text, input_lengths, mel, *rest))
    assert [tuple(x.shape) for x in outputs] == [(3, 5, 12), (3, 5, 12), (3, 12 // r), (3, 12 // r, 7)]
    alignments = outputs[3]
    torch.testing.assert_close(alignments.sum(dim=2), torch.ones(3, 12 // r), atol=1e-6, rtol=0)
    for item, length in enumerate(input_lengths.tolist()):
        assert not alignments[item, :, length:].any()


def test_an_incomplete_last_step_is_refused():
    (text, input_lengths, mel, *rest), _ = training_batch()
    with pytest.raises(FastglowError, match="11 mel frames .* n_frames_per_step=2: pad"):
        build(n_frames_per_step=2)((text, input_lengths, mel[:, :, :11], *rest))


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_trains(r, batch_size, mask_padding):
    model = build(n_frames_per_step=r, mask_padding=mask_padding).train()
    inputs, targets = training_batch(batch_size)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = Tacotron2Loss()(model(inputs), targets)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


def test_gradients_reach_every_parameter(r):
    # In eval mode: the batch statistics of training cancel the biases of the convolutions before them.
    model = build(n_frames_per_step=r, **NO_DROPOUT).double()
    inputs, targets = training_batch(dtype=torch.float64)
    Tacotron2Loss()(model(inputs), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-12, name


def test_every_gradient_by_finite_differences():
    """The whole model along random directions of all parameters at once."""
    model = build(n_frames_per_step=2, **NO_DROPOUT).double()
    inputs, targets = training_batch(dtype=torch.float64)
    parameters = list(model.parameters())
    Tacotron2Loss()(model(inputs), targets).backward()
    for _ in range(3):
        directions = [torch.randn_like(p) for p in parameters]
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += step * direction
                losses.append(Tacotron2Loss()(model(inputs), targets).item())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += 1e-6 * direction
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_padding_is_masked(r):
    inputs, _ = training_batch()
    model = build(n_frames_per_step=r, **NO_DROPOUT)
    plain = model(inputs)
    model.config.mask_padding = True
    masked = model(inputs)
    for item, length in enumerate(inputs[4].tolist()):
        steps = -(-length // r)
        for before, after in zip(plain[:2], masked[:2], strict=True):
            assert torch.equal(after[item, :, :length], before[item, :, :length])
            assert not after[item, :, length:].any()
        assert torch.equal(masked[2][item, :steps], plain[2][item, :steps])
        assert (masked[2][item, steps:] == 1000).all()
    assert torch.equal(masked[3], plain[3])


def test_the_order_of_a_training_batch_does_not_matter(r):
    model = build(n_frames_per_step=r, **NO_DROPOUT).double()
    (text, input_lengths, mel, max_len, lengths), _ = training_batch(dtype=torch.float64)
    outputs = model((text, input_lengths, mel, max_len, lengths))
    order = input_lengths.argsort(descending=True)
    assert order.tolist() != [0, 1, 2]
    sorted_outputs = model((text[order], input_lengths[order], mel[order], max_len, lengths[order]))
    for output, sorted_output in zip(outputs, sorted_outputs, strict=True):
        torch.testing.assert_close(output[order], sorted_output, atol=1e-12, rtol=0)


def test_each_training_step_draws_new_dropout():
    inputs, _ = training_batch()
    model = build().train()
    torch.manual_seed(1)
    first, second = model(inputs)[0], model(inputs)[0]
    torch.manual_seed(1)
    assert torch.equal(model(inputs)[0], first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"symbols_embedding_dim": 8}, "symbols_embedding_dim=8 must equal encoder_embedding_dim=6"),
        ({"symbols_embedding_dim": 7, "encoder_embedding_dim": 7}, "encoder_embedding_dim=7 must be even"),
        ({"n_frames_per_step": 0}, "n_frames_per_step=0 must be at least 1"),
        ({"max_decoder_steps": 0}, "max_decoder_steps=0 must be at least 1"),
        ({"gate_threshold": float("nan")}, "gate_threshold=nan never stops"),
        ({"encoder_kernel_size": 4}, "encoder_kernel_size=4 must be odd"),
        ({"attention_location_kernel_size": 30}, "attention_location_kernel_size=30 must be odd"),
        ({"postnet_kernel_size": 2}, "postnet_kernel_size=2 must be odd"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(FastglowError, match=message) as error:
        Tacotron2(**{**TINY, **config})
    assert "\n" not in str(error.value)


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="speaker_embedding_dim"):
        Tacotron2(speaker_embedding_dim=3)
