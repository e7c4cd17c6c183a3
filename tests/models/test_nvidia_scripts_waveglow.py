"""The calls that NVIDIA's inference and training scripts make of a WaveGlow, in their order."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastglow import Denoiser, FastglowError, WaveGlow, WaveGlowLoss, load_checkpoint, save_checkpoint
from fastglow.kernels import backend
from fastglow.modules import WN, InvertibleConv1x1

CONFIG = {
    "n_mel_channels": 3,
    "n_flows": 6,
    "n_group": 8,
    "n_early_every": 2,
    "n_early_size": 2,
    "WN_config": {"n_layers": 3, "n_channels": 10, "kernel_size": 3},
    "upsample_kernel_size": 32,
    "upsample_stride": 16,
}
MEL, AUDIO = torch.randn(2, 3, 7), 0.1 * torch.randn(2, 112)


def build(**config):
    model = WaveGlow(**{**CONFIG, **config}).eval()
    with torch.no_grad():
        for wn in model.WN:
            for name, parameter in wn.named_parameters():
                if name.startswith("end"):
                    parameter.normal_(std=0.1)
                elif name.endswith("weight_g"):
                    parameter.mul_(1.5)
    return model


def infer(model, **options):
    with torch.no_grad():
        return model.infer(MEL, 0.7, seed=3, **options)


def fused_conditioning(state, n_layers=3):
    """The names of current NVIDIA/waveglow: one `cond_layer` of all layers' rows."""
    result = {key: tensor for key, tensor in state.items() if ".cond_layers." not in key}
    for key in state:
        if ".cond_layers.0." in key:
            parts = [state[key.replace(".cond_layers.0.", f".cond_layers.{i}.")] for i in range(n_layers)]
            result[key.replace(".cond_layers.0.", ".cond_layer.")] = torch.cat(parts)
    return result


def separate_residual(state, n_channels=10):
    """The names of the first NVIDIA/waveglow: `res_layers` and `skip_layers`."""
    result = {}
    for key, tensor in state.items():
        if ".res_skip_layers." not in key:
            result[key] = tensor
            continue
        if len(tensor) > n_channels:
            result[key.replace("res_skip", "res")], tensor = tensor[:n_channels], tensor[n_channels:]
        result[key.replace("res_skip", "skip")] = tensor
    return result


def parametrized(state):
    """The names that PyTorch's parametrisation has."""
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    result = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        result[f"{layer}.{names.get(name, name)}"] = tensor
    return result


def unnormed(state):
    """The names that remove_weightnorm leaves."""
    result = {key: tensor for key, tensor in state.items() if not key.endswith(("weight_g", "weight_v"))}
    for key, v in state.items():
        if key.endswith("weight_v"):
            g = state[key.removesuffix("v") + "g"]
            result[key.removesuffix("_v")] = g * v / v.norm(dim=(1, 2), keepdim=True)
    return result


SPELLINGS = {
    "fused": [fused_conditioning],
    "separate": [separate_residual],
    "separate and fused": [separate_residual, fused_conditioning],
    "parametrized": [parametrized],
    "fused, parametrized": [fused_conditioning, parametrized],
    "unnormed": [unnormed],
    "fused, unnormed": [fused_conditioning, unnormed],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_loads_the_weights_of_every_version(spelling):
    model, other = build(), build()
    state = model.state_dict()
    for convert in SPELLINGS[spelling]:
        state = convert(state)
    names = [*state]
    other.load_state_dict(state)
    assert [*state] == names  # the caller's dictionary is as it was
    if "unnormed" in spelling:
        torch.testing.assert_close(infer(other), infer(model), atol=1e-5, rtol=1e-5)
    else:
        for key, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], tensor), key
    alone = WN(4, 24, **CONFIG["WN_config"])
    alone.load_state_dict({k.removeprefix("WN.0."): t for k, t in state.items() if k.startswith("WN.0.")})
    torch.testing.assert_close(alone.state_dict(), other.WN[0].state_dict(), atol=0, rtol=0)


