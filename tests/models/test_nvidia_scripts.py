"""The calls that NVIDIA's inference and training scripts make of a Tacotron 2, in their order."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastglow import FastglowError, Tacotron2, Tacotron2Loss
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text import text_to_sequence

from .tiny_tacotron2 import LENGTHS, NO_DROPOUT, SEEDS, TEXT, TINY, build, build_stopping, training_batch

# As hparams.py of NVIDIA/tacotron2 has them, among others that are none of the model's.
HPARAMS = {
    "epochs": 500,
    "fp16_run": False,
    "distributed_run": False,
    "text_cleaners": ["english_cleaners"],
    "sampling_rate": 22050,
    "mask_padding": True,
    "n_frames_per_step": 1,
    "gate_threshold": 0.4,
    "p_attention_dropout": 0.2,
    "p_decoder_dropout": 0.3,
    **TINY,
}


def batch_of_the_loader():
    """(text, input_lengths, mel, gate, output_lengths), as the reference's collate function gives them."""
    (text, input_lengths, mel, _, output_lengths), (_, gate) = training_batch()
    order = input_lengths.argsort(descending=True)
    return text[order].int(), input_lengths[order].int(), mel[order].double(), gate[order], output_lengths[order].int()


@pytest.mark.parametrize("kind", [dict, lambda values: SimpleNamespace(**values)], ids=["mapping", "object"])
def test_hparams(kind):
    model = Tacotron2(kind(HPARAMS))
    expected = {name: value for name, value in HPARAMS.items() if hasattr(model.config, name)}
    assert model.config == Tacotron2(**expected).config
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        k: tuple(v.shape) for k, v in Tacotron2(**TINY).state_dict().items()
    }
    assert (model.mask_padding, model.n_mel_channels, model.n_frames_per_step) == (True, 5, 1)
    decoder = model.decoder
    assert (decoder.gate_threshold, decoder.p_attention_dropout, decoder.p_decoder_dropout) == (0.4, 0.2, 0.3)
    sizes = {
        "encoder_embedding_dim": 6,
        "attention_rnn_dim": 9,
        "decoder_rnn_dim": 11,
        "prenet_dim": 13,
        "n_mel_channels": 5,
        "n_frames_per_step": 1,
    }
    assert {name: getattr(decoder, name) for name in sizes} == sizes


def test_hparams_with_keywords_and_defaults():
    model = Tacotron2({"n_symbols": 12, "batch_size": 48}, max_decoder_steps=7)
    assert (model.config.n_symbols, model.config.max_decoder_steps, model.config.n_mel_channels) == (12, 7, 80)


@pytest.mark.parametrize("hparams", ["tacotron2.pt", 80, {"learning_rate": 1e-3}, SimpleNamespace(epochs=3)])
def test_what_has_no_keyword_is_refused(hparams):
    with pytest.raises(FastglowError, match=f"got {type(hparams).__name__}, which has no constructor keyword"):
        Tacotron2(hparams)


def test_the_training_script(tmp_path):
    """train.py of NVIDIA/tacotron2: load_model, parse_batch, the loop, its checkpoints, validation, warm start."""
    torch.manual_seed(7)
    hparams = SimpleNamespace(**HPARAMS)
    model = Tacotron2(hparams)
    model.decoder.attention_layer.score_mask_value = float(np.finfo("float16").min)
    if torch.cuda.is_available():
        model = model.cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-6)
    criterion = Tacotron2Loss()
    model.train()
    losses = []
    for _ in range(8):
        model.zero_grad()
        x, y = model.parse_batch(batch_of_the_loader())
        torch.manual_seed(0)
        loss = criterion(model(x), y)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert grad_norm.isfinite()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    path = tmp_path / "checkpoint_7"
    state = {"iteration": 7, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "learning_rate": 1e-2}, path)
    checkpoint = torch.load(path, map_location="cpu")
    other = Tacotron2(hparams)
    other.load_state_dict(checkpoint["state_dict"])
    for tensor, saved in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(tensor, saved.cpu())

    warm = Tacotron2(hparams)
    embedding = warm.embedding.weight.detach().clone()
    ignored = ["embedding.weight"]
    kept = {key: tensor for key, tensor in checkpoint["state_dict"].items() if key not in ignored}
    own = warm.state_dict()
    own.update(kept)
    warm.load_state_dict(own)
    assert torch.equal(warm.embedding.weight, embedding)
    assert torch.equal(warm.decoder.gate_layer.linear_layer.weight, other.decoder.gate_layer.linear_layer.weight)

    other.eval()
    with torch.no_grad():
        x, y = other.parse_batch(batch_of_the_loader())
        assert criterion(other(x), y).isfinite()


