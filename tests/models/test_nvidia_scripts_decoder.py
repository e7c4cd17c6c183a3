"""Loops over the decoder's steps as NVIDIA's scripts write them, against its own loops and NVIDIA's tensors."""

import copy
import io
import pickle

import pytest
import torch

from fastglow import FastglowError, Tacotron2
from fastglow.kernels import uniform_noise
from fastglow.modules.convolution import length_mask

from .tiny_tacotron2 import NO_DROPOUT, SEEDS, TEXT, build, training_batch


def loop_with_state_on_the_decoder(decoder, memory, mels, lengths):
    """As of NVIDIA/tacotron2."""
    inputs = torch.cat((decoder.get_go_frame(memory).unsqueeze(0), decoder.parse_decoder_inputs(mels)))
    inputs = decoder.prenet(inputs)
    decoder.initialize_decoder_states(memory, mask=~length_mask(lengths, memory.shape[1]))
    mel_outputs, gate_outputs, alignments = [], [], []
    for decoder_input in inputs[:-1]:
        mel, gate, weights = decoder.decode(decoder_input)
        mel_outputs += [mel.squeeze(1)]
        gate_outputs += [gate.squeeze(1)]
        alignments += [weights]
    return decoder.parse_decoder_outputs(mel_outputs, gate_outputs, alignments)


def loop_with_state_passed_on(decoder, memory, mels, lengths):
    """As of DeepLearningExamples."""
    inputs = torch.cat((decoder.get_go_frame(memory).unsqueeze(0), decoder.parse_decoder_inputs(mels)))
    inputs = decoder.prenet(inputs)
    mask = ~length_mask(lengths, memory.shape[1])
    *state, processed_memory = decoder.initialize_decoder_states(memory)
    mel_outputs, gate_outputs, alignments = [], [], []
    for decoder_input in inputs[:-1]:
        mel, gate, *state = decoder.decode(decoder_input, *state, memory, processed_memory, mask)
        mel_outputs += [mel.squeeze(1)]
        gate_outputs += [gate.squeeze()]
        alignments += [state[4]]
    return decoder.parse_decoder_outputs(torch.stack(mel_outputs), torch.stack(gate_outputs), torch.stack(alignments))


