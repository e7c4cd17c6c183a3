"""Tacotron 2's inference beyond the golden tensors: batching, seeds, step limits, dtypes, errors."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels import uniform_noise
from fastglow.kernels.reference import decode_loop
from fastglow.models.tacotron2 import DecoderStepLimitWarning

from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, TINY, build, build_stopping


def assert_items_as_alone(model, text, input_lengths, seeds, **tolerance):
    """Checks that `infer` gives each item of a batch its result alone; returns each item's number of frames."""
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
    """The tolerance in float32 covers rounding, not leaking padding."""
    model = build_stopping(SEEDS).double()
    assert_items_as_alone(model, TEXT, LENGTHS, SEEDS, atol=1e-12, rtol=0)


def test_padding_values_of_the_text_do_not_matter():
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

    def test_each_item_has_its_own_seed(self):
        model = build(gate_threshold=1.0).double()
        text, lengths = TEXT[[1, 1, 1]], LENGTHS[[1, 1, 1]]
        mel, _, _ = model.infer(text, lengths, seed=[1, 2, 1])
        torch.testing.assert_close(mel[0], mel[2], atol=1e-12, rtol=0)
        assert (mel[0] - mel[1]).abs().max() > 1e-3
        common, _, _ = model.infer(text, lengths, seed=1)
        torch.testing.assert_close(common, mel[:1].expand_as(mel), atol=1e-12, rtol=0)

    def test_without_a_seed_pytorchs_generator_draws_one(self):
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
    def test_types_of_seeds(self, seed):
        seeds = [int(s) for s in np.broadcast_to(np.asarray(seed), 4)]
        model = build(gate_threshold=1.0)
        assert torch.equal(model.infer(TEXT, LENGTHS, seed=seed)[0], model.infer(TEXT, LENGTHS, seed=seeds)[0])

    def test_the_size_of_noise_blocks_does_not_matter(self, monkeypatch):
        model = build(gate_threshold=1.0, max_decoder_steps=70)
        expected = model.infer(TEXT, LENGTHS, seed=3)[0]
        for block in (1, 7, 100):
            monkeypatch.setattr(decode_loop, "NOISE_BLOCK", block)
            assert torch.equal(model.infer(TEXT, LENGTHS, seed=3)[0], expected)

    def test_without_prenet_dropout_the_seed_does_not_matter(self):
        model = build(gate_threshold=1.0, p_prenet_dropout=0.0)
        assert torch.equal(model.infer(TEXT, LENGTHS, seed=1)[0], model.infer(TEXT, LENGTHS, seed=2)[0])


@pytest.mark.parametrize("p", [0.0, 0.5], ids=lambda p: f"prenet dropout {p}")
def test_teacher_forcing_with_its_own_output_reproduces_it(r, p, monkeypatch):
    model = build_stopping(0, n_frames_per_step=r, p_prenet_dropout=p).double()

    def prenet_of_seed_0(x):
        """[steps, 1, n_mel_channels * r]: one stream per layer, one row per step."""
        for stream, layer in enumerate(model.decoder.prenet.layers):
            numbers = uniform_noise(torch.tensor([0]), stream, 0, len(x), TINY["prenet_dim"]).transpose(0, 1)
            x = torch.relu(layer(x)) * (numbers >= p) / (1 - p)
        return x

    with torch.no_grad():  # a zero postnet: infer returns the decoder's input
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


def test_infer_and_forward_have_the_same_postnet():
    model = build_stopping(0, p_prenet_dropout=0.0).double()
    text, length = TEXT[1:2], LENGTHS[1:2]
    mels = []
    hook = model.postnet.register_forward_hook(lambda module, inputs, output: mels.append(inputs[0]))
    mel_postnet, lengths, _ = model.infer(text, length)
    hook.remove()
    outputs = model((text, length, mels[0], 7, lengths + 1))
    torch.testing.assert_close(outputs[1], mel_postnet, atol=1e-12, rtol=0)


