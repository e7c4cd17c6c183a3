"""The average of the weights: its formula, resuming it, and inference with it."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastglow import FastglowError, Tacotron2, WaveGlow
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.train.ema import ExponentialMovingAverage

from .conftest import MODELS, SMALL_TACOTRON2, SMALL_WAVEGLOW


def new_model(name):
    return Tacotron2(**SMALL_TACOTRON2) if name == "tacotron2" else WaveGlow(**SMALL_WAVEGLOW)


@torch.no_grad()
def step(model):
    """Changes every parameter and buffer, as a training step does."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.add_(0.1 * torch.rand_like(tensor) if tensor.is_floating_point() else 1)


def infer(model):
    if isinstance(model, WaveGlow):
        return [model.infer(torch.linspace(-3, 0, 160).view(1, 80, 2), seed=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecoderStepLimitWarning)
        return list(model.infer(torch.arange(1, 6)[None], torch.tensor([5]), seed=1, max_steps=[3]))


def doubles(model):
    return {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("name", MODELS)
def test_follows_the_formula(name, decay):
    model = new_model(name)
    ema = ExponentialMovingAverage(model, decay)
    step(model)
    ema.update(model)
    expected = doubles(model)  # the first update copies
    for n in range(1, 6):
        step(model)
        ema.update(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = {key: d * expected[key] + (1 - d) * value for key, value in doubles(model).items()}
    assert ema.updates == 6
    assert doubles(ema.model).keys() == expected.keys()
    for key, value in doubles(ema.model).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6, msg=key)
    buffers = dict(model.named_buffers())
    assert bool(buffers) == (name == "tacotron2")
    for key, buffer in ema.model.named_buffers():
        assert torch.equal(buffer, buffers[key]) and buffer.dtype == buffers[key].dtype, key


def test_decay_ends_at_its_value():
    """Of the published formula at large counts, on one number."""
    model = nn.Linear(1, 1, bias=False).double()
    ema = ExponentialMovingAverage(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for updates, d in ((8_989, 8990 / 8999), (8_991, 0.999), (100_000, 0.999)):
        ema.restore({"weight": torch.zeros(1, 1, dtype=torch.float64)}, updates)
        ema.update(model)
        assert ema.model.weight.item() == pytest.approx(1 - d, rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_restored_average_continues_bit_for_bit(tmp_path, name):
    model = new_model(name)
    ema = ExponentialMovingAverage(model, 0.9)
    for _ in range(3):
        step(model)
        ema.update(model)
    path = tmp_path / "state.pt"
    torch.save({"state_dict": ema.model.state_dict(), "updates": ema.updates}, path)
    restored = ExponentialMovingAverage(new_model(name), 0.9)
    restored.restore(**torch.load(path, weights_only=True))
    for _ in range(3):
        step(model)
        ema.update(model)
        restored.update(model)
    assert restored.updates == ema.updates == 6
    actual = restored.model.state_dict()
    assert all(torch.equal(actual[key], value) for key, value in ema.model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_inference_follows_each_update(name):
    model = new_model(name)
    step(model)  # WN's last convolution starts at zero
    ema = ExponentialMovingAverage(model, 0.5)
    previous = infer(ema.model)
    for _ in range(2):
        step(model)
        ema.update(model)
        actual = infer(ema.model)
        fresh = copy.deepcopy(ema.model)  # a copy has no folded weights
        assert all(map(torch.equal, actual, infer(fresh)))
        assert not torch.equal(actual[0], previous[0])
        previous = actual


@pytest.mark.parametrize("name", MODELS)
def test_the_trained_model_is_left_alone(name):
    model = new_model(name).train()
    before = copy.deepcopy(model.state_dict())
    ema = ExponentialMovingAverage(model, 0.5)
    assert all(torch.equal(before[key], value) for key, value in ema.model.state_dict().items())
    ema.update(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    shared = {x.data_ptr() for x in model.state_dict().values()} & {
        x.data_ptr() for x in ema.model.state_dict().values()
    }
    assert not shared


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_wrong_decay_is_an_error(decay):
    with pytest.raises(FastglowError, match=f"^ema={decay} must be at least 0 and below 1"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)


@pytest.mark.parametrize("updates", [-1, 1.5, True, None, 2**63])
def test_a_damaged_count_is_an_error(updates):
    ema = ExponentialMovingAverage(nn.Linear(1, 1), 0.5)
    with pytest.raises(FastglowError, match=f"^updates={updates} .* must be a count"):
        ema.restore(ema.model.state_dict(), updates)
