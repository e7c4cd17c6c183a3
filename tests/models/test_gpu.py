"""The models on a CUDA device against the same models on the CPU."""

import pytest
import torch

from fastglow import Tacotron2, Tacotron2Loss, WaveGlow, WaveGlowLoss

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def float32_as_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def tacotron2(golden):
    data = golden("tacotron2_tiny")
    model = Tacotron2(**data.config)
    model.load_state_dict(data.group("state"))
    return model.eval(), data


@pytest.fixture
def waveglow(golden):
    data = golden("waveglow_tiny")
    model = WaveGlow(**data.config)
    model.load_state_dict(data.group("state"))
    return model.eval(), data


def test_tacotron2_infer_as_on_the_cpu(tacotron2):
    """The prenet's dropout is the same on both: its noise depends only on the seed."""
    model, data = tacotron2
    text, lengths = data["input/text"], data["input/input_lengths"]
    model.decoder.max_decoder_steps = 12
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(-100.0)
    with pytest.warns(UserWarning, match="did not fire"):
        expected = model.infer(text, lengths, seed=3)
        found = model.cuda().infer(text.cuda(), lengths.cuda(), seed=3)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b.cpu(), a, atol=1e-3, rtol=0)


def test_waveglow_infer_as_on_the_cpu(waveglow):
    model, data = waveglow
    lengths = torch.tensor([7, 12])
    expected = model.infer(data["input/mel"], 0.7, lengths=lengths, seed=3)
    found = model.cuda().infer(data["input/mel"].cuda(), 0.7, lengths=lengths.cuda(), seed=3)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)


def test_waveglow_with_lengths_in_a_cuda_graph(waveglow):
    """The lengths are read on replay, not on recording."""
    model, data = waveglow
    model.cuda()
    mel, noise, lengths = data["input/mel"].cuda(), data["infer/noise"].cuda(), torch.tensor([7, 12]).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model.infer(mel, 0.7, lengths=lengths, noise=noise)  # folds the weights and loads the kernels
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        audio = model.infer(mel, 0.7, lengths=lengths, noise=noise)
    lengths.copy_(torch.tensor([12, 5]))
    graph.replay()
    expected = model.infer(mel, 0.7, lengths=lengths, noise=noise)
    assert bool(expected[0].any()) and not expected[1, 5 * model.config.upsample_stride :].any()
    torch.testing.assert_close(audio, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_finite(tacotron2, waveglow, dtype):
    model, data = tacotron2
    model.decoder.max_decoder_steps = 12
    with torch.no_grad():
        model.decoder.gate_layer.linear_layer.bias.fill_(-100.0)
    with pytest.warns(UserWarning, match="did not fire"):
        mel, _, _ = model.cuda().to(dtype).infer(data["input/text"].cuda(), data["input/input_lengths"].cuda(), seed=3)
    assert mel.dtype == dtype
    assert mel.isfinite().all()
    model, data = waveglow
    audio = model.cuda().to(dtype).infer(data["input/mel"].cuda().to(dtype), 0.7, seed=3)
    assert audio.isfinite().all()
    assert audio.abs().max() > 0


def test_gradients_as_on_the_cpu(tacotron2, waveglow):
    model, data = waveglow
    gradients = {}
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        WaveGlowLoss()(model((data["input/mel"].to(device), data["input/audio"].to(device)))).backward()
        gradients[device] = {name: p.grad.cpu().clone() for name, p in model.named_parameters()}
    for name, expected in gradients["cpu"].items():
        assert (gradients["cuda"][name] - expected).norm() <= 1e-3 * expected.norm() + 1e-7, name

    model, data = tacotron2
    model = model.cuda().train()
    batch = [data[f"input/{name}"].cuda() for name in ("text", "input_lengths", "mel", "output_lengths")]
    output = model((*batch[:3], batch[0].shape[1], batch[3]))
    Tacotron2Loss()(output, (batch[2], data["input/gate"].cuda())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
