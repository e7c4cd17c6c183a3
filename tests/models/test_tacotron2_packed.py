"""Tacotron2's inference on a CPU with packed weights: types, changed weights, copies, threads, streams."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fastglow import Tacotron2
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend

from ..kernels.checks import assert_as_exact_as, assert_same_bits
from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, TINY, build, training_batch

pytestmark = pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
TYPES = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)]
EVERY_TYPE = pytest.mark.parametrize(("dtype", "weights"), TYPES, ids=["float32", "bfloat16", "int8"])
CAPS = {torch.float32: 1e-5, torch.bfloat16: 1e-1}


def make(dtype=torch.float32, weights=None, **config):
    """Endless."""
    model = build(gate_threshold=1.0, **config).to(dtype)
    model.decoder.cpu_weights = weights
    return model


def infer(model, **options):
    before = backend.cpu_calls["decode_loop"]
    found = model.infer(TEXT, LENGTHS, seed=SEEDS, **options)
    assert backend.cpu_calls["decode_loop"] == before + 1
    return found


@pytest.mark.parametrize("dtype", list(CAPS), ids=str)
def test_decoder_and_postnet_are_as_exact_as_pytorch(dtype, r, monkeypatch):
    """Over few steps: the decoder feeds its rounding back to itself."""
    memory = torch.randn(*TEXT.shape, TINY["encoder_embedding_dim"]).to(dtype)
    monkeypatch.setattr(Tacotron2, "_memory", lambda model, *_: memory.to(model.embedding.weight.dtype))
    model, options = make(dtype, n_frames_per_step=r), {"max_steps": [2, 3, 1, 3]}
    mel, lengths, alignments = infer(model, **options)
    with backend.use_backend("reference"):
        exact = copy.deepcopy(model).double().infer(TEXT, LENGTHS, seed=SEEDS, **options)
        plain = perturbed(lambda: model.infer(TEXT, LENGTHS, seed=SEEDS, **options), 4)
    assert mel.dtype == alignments.dtype == torch.float32
    assert torch.equal(lengths, exact[1])
    for x, references, truth in ((mel, plain[0], exact[0]), (alignments, plain[2], exact[2])):
        assert_as_exact_as(x.to(dtype), references, truth, 2, CAPS[dtype])


@EVERY_TYPE
def test_a_stream_is_the_whole_in_any_mode(dtype, weights):
    model = make(dtype, weights)
    mel, lengths, alignments = infer(model)
    pieces = model.infer_pieces(TEXT, LENGTHS, seed=SEEDS, piece_frames=3)
    with torch.inference_mode():
        found = [next(pieces)]
    with torch.enable_grad():
        found.append(next(pieces))
    found += pieces
    torch.testing.assert_close(torch.cat([piece.mel for piece in found], 2), mel, atol=CAPS[dtype] * 3, rtol=0)
    assert_same_bits(torch.cat([piece.alignments for piece in found], 1), alignments)
    assert torch.equal(found[-1].lengths, lengths)


@EVERY_TYPE
def test_threads_have_the_bits_of_a_call_alone(dtype, weights):
    model = make(dtype, weights)
    items = [slice(i, i + 1) for i in range(4)]
    expected = [model.infer(TEXT[i], LENGTHS[i], seed=1) for i in items]
    model.refresh()  # they pack the weights together
    together = threading.Barrier(4)

    def speak(i):
        together.wait(60)
        return [model.infer(TEXT[i], LENGTHS[i], seed=1) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for results, one in zip(pool.map(speak, items), expected, strict=True):
            for result in results:
                assert_same_bits(result, one)


@EVERY_TYPE
def test_copies_and_inference_mode(dtype, weights):
    model = make(dtype, weights)
    with torch.inference_mode():
        expected = infer(model)
        loaded = copy.deepcopy(model)
        loaded.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    assert next(loaded.parameters()).is_inference()
    assert model.decoder._packed._entry is not None
    pickled = pickle.dumps(model)
    copies = copy.deepcopy(model), pickle.loads(pickled)
    for one in (*copies, loaded):
        assert one.decoder.cpu_weights == weights and one.decoder._packed._entry is None
    for one in (model, *copies, loaded):
        assert_same_bits(infer(one), expected)
    assert len(pickled) < 1.1 * len(pickle.dumps(make(dtype, weights)))


def take_a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs, _ = training_batch()
    model(inputs)[0].square().sum().backward()
    optimizer.step()


CHANGES = {
    "in place": lambda model: model.decoder.attention_rnn.bias_hh.add_(1),
    "optimizer": torch.enable_grad()(take_a_step),
    "load_state_dict": lambda model: model.load_state_dict(make().state_dict()),
    "replaced": lambda model: setattr(model.decoder.decoder_rnn, "bias_ih", nn.Parameter(torch.ones(44))),
    "bfloat16": lambda model: model.bfloat16(),
    "cpu_weights": lambda model: setattr(model.decoder, "cpu_weights", torch.int8),
    "uncounted": lambda model: (model.decoder.linear_projection.linear_layer.bias.data.add_(1), model.refresh()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_changed_weights_are_packed_again(change):
    model = make()
    before = infer(model)[0]
    with torch.no_grad():
        change(model)
    changed = infer(model)
    assert not torch.equal(changed[0], before)
    assert_same_bits(changed, infer(copy.deepcopy(model)))


def test_cpu_weights_go_to_and_fro():
    model = make()
    expected = {}
    for weights in (None, torch.int8, torch.bfloat16):
        model.decoder.cpu_weights = weights
        expected[weights] = infer(model)
    assert len({tuple(mel.flatten().tolist()) for mel, _, _ in expected.values()}) == 3
    for weights in (torch.int8, None, torch.bfloat16, torch.int8):
        model.decoder.cpu_weights = weights
        assert_same_bits(infer(model), expected[weights])