class TestStepLimit:
    def test_an_item_that_never_stops_is_named_and_the_others_are_complete(self, r):
        model = build_stopping(SEEDS, n_frames_per_step=r)
        expected, lengths, _ = model.infer(TEXT, LENGTHS, seed=SEEDS)
        limit = int(lengths.max()) // r
        endless = (lengths == lengths.max()).nonzero().flatten().tolist()
        model.decoder.max_decoder_steps = limit
        with pytest.warns(DecoderStepLimitWarning) as caught:
            mel, cut_lengths, alignments = model.infer(TEXT, LENGTHS, seed=SEEDS)
        (warning,) = caught
        assert f"item(s) {endless} " in str(warning.message)
        assert f"max_decoder_steps={limit}:" in str(warning.message)
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
    def test_each_item_has_its_own_limit(self, r, order):
        """The same result as alone with that limit, whether the gate or the limit ends it."""
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

    def test_bad_limits(self):
        model = build_stopping(SEEDS)
        for limits in ([5], [5, 5, 0, 5], [3, 3, 3, 3, 3]):
            with pytest.raises(
                FastglowError, match=r"^max_steps=\[.*\] must have one limit per item \(4\), each at least 1$"
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

    def test_without_early_stopping_it_runs_to_the_limit_without_a_warning(self, r):
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
    # In bfloat16 on a CPU only the weights and the inputs of products are rounded.
    assert mel.dtype == alignments.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert mel.isfinite().all()
    exact, _, _ = copy.deepcopy(model).double().infer(TEXT, LENGTHS, seed=0)
    steps = min(4, mel.shape[2], exact.shape[2])
    torch.testing.assert_close(
        mel[:, :, :steps].double(), exact[:, :, :steps], atol=50 * torch.finfo(dtype).eps, rtol=0
    )


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("signal", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@torch.no_grad()
def test_only_float32_is_cast_and_only_to_bfloat16(weights, signal):
    """By the postnet, because the decoder in bfloat16 gives frames in float32."""
    model = build().to(weights)
    mel, n_frames = torch.randn(2, 5, 8).to(signal), torch.tensor([8, 3])
    if signal == weights or (signal, weights) == (torch.float32, torch.bfloat16):
        residual = model.add_residual(mel, n_frames) - mel
        assert residual.dtype == signal
        expected = model.add_residual(mel.to(weights), n_frames) - mel.to(weights)
        torch.testing.assert_close(residual[0].to(weights), expected[0], atol=1e-1, rtol=0)
    else:
        with pytest.raises(RuntimeError, match="should be the same"):
            model.add_residual(mel, n_frames)
    if signal != weights:
        with pytest.raises(RuntimeError, match="have the same dtype"):
            model.decoder.infer(torch.randn(4, 7, 6).to(signal), LENGTHS, torch.tensor(SEEDS))


def test_a_limit_far_beyond_the_end():
    """Its memory is that of the frames."""
    model = build_stopping(SEEDS)
    expected = model.infer(TEXT, LENGTHS, seed=SEEDS)
    model.decoder.max_decoder_steps = 10**9
    for found, tensor in zip(model.infer(TEXT, LENGTHS, seed=SEEDS), expected, strict=True):
        assert torch.equal(found, tensor)


def test_an_older_versions_pickle():
    model = build_stopping(SEEDS)
    expected = model.infer(TEXT, LENGTHS, seed=SEEDS)
    del model.decoder._packed, model.encoder._directions
    assert "_cpu_weights" not in vars(model.decoder)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for found, tensor in zip(twin.infer(TEXT, LENGTHS, seed=SEEDS), expected, strict=True):
            assert torch.equal(found, tensor)


def test_weights_of_inference_mode_are_packed_once(monkeypatch):
    packs = []
    pack_decoder = kernels.pack_decoder
    monkeypatch.setattr(kernels, "pack_decoder", lambda *args: packs.append(1) or pack_decoder(*args))
    state = build_stopping(SEEDS).state_dict()
    with torch.inference_mode():
        model = build()
    for scale in (1.0, 1.5):
        with torch.inference_mode():
            model.load_state_dict({name: x * scale if x.is_floating_point() else x for name, x in state.items()})
        assert next(model.parameters()).is_inference()
        expected = build()
        expected.load_state_dict(model.state_dict())
        expected = expected.infer(TEXT, LENGTHS, seed=SEEDS)
        packs.clear()
        for _ in range(2):
            for found, tensor in zip(model.infer(TEXT, LENGTHS, seed=SEEDS), expected, strict=True):
                assert torch.equal(found, tensor)
        assert len(packs) == 1


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
        (TEXT[0], LENGTHS[:1], 0, r"text has shape \[7\], must be \[B, T_in\]"),
        (TEXT[:0], LENGTHS[:0], 0, r"text has shape \[0, 7\], must be \[B, T_in\]"),
        (TEXT[:, :0], LENGTHS, 0, "from 2 to 7 must be between 1 and 0, to which the texts are padded"),
        (TEXT, LENGTHS[:3], 0, r"input_lengths has shape \[3\], must be \[4\]"),
        (TEXT, LENGTHS.unsqueeze(1), 0, r"input_lengths has shape \[4, 1\], must be \[4\]"),
        (TEXT, torch.tensor([4, 0, 2, 6]), 0, "input_lengths from 0 to 6"),
        (TEXT, torch.tensor([4, 8, 2, 6]), 0, "input_lengths from 2 to 8 must be between 1 and 7"),
        (TEXT + 3, LENGTHS, 0, "symbol ids from 4 to 12 must be between 0 and 10"),
        (TEXT - 2, LENGTHS, 0, "symbol ids from -1 to 7"),
        (TEXT, LENGTHS, [1, 2, 3], "3 seeds for 4 items"),
        (TEXT, LENGTHS, [], "0 seeds for 4 items"),
        (TEXT, LENGTHS, 2**63, f"seed={2**63} does not fit in 64 bits"),
        (TEXT, LENGTHS, [1, 2, 3, -(2**63) - 1], f"seed={-(2**63) - 1} does not fit in 64 bits"),
    ],
)
def test_bad_input_of_infer(text, lengths, seed, message):
    with pytest.raises(FastglowError, match=message) as error:
        build().infer(text, lengths, seed=seed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[7], [7, 1, 4], [2, 7, 7, 3]], ids=str)
