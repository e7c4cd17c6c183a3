"""WaveGlow's inference on a CPU with packed weights, against float64."""

import copy
from contextlib import nullcontext

import pytest
import torch

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend
from fastglow.kernels.cpu import processor

from ..kernels.checks import assert_as_exact_as, assert_same_bits
from .test_waveglow import STRUCTURES, TINY
from .test_waveglow import build as build_any

DTYPES = [torch.float32, torch.bfloat16]
CAPS = {torch.float32: 1e-5, torch.bfloat16: 1e-1}
WIDE = {"WN_config": {"n_layers": 3, "n_channels": 14, "kernel_size": 3}}  # as wide as its `end` and more


def build(dtype, **config):
    """Whose couplings are small, so that rounding does not grow from flow to flow."""
    model = build_any(torch.float32, **{**WIDE, **config})
    with torch.no_grad():
        for wn in model.WN:
            wn.end.weight.normal_(0, 0.1)
            wn.end.bias.normal_(0, 0.1)
    return model.to(dtype)


def check(model, dtype, mel, **options):
    """As exact as PyTorch in this dtype; returns the audio."""
    with backend.use_backend("reference"):
        exact = copy.deepcopy(model).double().infer(mel.double(), seed=3, **options)
        plain = perturbed(lambda: model.infer(mel.to(dtype), seed=3, **options), 4)
    before = backend.cpu_calls.total()
    actual = model.infer(mel, seed=3, **options)
    n_packed = sum(len(wn.end.weight) <= wn.n_channels for wn in model.WN)
    layers = n_packed * model.config.WN_config["n_layers"] if processor.packs(dtype) else 0
    assert backend.cpu_calls.total() == before + layers
    assert actual.dtype == mel.dtype == torch.float32
    assert_as_exact_as(actual.to(dtype), plain.to(dtype), exact, 2, CAPS[dtype])
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=list(STRUCTURES))
def test_as_exact_as_pytorch(structure, dtype):
    config = {**structure, "WN_config": {**WIDE["WN_config"], **structure.get("WN_config", {}), "n_channels": 14}}
    model = build(dtype, **config)
    mel = torch.randn(3, TINY["n_mel_channels"], 5)
    check(model, dtype, mel)
    audio = check(model, dtype, mel.transpose(1, 2).contiguous().transpose(1, 2), lengths=torch.tensor([5, 0, 2]))
    assert not audio[1].any() and not audio[2, 2 * model.config.upsample_stride :].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["narrow", "no oneDNN"])
def test_signals_in_float32_where_nothing_is_packed(dtype, way, monkeypatch):
    """As on a processor whose oneDNN has no bfloat16, or with an `end` that is wider than the hidden channels."""
    if way == "no oneDNN":
        monkeypatch.setattr(processor, "has_onednn", lambda: False)
    model = build(dtype, **({} if way == "no oneDNN" else {"WN_config": {**WIDE["WN_config"], "n_channels": 2}}))
    check(model, dtype, torch.randn(2, TINY["n_mel_channels"], 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batched_as_alone(dtype):
    model = build(dtype)
    mel, lengths, seeds = torch.randn(4, TINY["n_mel_channels"], 9), [9, 1, 0, 6], [1, 2, 3, 4]
    batched = model.infer(mel, lengths=torch.tensor(lengths), seed=seeds)
    for item, n in enumerate(lengths):
        end = n * model.config.upsample_stride
        assert not batched[item, end:].any()
        if n:
            alone = model.infer(mel[item : item + 1, :, :n], seed=seeds[item])
            bound = (1e-5 if dtype == torch.float32 else CAPS[dtype]) * float(batched.abs().max())
            torch.testing.assert_close(batched[item, :end], alone[0], atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_seed_gives_the_same_bits_in_any_mode(dtype):
    model = build(dtype)
    mel, held = torch.randn(2, TINY["n_mel_channels"], 7), []
    expected = model.infer(mel, seed=1)
    for n, mode in enumerate([torch.inference_mode, nullcontext, torch.no_grad, torch.enable_grad] * 2):
        held.append(torch.empty(10**n % 4099, dtype=torch.uint8))
        with mode():
            found = model.infer(mel, seed=1)
        assert_same_bits(found, expected)
        assert not found.requires_grad
    assert_same_bits(copy.deepcopy(model).infer(mel, seed=1), expected)


def test_autocast_is_as_exact_as_the_reference_under_it():
    model, mel = build(torch.float32), torch.randn(2, TINY["n_mel_channels"], 5)
    exact = copy.deepcopy(model).double().infer(mel.double(), seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        with backend.use_backend("reference"):
            plain = perturbed(lambda: model.infer(mel, seed=3), 4)
        before = backend.cpu_calls.total()
        actual = model.infer(mel, seed=3)
        assert backend.cpu_calls.total() > before
    assert_as_exact_as(actual.bfloat16(), plain.bfloat16(), exact, 2, CAPS[torch.bfloat16])