def test_a_row_of_zeros_stays_zeros():
    model = build()
    with torch.no_grad():
        model.WN[1].in_layers[0].weight_g[4] = 0.0
    other = build()
    other.load_state_dict(unnormed(model.state_dict()))
    assert not other.WN[1].in_layers[0].weight[4].any()
    torch.testing.assert_close(infer(other), infer(model), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_named_by_load_state_dict():
    model = build()
    state = fused_conditioning(model.state_dict())
    state["WN.2.cond_layer.bias"] = torch.zeros(59)
    with pytest.raises(RuntimeError, match=r"key 'WN.2.cond_layer.bias' has the wrong shape: expected \[60\]"):
        model.load_state_dict(state)
    state = unnormed(model.state_dict())
    state["WN.1.start.weight"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"size mismatch for WN.1.start.weight_v"):
        model.load_state_dict(state)
    state = fused_conditioning(model.state_dict())
    del state["WN.3.cond_layer.weight_g"]
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing == [f"WN.3.cond_layers.{i}.weight_g" for i in range(3)]


@pytest.mark.parametrize("training", [False, True])
def test_remove_weightnorm(training):
    model = build().train(training)
    forward, expected = model((MEL, AUDIO)), infer(model)
    before = backend.cpu_calls["wavenet_layer"]
    infer(model)
    calls = backend.cpu_calls["wavenet_layer"] - before
    assert calls > 0
    names = [*unnormed(model.state_dict())]
    for _ in range(2):
        assert model.remove_weightnorm(model) is model
        assert sorted(model.state_dict()) == sorted(names)
        assert {name for name, _ in model.named_parameters()} == set(names)
        before = backend.cpu_calls["wavenet_layer"]
        torch.testing.assert_close(infer(model), expected, atol=1e-5, rtol=1e-5)
        assert backend.cpu_calls["wavenet_layer"] == before + calls
        found = model((MEL, AUDIO))
        torch.testing.assert_close(found, forward, atol=1e-5, rtol=1e-5)
    assert all(module.training == training for module in model.modules())
    assert model.WN[0].in_layers[1](torch.randn(1, 10, 9)).shape == (1, 20, 9)

    other = build()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(infer(other), expected, atol=1e-5, rtol=1e-5)
    twin = WaveGlow.remove_weightnorm(build())
    twin.load_state_dict(model.state_dict())
    assert torch.equal(infer(twin), infer(model))


def test_a_model_without_weight_norm_trains():
    model = WaveGlow.remove_weightnorm(build()).train()
    weight = model.WN[0].in_layers[1].weight
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = WaveGlowLoss()(model((MEL, AUDIO)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert weight.grad.any() and losses[-1] < losses[0]


def test_every_gradient_without_weight_norm_is_that_of_plain_convolutions():
    """Of a coupling network in PyTorch's own operations."""
    wn = WN(2, 5, n_layers=3, n_channels=6, kernel_size=3).double()
    nn.init.normal_(wn.end.weight)
    wn.remove_weight_norm()
    audio, spect = torch.randn(2, 2, 9).double(), torch.randn(2, 5, 9).double()
    found = torch.autograd.grad(wn((audio, spect)).square().sum(), list(wn.parameters()))
    h, output = wn.start(audio), 0
    for i in range(3):
        x = F.conv1d(h, wn.in_layers[i].weight, wn.in_layers[i].bias, padding=2**i, dilation=2**i)
        x = x + F.conv1d(spect, wn.cond_layers[i].weight, wn.cond_layers[i].bias)
        x = F.conv1d(x[:, :6].tanh() * x[:, 6:].sigmoid(), wn.res_skip_layers[i].weight, wn.res_skip_layers[i].bias)
        h, output = (h + x[:, :6], output + x[:, 6:]) if i < 2 else (h, output + x)
    expected = torch.autograd.grad(wn.end(output).square().sum(), list(wn.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_attributes():
    model = build()
    names = ("n_mel_channels", "n_flows", "n_group", "n_early_every", "n_early_size", "n_remaining_channels")
    assert [getattr(model, name) for name in names] == [3, 6, 8, 2, 2, 4]
    assert len(model.WN) == len(model.convinv) == 6
    assert (model.upsample.kernel_size, model.upsample.stride) == ((32,), (16,))


def loop_of_the_reference(model, mel, noise, call_wn, call_convinv):
    """`infer` as NVIDIA wrote it: with the model's attributes, in calls of its modules."""
    spect = model.upsample(mel)
    spect = spect[:, :, : -(model.upsample.kernel_size[0] - model.upsample.stride[0])]
    spect = spect.unfold(2, model.n_group, model.n_group).permute(0, 2, 1, 3)
    spect = spect.contiguous().view(spect.size(0), spect.size(1), -1).permute(0, 2, 1)
    audio, noise = noise[:, : model.n_remaining_channels], noise[:, model.n_remaining_channels :]
    for k in reversed(range(model.n_flows)):
        n_half = audio.size(1) // 2
        first, second = audio[:, :n_half], audio[:, n_half:]
        output = call_wn(model.WN[k], first, spect)
        second = (second - output[:, :n_half]) / torch.exp(output[:, n_half:])
        audio = call_convinv(model.convinv[k], torch.cat([first, second], 1))
        if k % model.n_early_every == 0 and k > 0:
            audio, noise = torch.cat((noise[:, : model.n_early_size], audio), 1), noise[:, model.n_early_size :]
    return audio.permute(0, 2, 1).contiguous().view(audio.size(0), -1)


@pytest.mark.parametrize("removes", [False, True])
@pytest.mark.parametrize("style", ["NVIDIA/waveglow", "DeepLearningExamples"])
def test_a_loop_of_ones_own_equals_infer(style, removes):
    model = build()
    if removes:
        model = model.remove_weightnorm(model)
    noise = torch.randn(2, 8, 14)
    calls = {
        "NVIDIA/waveglow": (lambda wn, *x: wn(x), lambda convinv, z: convinv(z, reverse=True)),
        "DeepLearningExamples": (lambda wn, *x: wn(*x), lambda convinv, z: convinv.infer(z)),
    }
    with torch.no_grad():
        found = loop_of_the_reference(model, MEL, noise, *calls[style])
        torch.testing.assert_close(found, model.infer(MEL, noise=noise), atol=1e-5, rtol=1e-5)


def test_invertible_convolution_in_reverse():
    module, z = InvertibleConv1x1(6), torch.randn(2, 6, 5)
    mixed, log_det = module(z)
    assert mixed.shape == (2, 6, 5) and log_det.shape == ()
    for found in (module(mixed, reverse=True), module(mixed, True), module.infer(mixed)):
        torch.testing.assert_close(found, z, atol=1e-5, rtol=0)
    module.conv.register_forward_hook(lambda *args: None)
    for found, expected in zip(module(z), (mixed, log_det), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_wn_without_conditioning_is_refused():
    with pytest.raises(FastglowError, match=r"got no spect: pass wn\(audio, spect\) or wn\(\(audio, spect\)\)"):
        WN(2, 5, n_layers=1, n_channels=6, kernel_size=3)(torch.zeros(1, 2, 4))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_notebook(tmp_path, half):
    """inference.ipynb of NVIDIA/tacotron2: a whole model in a file, half precision, the convolutions in float32."""
    model = build()
    path = tmp_path / "waveglow_256channels.pt"
    torch.save({"model": model, "iteration": 5}, path)
    waveglow = torch.load(path, weights_only=False)["model"]
    waveglow.eval().to(half)
    for k in waveglow.convinv:
        k.float()
    denoiser = Denoiser(waveglow)
    with torch.no_grad():
        mel = F.pad(MEL, (0, 40)).to(half)
        audio = waveglow.infer(mel, sigma=0.666)
    assert audio.dtype == half and audio.shape == (2, 752)
    denoised = denoiser(audio, strength=0.01)[:, 0]
    assert denoised.shape == (2, 512) and denoised.dtype == torch.float32  # 752 samples have two whole hops
    torch.testing.assert_close(denoised, audio[:, :512].float(), atol=0.1, rtol=0)
    exact, narrow = infer(model), waveglow.infer(MEL.to(half), 0.7, seed=3)
    assert (narrow.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_inference_script():
    """inference.py of both repositories, from the mel on."""
    waveglow = build()
    waveglow = waveglow.remove_weightnorm(waveglow)
    waveglow.forward = waveglow.infer  # DeepLearningExamples' forward_is_infer
    denoiser = Denoiser(waveglow)
    mel = F.pad(MEL[:1], (0, 40))
    with torch.no_grad():
        audios = waveglow(mel, sigma=0.9).float()
        audios = denoiser(audios, strength=0.01).squeeze(1)
    assert audios.shape == (1, 512)
    samples = (denoiser(waveglow(mel), 0.1) * 32768.0).squeeze().cpu().numpy().astype("int16")
    assert samples.shape == (512,) and samples.any()


def test_the_training_script(tmp_path):
    """train.py of NVIDIA/waveglow: a model for saving, its whole pickle, and going on from it."""
    torch.manual_seed(0)
    criterion, model = WaveGlowLoss(1.0), WaveGlow(**CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        model.zero_grad()
        outputs = model((MEL, AUDIO))
        loss = criterion(outputs)
        assert torch.equal(loss, criterion(outputs, AUDIO))  # DeepLearningExamples passes targets, too
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    saved = WaveGlow(**CONFIG)
    saved.load_state_dict(model.state_dict())
    path = tmp_path / "waveglow_4"
    torch.save({"model": saved, "iteration": 4, "optimizer": optimizer.state_dict(), "learning_rate": 1e-3}, path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    other = WaveGlow(**CONFIG)
    resumed = torch.optim.Adam(other.parameters(), lr=1e-3)
    resumed.load_state_dict(checkpoint["optimizer"])
    other.load_state_dict(checkpoint["model"].state_dict())
    for found, expected in zip(other((MEL, AUDIO))[1], model((MEL, AUDIO))[1], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("removes", [False, True])
def test_copies(removes):
    model = build()
    if removes:
        model.remove_weightnorm(model)
    expected = infer(model)
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(whole, weights_only=False)):
        assert torch.equal(infer(twin), expected)


def test_a_model_without_weight_norm_in_a_checkpoint(tmp_path):
    model = WaveGlow.remove_weightnorm(build(upsample_stride=8))
    save_checkpoint(model, tmp_path / "w.safetensors")
    loaded = load_checkpoint(tmp_path / "w.safetensors")
    assert loaded.config == model.config
    torch.testing.assert_close(infer(loaded), infer(model), atol=1e-5, rtol=1e-5)


def test_a_pickle_of_an_older_version_gets_its_dilations():
    wn = WN(2, 5, n_layers=3, n_channels=6, kernel_size=5)
    for layer in wn.in_layers:
        del layer.dilation, layer.padding
    old = pickle.loads(pickle.dumps(wn))
    assert [(layer.dilation, layer.padding) for layer in old.in_layers] == [(1, 2), (2, 4), (4, 8)]
    assert [repr(layer) for layer in old.in_layers][1] == "WeightNormConv1d(6, 12, kernel_size=5, dilation=2)"