LOOPS = [loop_with_state_on_the_decoder, loop_with_state_passed_on]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("training", [False, True])
def test_equals_forward_and_its_gradients(loop, training, r):
    model = build(**NO_DROPOUT, n_frames_per_step=r).train(training)
    (text, lengths, mels, _, _), _ = training_batch()
    memory = model.encoder(model.embedding(text).transpose(1, 2), lengths).detach()
    results, gradients = [], []
    for run in (model.decoder, lambda *inputs: loop(model.decoder, *inputs)):
        leaf = memory.clone().requires_grad_()
        results.append(run(leaf, mels, lengths))
        model.zero_grad()
        sum(x.square().sum() for x in results[-1]).backward()
        gradients.append([leaf.grad, *(p.grad for p in model.decoder.parameters())])
    for found, expected in zip(results[1], results[0], strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loop", LOOPS)
def test_equals_nvidias_tensors(golden, loop):
    tiny = golden("tacotron2_tiny")
    model = Tacotron2(**{**tiny.config, **NO_DROPOUT}).eval()
    model.load_state_dict(tiny.group("state"))
    text, lengths = tiny["input/text"], tiny["input/input_lengths"]
    memory = model.encoder(model.embedding(text).transpose(1, 2), lengths)
    outputs = loop(model.decoder, memory, tiny["input/mel"], lengths)
    found = model.parse_output([outputs[0], outputs[0] + model.postnet(outputs[0]), *outputs[1:]])
    inside = length_mask(tiny["input/output_lengths"], found[0].shape[2])
    for name, output in zip(("mel", "mel_postnet"), found, strict=False):
        kept = inside.unsqueeze(1).expand_as(output)
        torch.testing.assert_close(output[kept], tiny[f"eval/{name}"][kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2][inside], tiny["eval/gate"][inside], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[3], tiny["eval/alignments"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p_dropout", [0.0, 0.5])
def test_a_free_running_loop_equals_inference(p_dropout, r):
    """With the prenet's noise drawn by its definition."""
    model = build(n_frames_per_step=r, p_prenet_dropout=p_dropout, gate_threshold=2.0, decoder_no_early_stopping=True)
    decoder, seeds = model.decoder, torch.tensor(SEEDS[:2])
    with torch.no_grad():
        memory = model.encoder.inference(model.embedding(TEXT[[1, 1]]).transpose(1, 2))
        mel, gate, alignments = decoder.inference(memory, seed=seeds)
        frame = decoder.get_go_frame(memory)
        decoder.initialize_decoder_states(memory, mask=None)
        outputs = []
        for step in range(decoder.max_decoder_steps):
            noise = torch.stack([uniform_noise(seeds, layer, step, 1, decoder.prenet_dim)[:, 0] for layer in (0, 1)])
            frame, *rest = decoder.decode(decoder.prenet(frame, noise))
            outputs.append((frame, *rest))
    found = decoder.parse_decoder_outputs(*map(list, zip(*outputs, strict=True)))
    assert mel.shape == (2, 5, 16 * r) and gate.shape == (2, 16, 1) and alignments.shape == (2, 16, 7)
    for loop, own in zip(found, (mel, gate, alignments), strict=True):
        torch.testing.assert_close(loop, own, atol=1e-5, rtol=0)


def test_the_state_has_the_references_names_and_sizes():
    model = build()
    memory = torch.randn(3, 7, 6)
    returned = model.decoder.initialize_decoder_states(memory)
    sizes = {
        "attention_hidden": (3, 9),
        "attention_cell": (3, 9),
        "decoder_hidden": (3, 11),
        "decoder_cell": (3, 11),
        "attention_weights": (3, 7),
        "attention_weights_cum": (3, 7),
        "attention_context": (3, 6),
        "processed_memory": (3, 7, 7),
    }
    for (name, size), tensor in zip(sizes.items(), returned, strict=True):
        assert getattr(model.decoder, name) is tensor, name
        assert tensor.shape == size, name
    assert model.decoder.memory is memory and model.decoder.mask is None
    assert not any(tensor.any() for tensor in returned[:-1])
    model.decoder.decode(torch.randn(3, 13))
    assert all(getattr(model.decoder, name).any() for name in sizes)


def test_the_state_is_not_part_of_the_model():
    """After a loop with gradients: deepcopy refuses tensors that have a history."""
    model = build()
    before = model.state_dict().keys()
    (text, lengths, mels, _, _), _ = training_batch()
    memory = model.encoder(model.embedding(text).transpose(1, 2), lengths)
    loop_with_state_on_the_decoder(model.decoder, memory, mels, lengths)
    assert model.decoder.attention_hidden.grad_fn is not None
    assert model.state_dict().keys() == before
    assert not any("attention_hidden" in name for name, _ in [*model.named_buffers(), *model.named_parameters()])
    whole = io.BytesIO()
    torch.save({"model": model}, whole)
    whole.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(whole, weights_only=False)["model"],
    ):
        assert "memory" not in vars(twin.decoder) and "attention_hidden" not in vars(twin.decoder)
        with pytest.raises(FastglowError, match=r"call initialize_decoder_states\(memory\) before"):
            twin.decoder.decode(torch.randn(3, 13))


def test_a_pickle_of_an_older_version_has_the_sizes():
    model = build()
    state = model.decoder.__getstate__()
    for name in ("encoder_embedding_dim", "attention_rnn_dim", "decoder_rnn_dim", "prenet_dim"):
        del state[name]
    old = type(model.decoder).__new__(type(model.decoder))
    old.__setstate__(state)
    assert [old.encoder_embedding_dim, old.attention_rnn_dim, old.decoder_rnn_dim, old.prenet_dim] == [6, 9, 11, 13]


def test_dropout_of_a_step_in_training():
    decoder = build(p_attention_dropout=0.5, p_decoder_dropout=0.5).decoder.train()
    memory = torch.randn(3, 7, 6)
    decoder.initialize_decoder_states(memory)
    decoder.decode(torch.randn(3, 13))
    assert 0 < (decoder.attention_hidden == 0).sum() < decoder.attention_hidden.numel()
    assert 0 < (decoder.decoder_hidden == 0).sum() < decoder.decoder_hidden.numel()
    decoder.eval().decode(torch.randn(3, 13))
    assert decoder.attention_hidden.all() and decoder.decoder_hidden.all()


def test_errors_name_what_is_missing():
    decoder = build(n_frames_per_step=2).decoder
    x, memory = torch.randn(1, 13), torch.randn(1, 4, 6)
    with pytest.raises(FastglowError, match=r"decode has no state: call initialize_decoder_states\(memory\)"):
        decoder.decode(x)
    *state, processed = decoder.initialize_decoder_states(memory)
    with pytest.raises(FastglowError, match="a state of 9, must be 10, of which only the mask may be None"):
        decoder.decode(x, *state, memory, processed)
    with pytest.raises(FastglowError, match="a state of 10, must be 10, of which only the mask may be None"):
        decoder.decode(x, *state, None, processed, None)
    with pytest.raises(FastglowError, match="3 mel frames must be a multiple of n_frames_per_step=2"):
        decoder.parse_decoder_inputs(torch.zeros(1, 5, 3))
