"""Tacotron 2 beyond the golden tensors: batching, seeds, several frames a step, masking, limits, errors."""

import copy
import pickle
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastglow import Tacotron2, Tacotron2Loss
from fastglow.errors import FastglowError
from fastglow.kernels import uniform_noise
from fastglow.kernels.reference import decode_loop
from fastglow.models.tacotron2 import DecoderStepLimitWarning

TINY = {
    "n_mel_channels": 5,
    "n_symbols": 11,
    "symbols_embedding_dim": 6,
    "encoder_kernel_size": 3,
    "encoder_n_convolutions": 2,
    "encoder_embedding_dim": 6,
    "attention_rnn_dim": 9,
    "attention_dim": 7,
    "attention_location_n_filters": 3,
    "attention_location_kernel_size": 5,
    "decoder_rnn_dim": 11,
    "prenet_dim": 13,
    "max_decoder_steps": 16,
    "postnet_embedding_dim": 7,
    "postnet_kernel_size": 3,
    "postnet_n_convolutions": 3,
}
NO_DROPOUT = dict.fromkeys(
    ("p_attention_dropout", "p_decoder_dropout", "p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout"), 0.0
)
TEXT = torch.tensor([[3, 1, 4, 1, 0, 0, 0], [5, 9, 2, 6, 5, 3, 5], [8, 9, 0, 0, 0, 0, 0], [2, 7, 1, 8, 2, 8, 0]])
LENGTHS = torch.tensor([4, 7, 2, 6])
SEEDS = [5, 2, 9, 5]


@pytest.fixture(params=[1, 2, 3], ids=lambda r: f"r={r}")
def r(request):
    return request.param


def build(**config):
    """In eval mode, with weights that make the decoder's steps differ and batch statistics that are no identity."""
    model = Tacotron2(**{**TINY, **config}).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(-0.5, 0.5)
    return model


def build_stopping(seed, **config):
    """Its gate stops every item of the batch, with these seeds, before the limit and not all at once."""
    model, logits = build(**config), []
    gate = model.decoder.gate_layer.linear_layer
    nn.init.zeros_(gate.bias)
    linear = F.linear

    def recording(x, weight, bias=None):
        output = linear(x, weight, bias)
        if weight is gate.weight:
            logits.append(output)
        return output

    model.decoder.early_stopping = False
    with mock.patch.object(F, "linear", recording):
        model.infer(TEXT, LENGTHS, seed=seed)
    model.decoder.early_stopping = True
    choices = []  # (how many different lengths, sign of the gate's weights, level of the logits that stops)
    for sign in (1, -1):
        signed = sign * torch.cat(logits, dim=1)[:, :-1].double()  # [B, steps]
        levels = signed.flatten().sort().values
        levels = ((levels[1:] + levels[:-1]) / 2)[levels.diff() > 1e-3]  # rounding moves no logit past them
        above = signed > levels.view(-1, 1, 1)
        stops = above.int().cumsum(dim=2).eq(0).sum(dim=2)  # steps before the first above, [levels, B]
        choices += [
            (len(set(row)), sign, level)
            for row, level in zip(stops.tolist(), levels.tolist(), strict=True)
            if max(row) < signed.shape[1]
        ]
    n_lengths, sign, level = max(choices)
    assert n_lengths > 1
    with torch.no_grad():
        gate.weight *= sign
        gate.bias -= level
    return model


def training_batch(batch_size=3, dtype=torch.float32):
    """(inputs of forward, targets of the loss), unsorted, 12 frames."""
    lengths = torch.tensor([9, 12, 5] if batch_size == 3 else [12])
    n_frames = 12
    mel = torch.randn(batch_size, 5, n_frames, dtype=dtype)
    gate = (torch.arange(n_frames) >= lengths.unsqueeze(1) - 1).to(dtype)
    text, input_lengths = TEXT[:batch_size], LENGTHS[:batch_size]
    text = text[:, : int(input_lengths.max())]
    return (text, input_lengths, mel, text.shape[1], lengths), (mel, gate)