@pytest.mark.parametrize("extra", [(), (torch.tensor([5.0]),)], ids=["five", "DeepLearningExamples' six"])
def test_parse_batch(extra):
    text, input_lengths, mel, gate, output_lengths = batch_of_the_loader()
    inputs, targets = Tacotron2(**TINY).parse_batch((text, input_lengths, mel, gate, output_lengths, *extra))
    assert [x.dtype for x in (*inputs[:3], inputs[4], *targets)] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    assert torch.equal(inputs[0], text.long()) and torch.equal(inputs[1], input_lengths.long())
    assert torch.equal(inputs[2], mel.float()) and torch.equal(inputs[4], output_lengths.long())
    assert inputs[3] == int(input_lengths.max()) and isinstance(inputs[3], int)
    assert targets[0] is inputs[2] and torch.equal(targets[1], gate)


def test_mask_padding_acts_when_set():
    model, (inputs, _) = build(**NO_DROPOUT), training_batch()
    plain = model(inputs)
    model.mask_padding = True
    assert model.config.mask_padding
    masked = model(inputs)
    for item, length in enumerate(inputs[4].tolist()):
        for name, full, cut, value in zip(("mel", "postnet", "gate"), plain, masked, (0, 0, 1e3), strict=False):
            assert torch.equal(cut[item, ..., :length], full[item, ..., :length]), name
            assert (cut[item, ..., length:] == value).all(), name
    assert torch.equal(plain[3], masked[3])
    for found, expected in zip(model.parse_output(plain, inputs[4]), masked, strict=True):
        assert torch.equal(found, expected)
    assert all(a is b for a, b in zip(model.parse_output(plain), plain, strict=True))
    model.mask_padding = False
    assert torch.equal(model(inputs)[0], plain[0])


def test_gradients_with_mask_padding_are_those_of_the_masked_results():
    """NVIDIA/tacotron2 masks values that backward reads, and so gets another one of the postnet's first convolution."""
    model = build(**NO_DROPOUT).train().double()
    inputs, _ = training_batch(dtype=torch.float64)
    mels, lengths = inputs[2], inputs[4]
    inside = (torch.arange(mels.shape[2]) < lengths.unsqueeze(1)).unsqueeze(1)
    target = mels.masked_fill(~inside, -1.0)

    def gradients(outputs):
        model.zero_grad()
        sum(((x - target) ** 2).mean() for x in outputs).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    expected = gradients([torch.where(inside, x, 0.0) for x in model(inputs)[:2]])
    model.mask_padding = True
    for found, gradient in zip(gradients(model(inputs)[:2]), expected, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-12, rtol=1e-9)


def test_the_inference_script():
    """inference.py of DeepLearningExamples: a subclass, positional arguments, sorted texts, half precision."""

    class ForwardIsInfer(Tacotron2):
        def forward(self, inputs, input_lengths):
            return self.infer(inputs, input_lengths)

    torch.manual_seed(3)
    built = build_stopping(5, p_prenet_dropout=0.0)
    config = {**TINY, "p_prenet_dropout": 0.0}
    model = ForwardIsInfer(**config)
    model.load_state_dict(built.state_dict())
    model.eval()
    lengths, order = torch.sort(LENGTHS, dim=0, descending=True)
    with torch.no_grad():
        mel, mel_lengths, alignments = model(TEXT[order].long(), lengths.long())
    n_steps = mel.shape[2]
    assert mel.shape == (4, 5, n_steps) and alignments.shape == (4, n_steps, 7)
    assert mel_lengths.dtype == torch.int32 and int(mel_lengths.max()) == n_steps - 1
    for item in range(4):
        alone, length, _ = built.infer(TEXT[order][item : item + 1], lengths[item : item + 1])
        assert mel_lengths[item] == length[0]
        torch.testing.assert_close(mel[item, :, : alone.shape[2]], alone[0], atol=1e-5, rtol=0)
    half = model.half()(TEXT[order], lengths)[0]
    assert half.dtype == torch.float16 and half.isfinite().all()


@pytest.mark.parametrize("limit", [1, 5, 10**6])
def test_max_steps_of_all_items(limit):
    model = build(decoder_no_early_stopping=True)
    expected = model.infer(TEXT, LENGTHS, seed=SEEDS, max_steps=[limit] * 4)
    for found, tensor in zip(model.infer(TEXT, LENGTHS, seed=SEEDS, max_steps=limit), expected, strict=True):
        assert torch.equal(found, tensor)
    assert expected[0].shape[2] == min(limit, 16)
    with pytest.raises(FastglowError, match=r"max_steps=\[0, 0, 0, 0\] must have one limit per item"):
        model.infer(TEXT, LENGTHS, max_steps=0)


