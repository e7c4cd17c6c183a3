"""The whole Tacotron 2 on the Triton kernels: NVIDIA's tensors, and full sizes."""

import copy
import sys
from collections.abc import Iterator

import pytest
import torch

from fastglow import Tacotron2, Tacotron2Loss
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend
from fastglow.models.tacotron2 import DecoderStepLimitWarning

from ..kernels.checks import assert_as_exact_as

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
            # Batch normalisation removes the mean: the exact gradient is 0, both sides are rounding.
            assert gradient.abs().max() < 1e-5
        else:
            assert (gradient - expected).norm() <= 1e-3 * expected.norm(), name


def test_distributed_training_with_a_scaler_gives_the_same_gradients(tiny, device, tmp_path):
    """DistributedDataParallel's hooks see every parameter's gradient once; the scaler finds nothing infinite."""
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = build(tiny, device, mask_padding=False).train()
        text, lengths, mel, _, mel_lengths = forward_input(tiny, device)
        batch = text, lengths, mel[:, :, :4], text.shape[1], mel_lengths
        with backend.use_backend("triton"):
            sum(x.float().square().mean() for x in model(batch)[:3]).backward()
            expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            model.zero_grad()
            scaler = torch.amp.GradScaler(device, init_scale=64.0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            outputs = torch.nn.parallel.DistributedDataParallel(model)(batch)[:3]
            scaler.scale(sum(x.float().square().mean() for x in outputs)).backward()
        scaler.unscale_(optimizer)
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: n + m)


