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
    """(outputs, gradients by name) under autocast if dtype is a half."""
    halves = torch.float16, torch.bfloat16
    model.zero_grad()
    with torch.autocast("cuda", dtype if dtype in halves else torch.float16, enabled=dtype in halves):
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
            continue  # batch normalisation takes the mean out again: all sides are rounding
        error, usual = (our_gradients[name] - truth).norm(), (plain_gradients[name] - truth).norm()
        assert error <= 3 * max(usual, 1e-5 * truth.norm()), name
