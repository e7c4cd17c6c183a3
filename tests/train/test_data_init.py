"""WaveGlow's initial weights that fit the data."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from fastglow.models import WaveGlow
from fastglow.train.data_init import interpolation
from fastglow.train.loop import Trainer
from fastglow.train.manifest import PreparedDataset

from .conftest import configs


@pytest.mark.parametrize("stride", [1, 4, 32])
@pytest.mark.parametrize("strides, more", [(1, 0), (1, 1), (2, 0), (2, 3), (4, 0)])
def test_interpolation_keeps_constants_and_fades_between_frames(stride, strides, more):
    size = strides * stride + more
    kernel = interpolation(size, stride)
    frames = torch.full((1, 1, 9), 3.0, dtype=torch.float64)
    made = torch.nn.functional.conv_transpose1d(frames, kernel.view(1, 1, -1), stride=stride)
    whole = slice(3 * stride, 6 * stride)  # away from the ends
    torch.testing.assert_close(made[0, 0, whole], torch.full((3 * stride,), 3.0, dtype=torch.float64))
    if size >= 2 * stride:
        step = torch.cat([torch.zeros(1, 1, 4), torch.ones(1, 1, 5)], dim=2).double()
        risen = torch.nn.functional.conv_transpose1d(step, kernel.view(1, 1, -1), stride=stride)[0, 0]
        ramp = (torch.arange(stride, dtype=torch.float64) + 0.5) / stride
        torch.testing.assert_close(risen[4 * stride : 5 * stride], ramp)


@pytest.mark.parametrize("upsample_to_groups", [False, True])
def test_fitted_weights_normalise_mels_and_audio(prepared, tmp_path, upsample_to_groups):
    config, model_config = configs("waveglow", prepared, tmp_path, fit_to_data=True)
    model_config = replace(model_config, upsample_to_groups=upsample_to_groups)
    trainer = Trainer("waveglow", config, model_config, progress=False)
    model = trainer.state.model
    dataset = PreparedDataset.open(prepared)
    upsampled, noise = [], []
    for item in dataset.items["train"]:
        mel = torch.from_numpy(dataset.mel(item).astype(np.float32))[None]
        audio = torch.from_numpy(dataset.samples(item).astype(np.float32))[None] / 2**15
        with torch.no_grad():
            hop = dataset.audio.hop_length
            stride = model.upsample.stride[0]
            upsampled.append(model.upsample(mel)[0, :, stride : mel.shape[2] * stride])
            noise.append(model((mel, audio[:, : mel.shape[2] * hop]))[0].flatten())
    of_frames = torch.cat(upsampled, dim=1)
    torch.testing.assert_close(of_frames.mean(dim=1), torch.zeros(len(of_frames)), atol=0.2, rtol=0)
    assert (of_frames.std(dim=1) - 0.9).abs().max() < 0.15  # interpolation smooths
    assert float(torch.cat(noise).square().mean()) == pytest.approx(1, rel=0.02)


def test_without_the_option_weights_are_those_of_the_model(prepared, tmp_path):
    config, model_config = configs("waveglow", prepared, tmp_path)
    trained = Trainer("waveglow", config, model_config, progress=False).state.model.state_dict()
    torch.manual_seed(config.seed)
    for name, tensor in WaveGlow(**asdict(model_config)).state_dict().items():
        assert torch.equal(trained[name], tensor), name