def train_step(model: Tacotron2, batch: tuple, dtype: torch.dtype) -> tuple[list, dict]:
    """(outputs, gradients by name), under autocast if dtype is 16 bits wide."""
    autocast_dtypes = torch.float16, torch.bfloat16
    model.zero_grad()
    with torch.autocast("cuda", dtype if dtype in autocast_dtypes else torch.float16, enabled=dtype in autocast_dtypes):
        outputs = model(batch)
    sum(x.to(batch[2].dtype).square().mean() for x in outputs[:3]).backward()
    return [x.detach() for x in outputs[:3]], {name: x.grad.clone() for name, x in model.named_parameters()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_published_size_is_as_good_as_pytorchs(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = Tacotron2(**NO_DROPOUT).cuda().train()
    lengths = torch.tensor([77, 50, 9], device="cuda")
    mel = torch.randn(3, 80, 61, device="cuda")
    batch = torch.randint(148, (3, 77), device="cuda"), lengths, mel, 77, torch.tensor([61, 40, 12], device="cuda")
    with backend.use_backend("triton"):
        train_step(model, batch, dtype)  # the next one replays graphs
        ours, our_gradients = train_step(model, batch, dtype)
    with backend.use_backend("reference"):
        plain, plain_gradients = train_step(model, batch, dtype)
        exact, exact_gradients = train_step(model.double(), (*batch[:2], mel.double(), *batch[3:]), torch.float64)
    for actual, usual, truth in zip(ours, plain, exact, strict=True):
        assert (actual - truth).norm() <= 2 * max((usual - truth).norm(), 1e-6 * truth.norm())
    for name, truth in exact_gradients.items():
        if name.endswith("0.conv.bias"):
            continue  # batch normalisation removes the mean: the exact gradient is 0, all sides are rounding
        error, usual = (our_gradients[name] - truth).norm(), (plain_gradients[name] - truth).norm()
        assert error <= 3 * max(usual, 1e-5 * truth.norm()), name


@pytest.fixture(params=["one kernel", "frame by frame"])
def decoding(request, monkeypatch) -> str:
    """All frames in one launch, or a few launches per frame (in a CUDA graph on a GPU)."""
    if request.param == "frame by frame":
        # The package's attribute of this name is the operation.
        monkeypatch.setattr(sys.modules["fastglow.kernels.decode_loop"], "PERSISTENT_ITEMS", 0)
    return request.param


def stopping_model(tiny, device: str, **overrides) -> Tacotron2:
    model = build(tiny, device, **overrides).eval()
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(tiny["infer/gate_bias"])
    return model


def test_batched_infer_equals_single_infer(tiny, device, decoding):
    model = stopping_model(tiny, device)
    order = [2, 0, 1]
    text, lengths = tiny["input/text"][order].to(device), tiny["input/input_lengths"][order].to(device)
    before = backend.launches["decode_loop"]
    with backend.use_backend("triton"):
        mel, mel_lengths, alignments = model.infer(text, lengths, seed=0)
    assert backend.launches["decode_loop"] > before
    if device == "cpu":
        assert (backend.launches["decode_loop"] - before == 2) == (decoding == "one kernel")
    for row, item in enumerate(order):
        expected = tiny.group(f"infer_single/{item}")
        n_frames, n_inputs = expected["alignments"].shape[1:]
        assert mel_lengths[row] == expected["mel_lengths"][0]
        torch.testing.assert_close(mel[row, :, :n_frames].cpu(), expected["mel_postnet"][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            alignments[row, :n_frames, :n_inputs].cpu(), expected["alignments"][0], atol=1e-4, rtol=0
        )
        assert not mel[row, :, n_frames:].any()
        assert not alignments[row, n_frames:].any()
        assert not alignments[row, :, n_inputs:].any()


def test_seeded_dropout_is_the_references_and_weights_are_folded_again_after_a_change(tiny, device, decoding):
    model = stopping_model(tiny, device, p_prenet_dropout=0.5)
    text, lengths = tiny["input/text"][:2].to(device), tiny["input/input_lengths"][:2].to(device)
    model.decoder.max_decoder_steps = 5
    results = {}
    for name in ("triton", "reference"):
        with backend.use_backend(name), pytest.warns(DecoderStepLimitWarning):
            results[name] = model.infer(text, lengths, seed=[3, 4])[0]
    torch.testing.assert_close(results["triton"], results["reference"], atol=1e-5, rtol=0)
    with torch.no_grad():
        model.decoder.prenet.layers[0].linear_layer.weight.mul_(1.5)
        model.decoder.attention_layer.location_layer.location_conv.conv.weight.mul_(2.0)
    before = results["triton"]
    for name in ("triton", "reference"):
        with backend.use_backend(name), pytest.warns(DecoderStepLimitWarning):
            results[name] = model.infer(text, lengths, seed=[3, 4])[0]
    torch.testing.assert_close(results["triton"], results["reference"], atol=1e-5, rtol=0)
    assert not torch.allclose(results["triton"], before, atol=1e-3)


def test_an_item_that_never_stops_does_not_affect_the_others(tiny, device, decoding):
    model = stopping_model(tiny, device)
    model.decoder.max_decoder_steps = 14
    text, lengths = tiny["input/text"].to(device), tiny["input/input_lengths"].to(device)
    with backend.use_backend("triton"), pytest.warns(DecoderStepLimitWarning, match=r"item\(s\) \[0\] did not fire"):
        mel, mel_lengths, _ = model.infer(text, lengths, seed=0)
    assert mel_lengths[0] == 14
    for item in (1, 2):
        expected = tiny.group(f"infer_single/{item}")["mel_postnet"][0]
        torch.testing.assert_close(mel[item, :, : expected.shape[1]].cpu(), expected, atol=1e-4, rtol=0)


def endless_model(max_steps: int) -> Tacotron2:
    """At the published size, with random weights, on the GPU; the gate never fires."""
    model = Tacotron2(max_decoder_steps=max_steps).eval()
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(-100.0)
    return model.cuda()


def inferred(model: Tacotron2, text: torch.Tensor, lengths: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Mels of the kernels, of PyTorch with random rounding errors, and of float64; the gate does not fire."""

    def infer_mels(model: Tacotron2) -> torch.Tensor:
        with pytest.warns(DecoderStepLimitWarning):
            return model.infer(text, lengths, seed=seed)[0]

    with backend.use_backend("triton"):
        ours = infer_mels(model)
    with backend.use_backend("reference"):
        return [ours, perturbed(lambda: infer_mels(model), n_runs=4), infer_mels(copy.deepcopy(model).double())]


def test_infer_in_half_precision_is_as_accurate_as_pytorchs(tiny, device, decoding):
    model = stopping_model(tiny, device)
    model.decoder.max_decoder_steps = 6
    text, lengths = tiny["input/text"].to(device), tiny["input/input_lengths"].to(device)
    ours, references, exact = inferred(model.half(), text, lengths, seed=0)
    assert_as_exact_as(ours, references, exact, factor=2, cap=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_infer_at_published_size_is_as_accurate_as_pytorchs(dtype, batch_size):
    model = endless_model(40)
    lengths = torch.randint(20, 129, (batch_size,), device="cuda")
    text = torch.randint(148, (batch_size, 128), device="cuda")
    lengths[0] = 128
    ours, references, exact = inferred(model.to(dtype), text, lengths, seed=1)
    errors = [(x.double() - exact).norm() for x in (ours, *references)]
    assert errors[0] <= 2 * max(errors[1:])


@pytest.mark.gpu
def test_infer_under_autocast():
    model = endless_model(20)
    text, lengths = torch.randint(148, (2, 50), device="cuda"), torch.tensor([50, 31], device="cuda")
    before = backend.launches["decode_loop"]
    with torch.autocast("cuda", torch.float16), pytest.warns(DecoderStepLimitWarning):
        mel, _, _ = model.infer(text, lengths, seed=1)
    assert backend.launches["decode_loop"] > before
    assert mel.isfinite().all()
    with backend.use_backend("reference"), pytest.warns(DecoderStepLimitWarning):
        expected, _, _ = model.infer(text, lengths, seed=1)
    assert (mel - expected).norm() <= 0.05 * expected.norm()
