"""What NVIDIA's scripts call, on the Triton kernels."""

import pytest
import torch
from torch import nn

from fastglow import Tacotron2, WaveGlow
from fastglow.kernels import backend

from .tiny_tacotron2 import NO_DROPOUT, SEEDS, TEXT, build

IN_INTERPRETER = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")


@pytest.fixture(params=[pytest.param("cpu", marks=IN_INTERPRETER), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


def test_inference(device):
    """The kernels give the gate's logits too, next to a loop without them, which has weights of its own."""
    model = build(max_decoder_steps=2, gate_threshold=2.0, decoder_no_early_stopping=True)
    text, seeds = TEXT[[1]], SEEDS[:1]
    with backend.use_backend("reference"):
        expected = model.inference(text, seed=seeds)
    model, text = model.to(device), text.to(device)
    lengths = torch.tensor([7])
    before = backend.launches["decode_loop"]
    with backend.use_backend("triton"):
        mel, _, alignments = model.infer(text, lengths, seed=seeds)
        found = model.inference(text, seed=seeds)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], mel, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[3], alignments, atol=1e-5, rtol=0)
    assert backend.launches["decode_loop"] > before


def test_hooks_inside_the_decoder(golden, device):
    tiny = golden("tacotron2_tiny")
    model = Tacotron2(**{**tiny.config, **NO_DROPOUT}).eval()
    model.load_state_dict(tiny.group("state"))
    fired = []
    for name in ("attention_rnn", "attention_layer", "prenet.layers.1"):
        model.decoder.get_submodule(name).register_forward_hook(lambda *args, name=name: fired.append(name))
    model.to(device)
    inputs = [tiny[f"input/{name}"].to(device) for name in ("text", "input_lengths", "mel", "output_lengths")]
    with backend.use_backend("triton"):
        outputs = model((*inputs[:3], inputs[0].shape[1], inputs[3]))
    for name, output in zip(("mel", "mel_postnet", "gate", "alignments"), outputs, strict=True):
        torch.testing.assert_close(output.cpu(), tiny[f"eval/{name}"], atol=1e-4, rtol=1e-4)
    assert fired.count("prenet.layers.1") == 1
    assert fired.count("attention_rnn") == fired.count("attention_layer") == inputs[2].shape[2]


@pytest.mark.parametrize(("removes", "hooked"), [(True, False), (False, True)], ids=["without weight norm", "hooks"])
def test_waveglow(device, removes, hooked):
    torch.manual_seed(5)
    model = WaveGlow(
        3, 2, 4, 1, 2, {"n_layers": 2, "n_channels": 6, "kernel_size": 3}, upsample_kernel_size=16, upsample_stride=8
    ).eval()
    for wn in model.WN:
        nn.init.normal_(wn.end.weight, std=0.1)
    mel, audio, noise = torch.randn(1, 3, 3), 0.1 * torch.randn(1, 24), torch.randn(1, 4, 6)
    with backend.use_backend("reference"):
        expected = model.infer(mel, 0.7, noise=noise), model((mel, audio))[0]
    model = model.remove_weightnorm(model).to(device) if removes else model.to(device)
    fired = []
    if hooked:
        for name in ("WN.0.in_layers.0", "WN.0.res_skip_layers.1", "convinv.1", "convinv.0.conv", "upsample"):
            model.get_submodule(name).register_forward_hook(lambda *args, name=name: fired.append(name))
    mel, audio, noise = (x.to(device) for x in (mel, audio, noise))
    before = backend.launches["wavenet_layer"]
    with backend.use_backend("triton"):
        found = model.infer(mel, 0.7, noise=noise), model((mel, audio))[0]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=0)
    assert backend.launches["wavenet_layer"] > before
    assert len(set(fired)) == (5 if hooked else 0)
