"""The whole Tacotron 2 on the Triton kernels: NVIDIA's tensors, and full sizes."""

from collections.abc import Iterator

import pytest
import torch

from fastglow import Tacotron2, Tacotron2Loss
from fastglow.kernels import backend

IN_INTERPRETER = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
NO_DROPOUT = dict.fromkeys(
    ("p_attention_dropout", "p_decoder_dropout", "p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout"), 0.0
)
OUTPUTS = ("mel", "mel_postnet", "gate", "alignments")


@pytest.fixture(params=[pytest.param("cpu", marks=IN_INTERPRETER), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def tiny(golden):
    return golden("tacotron2_tiny")


def build(tiny, device: str, **overrides) -> Tacotron2:
    model = Tacotron2(**{**tiny.config, **NO_DROPOUT, **overrides})
    model.load_state_dict(tiny.group("state"))
    return model.to(device)


def forward_input(tiny, device: str) -> tuple:
    text, lengths, mel, mel_lengths = (
        tiny[f"input/{name}"].to(device) for name in ("text", "input_lengths", "mel", "output_lengths")
    )
    return text, lengths, mel, text.shape[1], mel_lengths


def test_train_forward_loss_and_every_gradient(tiny, device):
    model = build(tiny, device, mask_padding=False).train()
    before = backend.launches["teacher_forced_loop"]
    with backend.use_backend("triton"):
        outputs = model(forward_input(tiny, device))
        loss = Tacotron2Loss()(outputs, (tiny["input/mel"].to(device), tiny["input/gate"].to(device)))
        loss.backward()
    assert backend.launches["teacher_forced_loop"] > before
    for name, output in zip(OUTPUTS, outputs, strict=True):
        torch.testing.assert_close(output.cpu(), tiny[f"train/{name}"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss.cpu(), tiny["train/loss"], atol=1e-4, rtol=0)
    for name, parameter in model.named_parameters():
        expected, gradient = tiny[f"grad/{name}"], parameter.grad.cpu()
        if name.endswith("0.conv.bias"):
            # Batch normalisation takes the mean out again: the true gradient is 0, both sides are rounding.
            assert gradient.abs().max() < 1e-5
        else:
            assert (gradient - expected).norm() <= 1e-3 * expected.norm(), name