def test_the_masked_encoder_is_the_packed_one(lengths, dtype):
    """Item by item, without padding, the reference's packed LSTM gives the same."""
    encoder = build().to(dtype).encoder.eval()
    n = torch.tensor(lengths)
    x = torch.randn(len(lengths), 6, 7, dtype=dtype)
    mask = (torch.arange(7) < n.unsqueeze(1)).unsqueeze(1).to(dtype)
    with torch.no_grad():
        found = encoder(x, n, mask)
        for item, length in enumerate(lengths):
            expected = encoder(x[item : item + 1, :, :length], n[item : item + 1])
            torch.testing.assert_close(found[item : item + 1, :length], expected, atol=1e-6, rtol=0)
            assert not found[item, length:].any()


def test_the_masked_encoder_follows_its_weights():
    encoder = build().encoder.eval()
    x, n, mask = torch.randn(1, 6, 5), torch.tensor([5]), torch.ones(1, 1, 5)
    with torch.no_grad():
        before = encoder(x, n, mask)
        for parameter in encoder.lstm.parameters():
            parameter.mul_(1.5)
        after = encoder(x, n, mask)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, encoder(x, n), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [torch.uint8, torch.float64, torch.float16, "int8", 8])
def test_other_types_of_the_decoders_weights_are_refused(value):
    decoder = build().decoder
    decoder.cpu_weights = torch.int8
    with pytest.raises(FastglowError) as error:
        decoder.cpu_weights = value
    message = str(error.value)
    assert f"cpu_weights={value!r}" in message and "\n" not in message
    assert all(choice in message for choice in ("torch.float32", "torch.bfloat16", "torch.int8", "None"))
    assert decoder.cpu_weights == torch.int8


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.int8])
def test_types_of_the_decoders_weights(dtype):
    model = build_stopping(SEEDS)
    exact = model.infer(TEXT, LENGTHS, seed=SEEDS)[0]
    model.decoder.cpu_weights = dtype
    mel = copy.deepcopy(model).infer(TEXT, LENGTHS, seed=SEEDS)[0]
    assert torch.equal(mel, exact) is (dtype in (None, torch.float32))
    torch.testing.assert_close(mel[:, :, :2], exact[:, :, :2], atol=0.1, rtol=0)