def assert_items_as_alone(model, text, input_lengths, seeds, **tolerance):
    """`infer` of the batch gives each item what it gives it alone; returns the number of frames of each."""
    mel, lengths, alignments = model.infer(text, input_lengths, seed=seeds)
    for item, length in enumerate(input_lengths.tolist()):
        seed = seeds if isinstance(seeds, int) else seeds[item]
        alone_mel, alone_length, alone_alignment = model.infer(
            text[item : item + 1, :length], input_lengths[item : item + 1], seed=seed
        )
        n_frames, n_steps = alone_mel.shape[2], alone_alignment.shape[1]
        assert lengths[item] == alone_length[0]
        torch.testing.assert_close(mel[item, :, :n_frames], alone_mel[0], **tolerance)
        torch.testing.assert_close(alignments[item, :n_steps, :length], alone_alignment[0], **tolerance)
        assert not mel[item, :, n_frames:].any()
        assert not alignments[item, n_steps:].any()
        assert not alignments[item, :, length:].any()
    return lengths


def test_default_model_is_the_published_one():
    with torch.device("meta"):
        model = Tacotron2()
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_193_153
    assert len(model.state_dict()) == 84


def test_forward_shapes(r):
    (text, input_lengths, mel, *rest), _ = training_batch()
    outputs = build(n_frames_per_step=r)((text, input_lengths, mel, *rest))
    assert [tuple(x.shape) for x in outputs] == [(3, 5, 12), (3, 5, 12), (3, 12 // r), (3, 12 // r, 7)]
    alignments = outputs[3]
    torch.testing.assert_close(alignments.sum(dim=2), torch.ones(3, 12 // r), atol=1e-6, rtol=0)
    for item, length in enumerate(input_lengths.tolist()):
        assert not alignments[item, :, length:].any()


def test_frames_that_fill_no_step_are_refused():
    (text, input_lengths, mel, *rest), _ = training_batch()
    with pytest.raises(FastglowError, match="11 mel frames .* n_frames_per_step 2: pad"):
        build(n_frames_per_step=2)((text, input_lengths, mel[:, :, :11], *rest))


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_trains(r, batch_size, mask_padding):
    model = build(n_frames_per_step=r, mask_padding=mask_padding).train()
    inputs, targets = training_batch(batch_size)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = Tacotron2Loss()(model(inputs), targets)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


def test_gradients_reach_every_parameter(r):
    # In eval mode: the batch statistics of training cancel the biases of the convolutions before them.
    model = build(n_frames_per_step=r, **NO_DROPOUT).double()
    inputs, targets = training_batch(dtype=torch.float64)
    Tacotron2Loss()(model(inputs), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-12, name


def test_every_gradient_by_finite_differences():
    """The whole model along random directions of all parameters at once."""
    model = build(n_frames_per_step=2, **NO_DROPOUT).double()
    inputs, targets = training_batch(dtype=torch.float64)
    parameters = list(model.parameters())
    Tacotron2Loss()(model(inputs), targets).backward()
    for _ in range(3):
        directions = [torch.randn_like(p) for p in parameters]
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += step * direction
                losses.append(Tacotron2Loss()(model(inputs), targets).item())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += 1e-6 * direction
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_padding_is_masked(r):
    inputs, _ = training_batch()
    model = build(n_frames_per_step=r, **NO_DROPOUT)
    plain = model(inputs)
    model.config.mask_padding = True
    masked = model(inputs)
    for item, length in enumerate(inputs[4].tolist()):
        steps = -(-length // r)
        for before, after in zip(plain[:2], masked[:2], strict=True):
            assert torch.equal(after[item, :, :length], before[item, :, :length])
            assert not after[item, :, length:].any()
        assert torch.equal(masked[2][item, :steps], plain[2][item, :steps])
        assert (masked[2][item, steps:] == 1000).all()
    assert torch.equal(masked[3], plain[3])


def test_the_order_of_a_training_batch_does_not_matter(r):
    model = build(n_frames_per_step=r, **NO_DROPOUT).double()
    (text, input_lengths, mel, max_len, lengths), _ = training_batch(dtype=torch.float64)
    outputs = model((text, input_lengths, mel, max_len, lengths))
    order = input_lengths.argsort(descending=True)
    assert order.tolist() != [0, 1, 2]
    sorted_outputs = model((text[order], input_lengths[order], mel[order], max_len, lengths[order]))
    for output, sorted_output in zip(outputs, sorted_outputs, strict=True):
        torch.testing.assert_close(output[order], sorted_output, atol=1e-12, rtol=0)


def test_training_dropout_is_drawn_anew():
    inputs, _ = training_batch()
    model = build().train()
    torch.manual_seed(1)
    first, second = model(inputs)[0], model(inputs)[0]
    torch.manual_seed(1)
    assert torch.equal(model(inputs)[0], first)
    assert not torch.equal(second, first)


def test_infer_shapes(r):
    model = build_stopping(SEEDS, n_frames_per_step=r)
    mel, lengths, alignments = model.infer(TEXT, LENGTHS, seed=SEEDS)
    n_frames = mel.shape[2]
    assert mel.shape == (4, 5, n_frames)
    assert alignments.shape == (4, n_frames // r, 7)
    assert lengths.dtype == torch.int32
    assert not (lengths % r).any()
    assert n_frames == lengths.max() + r  # the step on which the gate fired is in the mel
    assert not mel.requires_grad
    for item, length in enumerate(lengths.tolist()):
        sums = alignments[item].sum(dim=1)
        torch.testing.assert_close(sums[: length // r + 1], torch.ones(length // r + 1), atol=1e-6, rtol=0)
        assert not sums[length // r + 1 :].any()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [1, 3, 0, 2]], ids=str)
@pytest.mark.parametrize("seeds", [SEEDS, 7], ids=["own seeds", "common seed"])
def test_batched_as_alone(r, order, seeds):
    """With the prenet's dropout on."""
    model = build_stopping(seeds, n_frames_per_step=r)
    own = seeds if isinstance(seeds, int) else [seeds[i] for i in order]
    lengths = assert_items_as_alone(model, TEXT[order], LENGTHS[order], own, atol=1e-5, rtol=0)
    assert len(set(lengths.tolist())) > 1


def test_batched_as_alone_in_float64():
    """The tolerance of float32 is rounding, not leaking padding."""
    model = build_stopping(SEEDS).double()
    assert_items_as_alone(model, TEXT, LENGTHS, SEEDS, atol=1e-12, rtol=0)


def test_what_pads_the_text_does_not_matter():
    model = build_stopping(3)
    expected = model.infer(TEXT, LENGTHS, seed=3)
    padding = torch.arange(7) >= LENGTHS.unsqueeze(1)
    for filler in (10, -1, 999):
        text = TEXT.masked_fill(padding, filler)
        for actual, tensor in zip(model.infer(text, LENGTHS, seed=3), expected, strict=True):
            assert torch.equal(actual, tensor)
        assert (text[padding] == filler).all()
    longer = nn.functional.pad(TEXT, (0, 3), value=4)
    mel, lengths, alignments = model.infer(longer, LENGTHS, seed=3)
    torch.testing.assert_close(mel, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(lengths, expected[1])
    assert not alignments[:, :, 7:].any()


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
class TestSeeds:
    def test_the_same_seed_gives_the_same_bits(self, r):
        model = build(n_frames_per_step=r, gate_threshold=1.0)
        first = model.infer(TEXT, LENGTHS, seed=3)
        torch.manual_seed(99)
        for a, b in zip(model.infer(TEXT, LENGTHS, seed=3), first, strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(model.infer(TEXT, LENGTHS, seed=4)[0], first[0])

    def test_an_item_has_the_seed_at_its_place(self):
        model = build(gate_threshold=1.0).double()
        text, lengths = TEXT[[1, 1, 1]], LENGTHS[[1, 1, 1]]
        mel, _, _ = model.infer(text, lengths, seed=[1, 2, 1])
        torch.testing.assert_close(mel[0], mel[2], atol=1e-12, rtol=0)
        assert (mel[0] - mel[1]).abs().max() > 1e-3
        common, _, _ = model.infer(text, lengths, seed=1)
        torch.testing.assert_close(common, mel[:1].expand_as(mel), atol=1e-12, rtol=0)

    def test_without_a_seed_pytorchs_generator_chooses(self):
        model = build(gate_threshold=1.0)
        torch.manual_seed(1)
        first, second = (model.infer(TEXT, LENGTHS)[0] for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(model.infer(TEXT, LENGTHS)[0], first)
        assert not torch.equal(second, first)

    @pytest.mark.parametrize(
        "seed",
        [[3, -4, 2**63 - 1, -(2**63)], torch.tensor([1, 2, 3, 4]), np.array([1, 2, 3, 4]), np.int64(3), -1],
        ids=["list", "tensor", "array", "NumPy integer", "negative"],
    )
    def test_kinds_of_seeds(self, seed):
        seeds = [int(s) for s in np.broadcast_to(np.asarray(seed), 4)]
        model = build(gate_threshold=1.0)
        assert torch.equal(model.infer(TEXT, LENGTHS, seed=seed)[0], model.infer(TEXT, LENGTHS, seed=seeds)[0])

    def test_how_many_steps_are_drawn_at_once_does_not_matter(self, monkeypatch):
        model = build(gate_threshold=1.0, max_decoder_steps=70)
        expected = model.infer(TEXT, LENGTHS, seed=3)[0]
        for block in (1, 7, 100):
            monkeypatch.setattr(decode_loop, "NOISE_BLOCK", block)
            assert torch.equal(model.infer(TEXT, LENGTHS, seed=3)[0], expected)

    def test_without_prenet_dropout_the_seed_does_not_matter(self):
        model = build(gate_threshold=1.0, p_prenet_dropout=0.0)
        assert torch.equal(model.infer(TEXT, LENGTHS, seed=1)[0], model.infer(TEXT, LENGTHS, seed=2)[0])


@pytest.mark.parametrize("p", [0.0, 0.5], ids=lambda p: f"prenet dropout {p}")
def test_teacher_forced_with_its_own_output_it_says_the_same_again(r, p, monkeypatch):
    model = build_stopping(0, n_frames_per_step=r, p_prenet_dropout=p).double()

    def prenet_of_seed_0(x):
        """[steps, 1, n_mel_channels * r]: a layer is a stream of its own, a step a row."""
        for stream, layer in enumerate(model.decoder.prenet.layers):
            numbers = uniform_noise(torch.tensor([0]), stream, 0, len(x), TINY["prenet_dim"]).transpose(0, 1)
            x = torch.relu(layer(x)) * (numbers >= p) / (1 - p)
        return x

    with torch.no_grad():  # the postnet adds nothing: infer's result is what the decoder was fed
        model.postnet.convolutions[-1][1].weight.zero_()
        model.postnet.convolutions[-1][1].bias.zero_()
    for item, length in enumerate(LENGTHS.tolist()):  # one by one: forward's encoder sees padding
        text, input_length = TEXT[item : item + 1, :length], LENGTHS[item : item + 1]
        mel, lengths, alignments = model.infer(text, input_length, seed=0)
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder.prenet, "forward", prenet_of_seed_0)
            outputs = model((text, input_length, mel, length, lengths + r))
        torch.testing.assert_close(outputs[0], mel, atol=1e-12, rtol=0)
        torch.testing.assert_close(outputs[1], mel, atol=1e-12, rtol=0)
        torch.testing.assert_close(outputs[3], alignments, atol=1e-12, rtol=0)
        gate = outputs[2][0]
        assert (gate[:-1] <= 0).all()
        assert gate[-1] > 0


def test_postnet_of_infer_is_that_of_forward():
    model = build_stopping(0, p_prenet_dropout=0.0).double()
    text, length = TEXT[1:2], LENGTHS[1:2]
    mels = []
    hook = model.postnet.register_forward_hook(lambda module, inputs, output: mels.append(inputs[0]))
    mel_postnet, lengths, _ = model.infer(text, length)
    hook.remove()
    outputs = model((text, length, mels[0], 7, lengths + 1))
    torch.testing.assert_close(outputs[1], mel_postnet, atol=1e-12, rtol=0)


class TestStepLimit:
    def test_an_endless_item_is_named_and_the_others_are_whole(self, r):
        model = build_stopping(SEEDS, n_frames_per_step=r)
        expected, lengths, _ = model.infer(TEXT, LENGTHS, seed=SEEDS)
        limit = int(lengths.max()) // r
        endless = (lengths == lengths.max()).nonzero().flatten().tolist()
        model.decoder.max_decoder_steps = limit
        with pytest.warns(DecoderStepLimitWarning) as caught:
            mel, cut_lengths, alignments = model.infer(TEXT, LENGTHS, seed=SEEDS)
        (warning,) = caught
        assert f"item(s) {endless} " in str(warning.message)
        assert f"max_decoder_steps {limit}" in str(warning.message)
        assert warning.filename == __file__
        assert mel.shape[2] == limit * r
        assert alignments.shape[1] == limit
        assert torch.equal(cut_lengths, lengths)
        for item in set(range(4)) - set(endless):
            torch.testing.assert_close(mel[item], expected[item, :, : limit * r], atol=1e-5, rtol=0)

    def test_a_gate_that_fires_on_the_last_step_is_in_time(self):
        model = build_stopping(SEEDS)
        expected, lengths, _ = model.infer(TEXT, LENGTHS, seed=SEEDS)
        model.decoder.max_decoder_steps = int(lengths.max()) + 1
        torch.testing.assert_close(model.infer(TEXT, LENGTHS, seed=SEEDS)[0], expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 1], [3, 0]])
    def test_items_have_limits_of_their_own(self, r, order):
        """Each as alone with its limit, whether it is the gate or the limit that ends it."""
        model = build_stopping(SEEDS, n_frames_per_step=r)
        lengths = model.infer(TEXT, LENGTHS, seed=SEEDS)[1].tolist()
        limits = [max(1, lengths[i] // r + more) for i, more in enumerate((-1, 1, 0, 5))]
        seeds, own = [SEEDS[i] for i in order], [limits[i] for i in order]
        with pytest.warns(DecoderStepLimitWarning):
            mel, n_frames, alignments = model.infer(TEXT[order], LENGTHS[order], seed=seeds, max_steps=own)
        for row, i in enumerate(order):
            one = TEXT[i : i + 1], LENGTHS[i : i + 1]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                alone, alone_n, alone_alignments = model.infer(*one, seed=SEEDS[i], max_steps=[limits[i]])
            assert len(caught) == (limits[i] <= lengths[i] // r)
            assert n_frames[row] == alone_n[0] == min(lengths[i], limits[i] * r)
            n, n_steps = alone.shape[2], alone_alignments.shape[1]
            assert n <= limits[i] * r
            torch.testing.assert_close(mel[row, :, :n], alone[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(alignments[row, :n_steps], alone_alignments[0], atol=1e-5, rtol=0)
            assert not mel[row, :, n:].any()

    def test_limits_that_do_not_fit(self):
        model = build_stopping(SEEDS)
        for limits in ([5], [5, 5, 0, 5], [3, 3, 3, 3, 3]):
            with pytest.raises(
                FastglowError, match=r"^max_steps \[.*\] for 4 items: pass one an item, each at least 1$"
            ):
                model.infer(TEXT, LENGTHS, seed=SEEDS, max_steps=limits)
        expected, n_frames, _ = model.infer(TEXT, LENGTHS, seed=SEEDS)
        same, same_n, _ = model.infer(TEXT, LENGTHS, seed=SEEDS, max_steps=[10**9] * 4)
        assert torch.equal(same, expected)
        assert torch.equal(same_n, n_frames)

    def test_a_gate_that_never_fires(self, r):
        model = build(n_frames_per_step=r, gate_threshold=1.0)
        with pytest.warns(DecoderStepLimitWarning, match=r"item\(s\) \[0, 1, 2, 3\] did not"):
            mel, lengths, _ = model.infer(TEXT, LENGTHS, seed=0)
        assert lengths.tolist() == [16 * r] * 4
        assert mel.shape[2] == 16 * r
        assert mel.any(dim=1).all()

    def test_a_gate_that_fires_at_once(self, r):
        model = build(n_frames_per_step=r, gate_threshold=0.0)
        mel, lengths, alignments = model.infer(TEXT, LENGTHS, seed=0)
        assert lengths.tolist() == [0] * 4
        assert mel.shape == (4, 5, r)
        assert alignments.shape == (4, 1, 7)

    def test_without_early_stopping_it_runs_to_the_limit_and_warns_of_nothing(self, r):
        model = build_stopping(SEEDS, n_frames_per_step=r)
        expected, lengths, _ = model.infer(TEXT, LENGTHS, seed=SEEDS)
        endless = build(n_frames_per_step=r, decoder_no_early_stopping=True)
        endless.load_state_dict(model.state_dict())
        mel, same_lengths, alignments = endless.infer(TEXT, LENGTHS, seed=SEEDS)
        assert mel.shape[2] == 16 * r
        assert alignments.shape[1] == 16
        assert torch.equal(same_lengths, lengths)
        for item, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(mel[item, :, :length], expected[item, :, :length], atol=1e-5, rtol=0)
        endless.decoder.gate_threshold = 1.0
        assert endless.infer(TEXT, LENGTHS, seed=SEEDS)[1].tolist() == [16 * r] * 4


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = build().to(dtype)
    mel, _, alignments = model.infer(TEXT, LENGTHS, seed=0)
    assert mel.dtype == alignments.dtype == dtype
    assert mel.isfinite().all()
    exact, _, _ = copy.deepcopy(model).double().infer(TEXT, LENGTHS, seed=0)
    steps = min(4, mel.shape[2], exact.shape[2])
    torch.testing.assert_close(
        mel[:, :, :steps].double(), exact[:, :, :steps], atol=50 * torch.finfo(dtype).eps, rtol=0
    )


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_copies_are_equal_and_independent(r):
    model = build(n_frames_per_step=r)
    expected = model.infer(TEXT, LENGTHS, seed=1)
    fresh = build(n_frames_per_step=r)
    assert not torch.equal(fresh.infer(TEXT, LENGTHS, seed=1)[0], expected[0])
    fresh.load_state_dict(model.state_dict(), strict=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        for a, b in zip(twin.infer(TEXT, LENGTHS, seed=1), expected, strict=True):
            assert torch.equal(a, b)
        model.load_state_dict(twin.state_dict(), strict=True)
        with torch.no_grad():
            twin.embedding.weight.zero_()
    assert torch.equal(model.infer(TEXT, LENGTHS, seed=1)[0], expected[0])


@pytest.mark.parametrize(
    ("text", "lengths", "seed", "message"),
    [
        (TEXT[0], LENGTHS[:1], 0, r"text has shape \(7,\): pass a batch"),
        (TEXT[:0], LENGTHS[:0], 0, r"text has shape \(0, 7\): pass a batch"),
        (TEXT[:, :0], LENGTHS, 0, "from 2 to 7 do not fit texts padded to 0"),
        (TEXT, LENGTHS[:3], 0, r"input_lengths has shape \(3,\) for 4 texts"),
        (TEXT, LENGTHS.unsqueeze(1), 0, r"input_lengths has shape \(4, 1\) for 4 texts"),
        (TEXT, torch.tensor([4, 0, 2, 6]), 0, "input_lengths from 0 to 6"),
        (TEXT, torch.tensor([4, 8, 2, 6]), 0, "input_lengths from 2 to 8 do not fit texts padded to 7"),
        (TEXT + 3, LENGTHS, 0, "symbol ids from 4 to 12, but this model knows 0 to 10"),
        (TEXT - 2, LENGTHS, 0, "symbol ids from -1 to 7"),
        (TEXT, LENGTHS, [1, 2, 3], "3 seeds for 4 items"),
        (TEXT, LENGTHS, [], "0 seeds for 4 items"),
        (TEXT, LENGTHS, 2**63, f"seed {2**63} does not fit 64 bits"),
        (TEXT, LENGTHS, [1, 2, 3, -(2**63) - 1], f"seed {-(2**63) - 1} does not fit 64 bits"),
    ],
)
def test_bad_input_of_infer(text, lengths, seed, message):
    with pytest.raises(FastglowError, match=message) as error:
        build().infer(text, lengths, seed=seed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"symbols_embedding_dim": 8}, "symbols_embedding_dim 8 must equal encoder_embedding_dim 6"),
        ({"symbols_embedding_dim": 7, "encoder_embedding_dim": 7}, "encoder_embedding_dim 7 is odd"),
        ({"n_frames_per_step": 0}, "n_frames_per_step 0"),
        ({"max_decoder_steps": 0}, "max_decoder_steps 0"),
        ({"gate_threshold": float("nan")}, "gate_threshold nan never stops"),
        ({"encoder_kernel_size": 4}, "encoder_kernel_size 4 is even"),
        ({"attention_location_kernel_size": 30}, "attention_location_kernel_size 30 is even"),
        ({"postnet_kernel_size": 2}, "postnet_kernel_size 2 is even"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(FastglowError, match=message) as error:
        Tacotron2(**{**TINY, **config})
    assert "\n" not in str(error.value)


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="speaker_embedding_dim"):
        Tacotron2(speaker_embedding_dim=3)
