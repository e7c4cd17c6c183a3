"""Decoders of NVIDIA's family before and after: under teacher forcing, and in inference with another's noise."""

import io
import warnings
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

from fastglow import accelerate
from fastglow.kernels import backend
from fastglow.patching import restore

from .comparing import assert_close, results, tensors
from .rebuilt import NORMS
from .rebuilt_tacotron2 import (
    Decoder,
    ExamplesDecoder,
    NvidiaDecoder,
    Prenet,
    SpeechBrainDecoder,
    SquaredAttention,
    TorchaudioDecoder,
    linear,
)

FAMILY = [NvidiaDecoder, ExamplesDecoder, SpeechBrainDecoder, TorchaudioDecoder]
LENGTHS = torch.tensor([8, 5, 1])


def inputs(decoder, B=3, n_steps=4):
    return [torch.randn(B, 8, 6), torch.randn(B, decoder.settings()[0], n_steps * decoder.n_frames_per_step)]


def teacher_forced(decoder, memory, mels):
    return decoder(memory, mels, LENGTHS[: len(memory)])


# Teacher forcing


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("B, per_step, n_steps", [(1, 1, 4), (3, 2, 3), (2, 3, 1)])
@pytest.mark.parametrize("p_states", [0.0, 0.3])
def test_teacher_forcing(cls, B, per_step, n_steps, p_states):
    """The same for the same state of PyTorch's generator, with the dropout of the prenet and of the states."""
    torch.manual_seed(1)
    decoder = cls(per_step=per_step, p_states=p_states)
    values = inputs(decoder, B, n_steps)
    cases = [(training, gradients) for training in (False, True) for gradients in (False, True)]
    expected = [results(decoder, teacher_forced, values, *case) for case in cases]
    names = list(decoder.state_dict())
    report = accelerate(decoder, strict=True)
    assert [entry.op for entry in report] == [
        "teacher_forced_loop", "lstm_cell", "location_attention", "lstm_cell",
    ]  # fmt: skip
    for case, result in zip(cases, expected, strict=True):
        assert_close(result, results(decoder, teacher_forced, values, *case))
    report.undo()
    assert list(decoder.state_dict()) == names
    for case, result in zip(cases, expected, strict=True):
        assert all(map(torch.equal, result, results(decoder, teacher_forced, values, *case)))


@pytest.mark.parametrize("dropped", ["p_attention_dropout", "p_decoder_dropout"])
def test_dropout_of_one_of_the_states(dropped):
    torch.manual_seed(2)
    decoder = ExamplesDecoder()
    setattr(decoder, dropped, 0.0)
    decoder.settings = lambda: (3, 0.0, 6, True)  # of the rebuilt steps
    decoder.p_attention_dropout = decoder.p_decoder_dropout = 0.0
    values = inputs(decoder)
    expected = results(decoder, teacher_forced, values, True)
    accelerate(decoder, strict=True)
    assert_close(expected, results(decoder, teacher_forced, values, True))
    setattr(decoder, dropped, 0.5)  # what it says at the call counts
    other = results(decoder, teacher_forced, values, True)
    assert not torch.allclose(expected[0], other[0])


def test_the_kernels_run_where_they_drop_nothing():
    torch.manual_seed(3)
    decoder = NvidiaDecoder()
    values = inputs(decoder, 2, 2)
    decoder.prenet.dropout = 0.0  # whose kernel draws noise of its own
    expected = [results(decoder, teacher_forced, values, training) for training in (False, True)]
    accelerate(decoder, strict=True)
    with backend.use_backend("triton"):
        for training in (False, True):
            before = backend.launches["teacher_forced_loop"]
            found = results(decoder, teacher_forced, values, training)
            assert (backend.launches["teacher_forced_loop"] > before) is not training
            assert_close(expected[training], found)


