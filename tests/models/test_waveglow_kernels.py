"""The whole WaveGlow on the Triton kernels: against NVIDIA's tensors; batching, folding and half precision."""

import copy

import pytest
import torch

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend

from ..kernels.checks import assert_as_exact_as

IN_INTERPRETER = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
OPERATIONS = {"affine_coupling", "invertible_conv1x1", "wavenet_layer", "weight_norm"}


@pytest.fixture(autouse=True)
def triton_backend():
    """Forces the Triton backend, and fails unless every operation of WaveGlow launched kernels."""
    before = backend.launches.copy()
    with backend.use_backend("triton"):
        yield
    assert OPERATIONS <= {op for op, n in (backend.launches - before).items() if n}


@pytest.fixture(params=[pytest.param("cpu", marks=IN_INTERPRETER), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


def build(data, device: str) -> WaveGlow:
    model = WaveGlow(**data.config)
    model.load_state_dict(data.group("state"))
    return model.to(device)


@pytest.mark.parametrize(
    ("name", "memory_saving"), [("waveglow_tiny", False), ("waveglow_denoiser", False), ("waveglow_denoiser", True)]
)
def test_forward_and_every_gradient(golden, name, device, memory_saving):
    data = golden(name)
    model = build(data, device)
    model.memory_saving = memory_saving
    z, log_s_list, log_det_list = model((data["input/mel"].to(device), data["input/audio"].to(device)))
    torch.testing.assert_close(z.cpu(), data["train/z"], atol=1e-4, rtol=0)
    for k, log_s in enumerate(log_s_list):
        torch.testing.assert_close(log_s.cpu(), data[f"train/log_s.{k}"], atol=1e-4, rtol=0)
    loss = WaveGlowLoss()((z, log_s_list, log_det_list))
    torch.testing.assert_close(loss.cpu(), data["train/loss"], atol=1e-4, rtol=0)
    before = backend.launches.copy()
    loss.backward()
    launched = backend.launches - before
    # Of a flow that it rebuilds, the backward pass runs the coupling network once more; its float64 has no kernels.
    n, rebuilt = len(model.WN), (len(model.WN) - 1) * memory_saving
    assert launched["weight_norm"] == n + rebuilt
    assert launched["affine_coupling"] == n - rebuilt
    assert launched["wavenet_layer"] > 0
    parameters = dict(model.named_parameters())
    for name, gradient in data.group("grad").items():
        assert (parameters[name].grad.cpu() - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("name", ["waveglow_tiny", "waveglow_denoiser"])
def test_infer(golden, name, device):
    data = golden(name)
    model = build(data, device)
    mel, noise = data["input/mel"].to(device), data["infer/noise"].to(device)
    audio = model.infer(mel, sigma=0.7, noise=noise)
    torch.testing.assert_close(audio.cpu(), data["infer/audio_sigma07"], atol=1e-4, rtol=0)


def test_batched_as_alone_and_refolded_after_a_change(golden, device):
    data = golden("waveglow_tiny")
    model = build(data, device)
    mel = data["input/mel"][:, :, :6].to(device)
    batched = model.infer(mel, lengths=torch.tensor([4, 6]), seed=[1, 2])
    alone = model.infer(mel[:1, :, :4], seed=1)
    torch.testing.assert_close(batched[:1, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    assert not batched[0, alone.shape[1] :].any()
    with torch.no_grad():
        model.WN[0].end.bias.add_(0.1)
        model.convinv[1].conv.weight.mul_(1.5)
    changed = model.infer(mel[:1, :, :4], seed=1)
    with backend.use_backend("reference"):
        fresh = build(data, device)
        fresh.load_state_dict(model.state_dict())
        expected = fresh.infer(mel[:1, :, :4], seed=1)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(changed, alone, atol=1e-2)


def test_half_precision_is_as_good_as_pytorchs(golden, device):
    data = golden("waveglow_tiny")
    mel, noise = data["input/mel"][:, :, :6], data["infer/noise"][:, :, :192]
    with backend.use_backend("reference"):
        expected = build(data, "cpu").double().infer(mel.double(), noise=noise.double())
        model = build(data, device).half()
        plain = perturbed(lambda: model.infer(mel.half().to(device), noise=noise.half().to(device)), n_runs=4)
    ours = build(data, device).half().infer(mel.half().to(device), noise=noise.half().to(device))
    assert ours.dtype == torch.float16
    assert_as_exact_as(ours, plain, expected, factor=2, cap=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("n_channels", [256, 512])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_published_size_is_as_good_as_pytorchs(n_channels, dtype):
    model = WaveGlow(80, 12, 8, 4, 2, {"n_layers": 8, "n_channels": n_channels, "kernel_size": 3}).cuda()
    with torch.no_grad():
        for wn in model.WN:
            wn.end.weight.normal_(std=0.01)  # zero in a new model
    mel, noise = torch.randn(1, 80, 63, device="cuda"), torch.randn(1, 8, 63 * 32, device="cuda")
    ours = copy.deepcopy(model).to(dtype).infer(mel.to(dtype), noise=noise.to(dtype))
    with backend.use_backend("reference"):
        plain = perturbed(lambda: copy.deepcopy(model).to(dtype).infer(mel.to(dtype), noise=noise.to(dtype)), n_runs=4)
        expected = model.to(dtype).double().infer(mel.to(dtype).double(), noise=noise.to(dtype).double())
    assert (ours - expected).abs().max() <= 2 * (plain - expected).abs().max()
