"""WaveNet blocks and invertible convolutions of real packages, at their real sizes, before and after accelerate."""

import pytest
import torch

from fastglow import accelerate
from tests.integrations import peers
from tests.patching.comparing import TOLERANCE, results, shown


def relative_difference(expected, found):
    """The largest, of tensors of the same shapes and dtypes."""
    assert [(x.shape, x.dtype) for x in expected] == [(x.shape, x.dtype) for x in found]
    pairs = [(x, y) for x, y in zip(expected, found, strict=True) if x.numel()]
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-6)) for x, y in pairs)


def check(model, call, inputs, ops, *, gradients=True, tolerance=TOLERANCE):
    """Outputs and gradients, in training and in evaluation, with the same random numbers. Returns the swaps."""
    model = shown(model, 0.02)
    cases = [(training, gradients) for training in (False, True)] + [(False, False)]
    expected = [results(model, call, inputs, *case) for case in cases]
    assert all(bool(x.isfinite().all()) for values in expected for x in values)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    report = accelerate(model, strict=True)
    assert {entry.op for entry in report.swapped} == set(ops)
    for case, values in zip(cases, expected, strict=True):
        worst = relative_difference(values, results(model, call, inputs, *case))
        assert worst < tolerance, (case, worst)
    assert list(model.state_dict()) == keys
    report.undo()
    assert [type(module) for module in model.modules()] == classes
    return report.swapped


def mask_of(*lengths):
    return (torch.arange(max(lengths)) < torch.tensor(lengths).view(-1, 1)).unsqueeze(1).float()


def test_wavenet_of_transformers():
    vits, config = peers.transformers_vits(), peers.load("transformers.models.vits.configuration_vits").VitsConfig
    wn = vits.VitsWaveNet(config(speaker_embedding_size=256, wavenet_dropout=0.1), 16)
    inputs = [torch.randn(2, 192, 50), mask_of(50, 31), torch.randn(2, 256, 1)]
    check(wn, lambda wn, x, mask, g: wn(x, mask, g), inputs, ["wavenet_layer"])


def test_vits_model_of_transformers():
    vits, config = peers.transformers_vits(), peers.load("transformers.models.vits.configuration_vits").VitsConfig
    model = vits.VitsModel(config())
    ids = torch.randint(1, 38, (1, 9))

    def call(model, *inputs):
        model.eval()  # training is not implemented there
        output = model(ids)
        return output.waveform, output.spectrogram

    check(model, call, [], ["wavenet_layer"], gradients=False, tolerance=1e-3)


@pytest.mark.parametrize("c_in_channels, dropout_p", [(0, 0.0), (256, 0.1)])
def test_wn_of_coqui(c_in_channels, dropout_p):
    wn = peers.coqui("tts.layers.generic.wavenet").WN(192, 192, 5, 1, 16, c_in_channels, dropout_p)
    inputs = [torch.randn(2, 192, 50), mask_of(50, 31), torch.randn(2, 256, 1)]
    check(wn, lambda wn, x, mask, g: wn(x, mask, g if c_in_channels else None), inputs, ["wavenet_layer"])
    check(wn, lambda wn, x: wn(x), inputs[:1], ["wavenet_layer"])


def test_inv_conv_near_of_coqui():
    conv = peers.coqui("tts.layers.glow_tts.glow").InvConvNear(160)
    inputs = [torch.randn(2, 160, 30), mask_of(30, 17)]
    check(conv, lambda conv, x, mask: conv(x, mask), inputs, ["invertible_conv1x1"])
    check(conv, lambda conv, x, mask: conv(x, mask, reverse=True), inputs, ["invertible_conv1x1"])


def test_glow_tts_of_coqui():
    configs, glow_tts = peers.coqui("tts.configs.glow_tts_config"), peers.coqui("tts.models.glow_tts")
    model = glow_tts.GlowTTS(configs.GlowTTSConfig(num_chars=50, out_channels=80))
    text, lengths = torch.randint(1, 50, (2, 9)), torch.tensor([9, 6])
    mels, mel_lengths = torch.randn(2, 24, 80), torch.tensor([24, 18])

    def call(model, mels):
        outputs = model(text, lengths, mels, mel_lengths)
        return [outputs[name] for name in ("z", "logdet", "y_mean", "durations_log")]

    check(model, call, [mels], ["wavenet_layer", "invertible_conv1x1"], tolerance=1e-3)


def test_vits_of_coqui():
    configs, vits = peers.coqui("tts.configs.vits_config"), peers.coqui("tts.models.vits")
    model = vits.Vits(configs.VitsConfig(model_args=vits.VitsArgs(num_chars=50)))
    text = torch.randint(1, 50, (1, 7))

    def call(model, *inputs):
        model.eval()
        return model.inference(text)["model_outputs"]

    check(model, call, [], ["wavenet_layer"], gradients=False, tolerance=1e-3)


def test_waveglow_of_nvidia(cpu_tensors):
    glow = peers.nvidia_waveglow()
    model = glow.WaveGlow(80, 12, 8, 4, 2, {"n_layers": 8, "n_channels": 512, "kernel_size": 3})
    mel, audio = torch.randn(1, 80, 6), torch.randn(1, 6 * 256).clamp(-1, 1) * 0.3
    ops = ["wavenet_layer", "invertible_conv1x1"]

    def train(model, mel, audio):
        z, log_s, _ = model((mel, audio))  # of a rotation, the log-determinant is nothing but rounding
        return [z, *log_s]

    assert len(check(model, train, [mel, audio], ops, tolerance=1e-3)) == 24
    swapped = check(model, lambda model, mel: model.infer(mel, 0.6), [mel], ops, gradients=False, tolerance=1e-3)
    assert len(swapped) == 24


def test_coupling_of_radtts(cpu_tensors):
    common = peers.radtts_common()
    z = torch.randn(2, 80, 20)
    for cls in (common.Invertible1x1Conv, common.Invertible1x1ConvLUS):
        conv = cls(80)
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.mul_(1.01)
        check(conv, lambda conv, z: conv(z), [z], ["invertible_conv1x1"], tolerance=1e-4)
        check(conv, lambda conv, z: conv(z, inverse=True), [z], ["invertible_conv1x1"], tolerance=1e-4)
    (entry,) = accelerate(common.WN(4, 6, 2, 8)).left
    assert "neither a cond_layer nor cond_layers" in entry.text