def test_keywords():
    torch.manual_seed(4)
    for decoder, name in ((NvidiaDecoder(), "decoder_inputs"), (TorchaudioDecoder(), "mel_specgram_truth")):
        memory, mels = inputs(decoder)
        call = {"memory": memory, name: mels, "memory_lengths": LENGTHS}
        decoder.eval().requires_grad_(False)
        torch.manual_seed(5)
        expected = decoder(**call)
        accelerate(decoder, strict=True)
        torch.manual_seed(5)
        assert_close(list(expected), list(decoder(**call)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_teacher_forcing_in_16_bits(dtype):
    torch.manual_seed(6)
    decoder = ExamplesDecoder(prenet_dropout=0.0).eval()
    memory, mels = inputs(decoder)
    exact = decoder(memory, mels, LENGTHS)
    decoder.to(dtype)
    expected = decoder(memory.to(dtype), mels.to(dtype), LENGTHS)
    accelerate(decoder, strict=True)
    found = decoder(memory.to(dtype), mels.to(dtype), LENGTHS)
    for a, b, c in zip(exact, expected, found, strict=True):
        assert c.dtype == b.dtype == dtype
        assert (c - a).abs().max() <= 2 * (b - a).abs().max() + 4 * torch.finfo(dtype).eps


def test_autocast_gives_the_same_dtypes():
    torch.manual_seed(7)
    decoder = TorchaudioDecoder(prenet_dropout=0.0).eval()
    memory, mels = inputs(decoder)
    for call in (lambda: decoder(memory, mels, LENGTHS), lambda: decoder.infer(memory, LENGTHS)):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            expected = call()
            with accelerate(decoder, "decode_loop", strict=True):
                found = call()
        assert [x.dtype for x in found] == [x.dtype for x in expected]
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("change", [
    lambda decoder: setattr(decoder.attention_layer, "score_mask_value", -1.0),
    lambda decoder: decoder.attention_rnn.register_forward_hook(lambda *_: None),
    lambda decoder: decoder.prenet.register_forward_pre_hook(lambda *_: None),
])  # fmt: skip
def test_what_a_loop_cannot_do_is_left_to_the_decoder(change):
    torch.manual_seed(8)
    decoder = NvidiaDecoder()
    values = inputs(decoder)
    accelerate(decoder, "teacher_forced_loop", strict=True)
    change(decoder)
    found = results(decoder, teacher_forced, values, False)
    restore(decoder)
    assert all(map(torch.equal, found, results(decoder, teacher_forced, values, False)))


@pytest.mark.parametrize("norm", [NORMS["hook"], NORMS["parametrization"]])
def test_weight_norm_of_the_cells(norm):
    """Its hook fires when the cell is called, which a loop of all frames does not do."""
    decoder = NvidiaDecoder()
    for cell in (decoder.attention_rnn, decoder.decoder_rnn):
        norm(norm(cell, "weight_hh"), "weight_ih")
    tensors_in = inputs(decoder)
    results(decoder, teacher_forced, tensors_in, True)
    accelerate(decoder, "teacher_forced_loop", strict=True)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1.2)
    found = [results(decoder, teacher_forced, tensors_in, training) for training in (False, True)]
    restore(decoder)
    for training, values in enumerate(found):
        assert_close(results(decoder, teacher_forced, tensors_in, bool(training)), values)


def test_wrong_frames_are_the_decoders_own_error():
    decoder = NvidiaDecoder(per_step=2)
    accelerate(decoder, strict=True)
    with pytest.raises(RuntimeError, match="shape"):
        decoder(torch.randn(3, 8, 6), torch.randn(3, 3, 5), LENGTHS)


# Inference


def infer(decoder, memory, seed=9):
    """(results, printed, warned)."""
    printed = io.StringIO()
    torch.manual_seed(seed)
    with redirect_stdout(printed), warnings.catch_warnings(record=True) as warned, torch.no_grad():
        warnings.simplefilter("always")
        if isinstance(decoder, NvidiaDecoder):
            found = decoder.inference(memory[:1])
        else:
            found = decoder.infer(memory, LENGTHS[: len(memory)])
    return tensors(found), printed.getvalue(), [str(w.message) for w in warned]


def set_limit(decoder, n):
    setattr(decoder, "decoder_max_step" if isinstance(decoder, TorchaudioDecoder) else "max_decoder_steps", n)


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("B, per_step", [(1, 1), (3, 1), (3, 2)])
def test_inference_without_dropout(cls, B, per_step):
    """Thresholds that end the items elsewhere, and limits around pieces of steps."""
    torch.manual_seed(10)
    decoder = cls(per_step=per_step, prenet_dropout=0.0).eval()
    memory, _ = inputs(decoder, B)
    memory = memory[:1] + 0.1 * memory  # or some gate always fires on the first step, or another never
    set_limit(decoder, 20)
    decoder.gate_threshold = 1.0
    gates = infer(decoder, memory)[0][2 if cls is TorchaudioDecoder else 1].sigmoid().flatten().sort().values
    apart = gates.diff() > 1e-5  # rounding must not decide which is above a threshold
    between = ((gates[1:] + gates[:-1]) / 2)[apart]
    between = between[:: max(1, len(between) // 12)].tolist()
    cases = [(20, threshold) for threshold in (0.0, *between, 1.0)] + [(1, 1.0), (16, 1.0), (16, between[2])]

    def run():
        for limit, decoder.gate_threshold in cases:
            set_limit(decoder, limit)
            yield infer(decoder, memory)

    expected = list(run())
    with swapped_loop(decoder):
        for own, found in zip(expected, run(), strict=True):
            assert_close(own[0], found[0])
            assert found[1:] == own[1:]
    lengths = {own[0][0].shape[2] // per_step for own in expected}
    assert {1, 16, 20} <= lengths and len(lengths) > 3


def swapped_loop(decoder):
    """Without comparing again: `accelerate` has set its own settings on a copy only."""
    report = accelerate(decoder, "decode_loop", strict=True)
    assert [entry.op for entry in report] == ["decode_loop"]
    return report


@pytest.mark.parametrize("cls", [ExamplesDecoder, TorchaudioDecoder])
def test_inference_without_early_stopping(cls):
    torch.manual_seed(11)
    decoder = cls(prenet_dropout=0.0).eval()
    decoder.gate_threshold = 0.0
    setattr(decoder, "decoder_early_stopping" if cls is TorchaudioDecoder else "early_stopping", False)
    for B in (1, 3):
        memory, _ = inputs(decoder, B)
        expected = infer(decoder, memory)
        with swapped_loop(decoder):
            found = infer(decoder, memory)
        assert_close(expected[0], found[0])
        assert found[1:] == expected[1:] and found[0][0].shape[2] == 6


@pytest.mark.parametrize("cls", FAMILY)
def test_seeds_reproduce_the_noise(cls):
    torch.manual_seed(12)
    decoder = cls().eval()
    memory, _ = inputs(decoder)
    own = infer(decoder, memory)[0]
    with accelerate(decoder) as report:  # draws as the decoder does
        assert "decode_loop" not in [entry.op for entry in report]
        assert_close(own, infer(decoder, memory)[0])
    with swapped_loop(decoder):
        first, second, other = (infer(decoder, memory, seed)[0] for seed in (1, 1, 2))
        assert all(map(torch.equal, first, second))
        assert not torch.equal(first[0], other[0])
        assert not first[0].requires_grad
    assert all(map(torch.equal, own, infer(decoder, memory)[0]))


def test_half_of_the_prenet_is_dropped():
    """The mean over many items of a linear function of the prenet's last layer is that without dropout."""
    torch.manual_seed(13)
    decoder = ExamplesDecoder().eval()
    set_limit(decoder, 1)
    with torch.no_grad():  # the first frame is zeros, so that only a second one sees the prenet
        decoder.linear_projection.linear_layer.bias.fill_(1.0)
    set_limit(decoder, 2)
    decoder.gate_threshold = 1.0
    memory = torch.randn(1, 8, 6).expand(512, 8, 6).contiguous()
    lengths = torch.full((512,), 8)

    def second_frames():
        with torch.no_grad():
            mel, *_ = decoder.infer(memory, lengths)
        return mel[:, :, 1]

    own = second_frames()
    with swapped_loop(decoder):
        found = second_frames()
    spread = own.std(0)
    assert bool((spread > 1e-4).all())
    assert bool(((own.mean(0) - found.mean(0)).abs() < 0.3 * spread).all())
    assert bool(((found.std(0) / spread).log().abs() < 0.3).all())


def test_inference_in_training_mode_is_the_decoders_own():
    torch.manual_seed(14)
    decoder = TorchaudioDecoder(prenet_dropout=0.0).train()
    memory, _ = inputs(decoder)
    own = infer(decoder, memory)[0]
    with swapped_loop(decoder):
        assert all(map(torch.equal, own, infer(decoder, memory)[0]))


def test_nvidia_batches_are_its_own_error():
    decoder = NvidiaDecoder().eval()
    with swapped_loop(decoder), pytest.raises(RuntimeError, match="one item only"):
        decoder.inference(torch.randn(2, 8, 6))


def test_teacher_forcing_of_a_decoder_with_its_loop_swapped():
    torch.manual_seed(15)
    decoder = SpeechBrainDecoder()
    values = inputs(decoder)
    expected = [results(decoder, teacher_forced, values, training) for training in (False, True)]
    with swapped_loop(decoder):
        for training in (False, True):
            assert_close(expected[training], results(decoder, teacher_forced, values, training))


def test_changed_weights_are_packed_again():
    torch.manual_seed(16)
    decoder = TorchaudioDecoder(prenet_dropout=0.0).eval()
    memory, _ = inputs(decoder, 1)
    with swapped_loop(decoder):
        infer(decoder, memory)
        with torch.no_grad():
            decoder.decoder_rnn.weight_hh.mul_(2)
        found = infer(decoder, memory)[0]
    assert_close(infer(decoder, memory)[0], found)


# Differences


class TanhPrenet(Prenet):
    def activation(self, x):
        return x.tanh()


def with_part(name, part):
    decoder = NvidiaDecoder()
    setattr(decoder, name, part)
    return decoder


class NamelessDecoder(NvidiaDecoder):
    def name_settings(self, n_mels, p_states):
        self.dims = n_mels


@pytest.mark.parametrize("decoder, named", [
    (with_part("attention_rnn", nn.GRUCell(13, 9)), "attention_rnn is a GRUCell, must be an LSTMCell"),
    (with_part("decoder_rnn", nn.LSTMCell(15, 11, bias=False)), "decoder_rnn has no bias"),
    (with_part("prenet", Prenet(3, [5, 7], bias=True)), "prenet.layers.0 has a bias"),
    (with_part("prenet", nn.Linear(3, 7)), "prenet has no list of layers"),
    (with_part("linear_projection", linear(17, 3)), "linear_projection has no bias"),
    (with_part("linear_projection", linear(17, 4, True)), "linear_projection has out_features=4, must be 3"),
    (with_part("gate_layer", linear(17, 2, True)), "gate_layer has out_features=2, must be 1"),
    (with_part("attention_layer", nn.Identity()), "attention_layer is a Identity of another kind"),
    (with_part("attention_layer", SquaredAttention()), "its results differ"),
    (NamelessDecoder(), "it has other settings"),
])  # fmt: skip
def test_differences_are_named(decoder, named):
    (entry,) = accelerate(decoder, "teacher_forced_loop").left
    assert entry.module == "" and named in entry.text


def test_another_prenet_is_left_in_inference_only():
    decoder = with_part("prenet", TanhPrenet(3, [5, 7]))
    assert "its results differ" in accelerate(decoder, "decode_loop").left[0].text
    assert not accelerate(decoder, "teacher_forced_loop").left


def test_a_decoder_without_inference_is_left():
    assert "neither a method infer nor inference" in accelerate(Decoder(), "decode_loop").left[0].text


def test_the_loop_of_inference_is_asked_for_later():
    decoder = TorchaudioDecoder()
    first = accelerate(decoder, strict=True)
    second = accelerate(decoder, "decode_loop", strict=True)
    assert second.entries[0].op == "decode_loop" and "swapped before" not in second.entries[0].text
    assert accelerate(decoder).entries[0].op == "decode_loop"  # which includes teacher forcing
    second.undo()
    assert accelerate(decoder, "teacher_forced_loop").entries[0].op == "teacher_forced_loop"
    second = accelerate(decoder, "decode_loop")
    first.undo()  # leaves what was swapped otherwise since
    assert accelerate(decoder).entries[0].op == "decode_loop"
    restore(decoder)
    assert type(decoder) is TorchaudioDecoder


def test_the_loop_runs_also_when_its_cells_are_swapped():
    decoder = TorchaudioDecoder()
    accelerate(decoder, strict=True)
    with backend.use_backend("triton"):
        before = backend.launches["teacher_forced_loop"]
        teacher_forced(decoder.eval(), *inputs(decoder, 1, 1))
    assert backend.launches["teacher_forced_loop"] > before