def test_the_notebook():
    """inference.ipynb of NVIDIA/tacotron2, with the tiny model's symbols."""
    torch.manual_seed(3)
    model = build_stopping(5)
    sequence = np.array(text_to_sequence("Waveglow is really awesome!", ["english_cleaners"]))[None, :]
    sequence = torch.autograd.Variable(torch.from_numpy(sequence % 11)).long()
    model.decoder.max_decoder_steps = 40
    model.decoder.gate_threshold = 2.0  # never
    with pytest.warns(DecoderStepLimitWarning, match="max_decoder_steps=40") as caught:
        outputs = model.inference(sequence)
    assert caught[0].filename == __file__
    mel, mel_postnet, gate, alignments = outputs
    assert [tuple(x.shape) for x in outputs] == [(1, 5, 40), (1, 5, 40), (1, 40, 1), (1, 40, 27)]
    assert alignments.float().data.cpu().numpy()[0].T.shape == (27, 40)
    assert not torch.equal(mel, mel_postnet)
    with pytest.warns(DecoderStepLimitWarning) as caught:
        model.decoder.inference(model.encoder.inference(model.embedding(sequence).transpose(1, 2)))
    assert caught[0].filename == __file__
    with pytest.warns(DecoderStepLimitWarning):
        assert model.half().inference(sequence)[1].dtype == torch.float16


@pytest.mark.parametrize("batch_size", [1, 3])
def test_inference_gives_what_infer_gives_and_the_gates_that_stopped_it(batch_size, r):
    torch.manual_seed(2)
    model = build(n_frames_per_step=r, decoder_no_early_stopping=True, gate_threshold=2.0)  # never stops
    text, seeds = TEXT[1].repeat(batch_size, 1), SEEDS[:batch_size]
    gates = torch.sigmoid(model.inference(text, seed=seeds)[2][:, :, 0])
    assert gates.shape == (batch_size, 16)

    highest = gates[:, :-1].amax(dim=1)  # below the lowest of these, every item stops
    model.decoder.gate_threshold = float(highest.min()) - 1e-4
    model.decoder.early_stopping = True
    steps = (gates > model.decoder.gate_threshold).int().argmax(dim=1)
    expected, n_frames, alignments = model.infer(text, torch.tensor([7] * batch_size), seed=seeds)
    assert n_frames.tolist() == (steps * r).tolist()
    outputs = model.inference(text, seed=seeds)
    assert len(outputs) == 4 and isinstance(outputs, list)
    torch.testing.assert_close(outputs[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs[3], alignments, atol=1e-5, rtol=0)
    for found, all_steps, n in zip(outputs[2], gates, steps.tolist(), strict=True):
        torch.testing.assert_close(torch.sigmoid(found[: n + 1, 0]), all_steps[: n + 1], atol=1e-5, rtol=0)
        assert (found[n + 1 :] == 1e3).all()
    again = model.inference(text, seed=seeds)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


def test_inference_refuses_what_infer_refuses():
    model = build()
    with pytest.raises(FastglowError, match="symbol ids from 11 to 11 must be between 0 and 10"):
        model.inference(torch.tensor([[11]]))
    with pytest.raises(FastglowError, match="must be"):
        model.inference(torch.zeros(3, dtype=torch.int64))


def test_both_encoders_names():
    model = build(**NO_DROPOUT)
    x = model.embedding(TEXT).transpose(1, 2)
    torch.testing.assert_close(model.encoder.infer(x, LENGTHS), model.encoder(x, LENGTHS), atol=0, rtol=0)
    full = torch.tensor([7] * 4)
    torch.testing.assert_close(model.encoder.inference(x), model.encoder(x, full), atol=1e-6, rtol=0)


def test_dropout_of_the_decoder_acts_when_set():
    model, (inputs, _) = build(**NO_DROPOUT).train(), training_batch()
    plain = model(inputs)[0]
    assert torch.equal(model(inputs)[0], plain)
    for name in ("p_attention_dropout", "p_decoder_dropout"):
        setattr(model.decoder, name, 0.5)
        assert not torch.allclose(model(inputs)[0], plain, atol=1e-3)
        setattr(model.decoder, name, 0.0)


@pytest.mark.parametrize("value", [float(np.finfo("float16").min), -float("inf"), 0.0])
def test_score_mask_value(value):
    """Any value that is low enough changes nothing; zero lets the padding take part, as in the reference."""
    model, (inputs, _) = build(**NO_DROPOUT), training_batch()
    expected = model(inputs)[3]
    layer = model.decoder.attention_layer
    layer.score_mask_value = value
    found = model(inputs)[3]
    padding = torch.arange(7) >= inputs[1][:, None, None]
    assert padding.expand_as(found).any()
    if value == 0:
        assert (found.masked_select(padding.expand_as(found)) > 0).all()
        memory, query, cat = torch.randn(2, 4, 6), torch.randn(2, 9), torch.rand(2, 2, 4)
        mask = torch.tensor([[False, False, True, True], [False] * 4])
        energies = layer.get_alignment_energies(query, layer.memory_layer(memory), cat).masked_fill(mask, 0.0)
        weights = layer(query, memory, layer.memory_layer(memory), cat, mask)[1]
        torch.testing.assert_close(weights, torch.softmax(energies, dim=1), atol=1e-6, rtol=0)
    else:
        assert torch.equal(found, expected)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.decoder.attention_layer.score_mask_value == value
    assert torch.equal(copy.deepcopy(model)(inputs)[3], found)
