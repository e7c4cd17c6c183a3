"""Tacotron 2 against tensors that NVIDIA's reference code computed."""

import pytest
import torch

from fastglow import Tacotron2, Tacotron2Loss

from .tiny_tacotron2 import NO_DROPOUT

OUTPUTS = ("mel", "mel_postnet", "gate", "alignments")


@pytest.fixture
def tiny(golden):
    return golden("tacotron2_tiny")


def build(tiny, **overrides):
    model = Tacotron2(**{**tiny.config, **NO_DROPOUT, **overrides})
    model.load_state_dict(tiny.group("state"))
    return model


def forward_input(tiny):
    text, lengths = tiny["input/text"], tiny["input/input_lengths"]
    return text, lengths, tiny["input/mel"], int(lengths.max()), tiny["input/output_lengths"]


def test_state_dict_has_the_references_keys_and_order(tiny):
    assert list(Tacotron2(**tiny.config).state_dict()) == list(tiny.group("state"))


def test_eval_forward(tiny):
    outputs = build(tiny).eval()(forward_input(tiny))
    for name, output in zip(OUTPUTS, outputs, strict=True):
        torch.testing.assert_close(output, tiny[f"eval/{name}"], atol=1e-5, rtol=1e-5)


def test_train_forward_loss_and_every_gradient(tiny):
    model = build(tiny, mask_padding=False).train()
    outputs = model(forward_input(tiny))
    for name, output in zip(OUTPUTS, outputs, strict=True):
        torch.testing.assert_close(output, tiny[f"train/{name}"], atol=1e-5, rtol=1e-5)
    loss = Tacotron2Loss()(outputs, (tiny["input/mel"], tiny["input/gate"]))
    torch.testing.assert_close(loss, tiny["train/loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    gradients = tiny.group("grad")
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if name.endswith("0.conv.bias"):
            # Batch normalisation removes the mean: the exact gradient is 0, both sides are rounding.
            assert expected.abs().max() < 1e-6
            assert parameter.grad.abs().max() < 1e-6
        else:
            assert (parameter.grad - expected).norm() < 1e-4 * expected.norm(), name


def test_batched_infer_gives_every_item_its_single_result_in_any_order(tiny):
    model = build(tiny).eval()
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(tiny["infer/gate_bias"])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        mel, lengths, alignments = model.infer(tiny["input/text"][order], tiny["input/input_lengths"][order], seed=0)
        for row, item in enumerate(order):
            expected = tiny.group(f"infer_single/{item}")
            expected_mel, expected_alignment = expected["mel_postnet"][0], expected["alignments"][0]
            n_frames, n_inputs = expected_alignment.shape
            assert lengths[row] == expected["mel_lengths"][0]
            assert lengths.dtype == torch.int32
            torch.testing.assert_close(mel[row, :, :n_frames], expected_mel, atol=1e-5, rtol=0)
            torch.testing.assert_close(alignments[row, :n_frames, :n_inputs], expected_alignment, atol=1e-5, rtol=0)
            assert not mel[row, :, n_frames:].any()
            assert not alignments[row, n_frames:].any()
            assert not alignments[row, :, n_inputs:].any()


def test_unsorted_single_item_equals_the_references_batched_first_item(tiny):
    """The longest item has no padding, so the reference's batched result holds for it as well."""
    model = build(tiny).eval()
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(tiny["infer/gate_bias"])
    mel, lengths, alignments = model.infer(tiny["input/text"][:1], tiny["input/input_lengths"][:1])
    torch.testing.assert_close(mel, tiny["infer/mel_postnet"][:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(alignments, tiny["infer/alignments"][:1], atol=1e-5, rtol=0)
    assert torch.equal(lengths, tiny["infer/mel_lengths"][:1])
