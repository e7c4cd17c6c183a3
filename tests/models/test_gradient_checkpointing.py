"""Tacotron 2's gradient_checkpointing: the same gradients, dropout and running statistics as without it."""

import copy
import pickle

import pytest
import torch

from fastglow import Tacotron2

from ..kernels.checks import assert_same_bits
from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, build_stopping


@pytest.fixture(params=[True, False], ids=["training", "evaluation"])
def model(request):
    """With dropout everywhere."""
    model = build_stopping(SEEDS).float().train(request.param)
    for part in (model.encoder, model.postnet):
        part.p_dropout = 0.4
    return model


def step(model, amp=None):
    """(results, gradients, buffers, the random generator's state) of a step with random upstream gradients."""
    model = copy.deepcopy(model)
    torch.manual_seed(3)
    mels = torch.randn(len(TEXT), model.config.n_mel_channels, 7)
    with torch.autocast("cpu", amp, enabled=amp is not None):
        results = model((TEXT, LENGTHS, mels, TEXT.shape[1], torch.full((len(TEXT),), 7)))
    generator = torch.Generator().manual_seed(4)
    upstream = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
    gradients = torch.autograd.grad(results, list(model.parameters()), upstream)
    return [x.detach() for x in results], gradients, list(model.buffers()), torch.get_rng_state()


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=str)
def test_the_same_bits(model, amp):
    expected = step(model, amp)
    model.gradient_checkpointing = True
    calls = []
    model.postnet.convolutions[0].register_forward_hook(lambda *args: calls.append("postnet"))
    model.encoder.convolutions[0].register_forward_hook(lambda *args: calls.append("encoder"))
    assert_same_bits(step(model, amp), expected)
    assert sorted(calls) == ["encoder"] * 2 + ["postnet"] * 2


def test_running_statistics_change_once():
    model = build_stopping(SEEDS).train()
    model.gradient_checkpointing = True
    _, _, buffers, _ = step(model)
    counts = [x for x in buffers if x.dtype == torch.int64]
    assert counts and all(x.item() == 1 for x in counts)


def test_backward_twice_and_after_another_forward_pass(model):
    """Each backward pass recomputes, and leaves the buffers as they are."""
    model.gradient_checkpointing = True
    torch.manual_seed(3)
    mels = torch.randn(len(TEXT), model.config.n_mel_channels, 7)
    losses = [model((TEXT, LENGTHS, mels, TEXT.shape[1], torch.full((len(TEXT),), 7)))[1].sum() for _ in range(2)]
    buffers, places = [x.clone() for x in model.buffers()], [*model.buffers()]
    parameters = list(model.parameters())

    def gradients(i):
        return torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)

    first = gradients(0)
    gradients(1)
    assert_same_bits(gradients(0), first)
    assert_same_bits(places, buffers)
    assert all(x is y for x, y in zip(model.buffers(), places, strict=True))


def test_the_mode_is_kept_by_copies_and_is_in_no_checkpoint():
    model = build_stopping(SEEDS)
    assert not model.gradient_checkpointing
    keys = model.state_dict().keys()
    model.gradient_checkpointing = True
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.gradient_checkpointing
        assert twin.state_dict().keys() == keys
    assert Tacotron2(**vars(model.config)).gradient_checkpointing is False
    model.gradient_checkpointing = False
    assert not model.encoder.gradient_checkpointing


def test_inference_is_the_same():
    model = build_stopping(SEEDS)
    expected = model.infer(TEXT, LENGTHS, seed=SEEDS)
    model.gradient_checkpointing = True
    assert_same_bits(model.infer(TEXT, LENGTHS, seed=SEEDS), expected)
