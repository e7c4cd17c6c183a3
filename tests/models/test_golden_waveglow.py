"""WaveGlow against tensors that NVIDIA's reference code computed."""

import pytest
import torch

from fastglow import WaveGlow, WaveGlowLoss


@pytest.fixture(params=["waveglow_tiny", "waveglow_denoiser"])
def data(request, golden):
    return golden(request.param)


@pytest.fixture
def model(data):
    model = WaveGlow(**data.config)
    model.load_state_dict(data.group("state"))
    return model


def test_state_dict_has_the_references_keys(model, data):
    assert model.state_dict().keys() == data.group("state").keys()


def test_forward_loss_and_every_gradient(model, data):
    z, log_s_list, log_det_list = model((data["input/mel"], data["input/audio"]))
    torch.testing.assert_close(z, data["train/z"], atol=1e-5, rtol=0)
    for k, log_s in enumerate(log_s_list):
        torch.testing.assert_close(log_s, data[f"train/log_s.{k}"], atol=1e-5, rtol=0)
    positions = z.shape[0] * z.shape[2]
    for k, log_det in enumerate(log_det_list):
        # The reference multiplies a float32 log-determinant, and its rounding, by the number of positions.
        torch.testing.assert_close(log_det / positions, data[f"train/log_det_W.{k}"] / positions, atol=1e-5, rtol=0)
    assert len(log_s_list) == len(log_det_list) == data.config["n_flows"]
    loss = WaveGlowLoss()((z, log_s_list, log_det_list))
    torch.testing.assert_close(loss, data["train/loss"], atol=1e-5, rtol=0)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = data.group("grad")
    # The gradient of its 80-channel upsampler, most of the denoiser's file, was left out.
    assert parameters.keys() - gradients.keys() <= {"upsample.weight"}
    for name, gradient in gradients.items():
        assert (parameters[name].grad - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_infer_without_noise(model, data):
    audio = model.infer(data["input/mel"], sigma=0.0)
    torch.testing.assert_close(audio, data["infer/audio_sigma0"], atol=1e-5, rtol=0)


def test_infer_with_the_references_noise(model, data):
    audio = model.infer(data["input/mel"], sigma=0.7, noise=data["infer/noise"])
    torch.testing.assert_close(audio, data["infer/audio_sigma07"], atol=1e-5, rtol=0)
