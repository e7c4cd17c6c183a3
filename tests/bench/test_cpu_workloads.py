"""What `make bench` times on a CPU, and that its checks find planted faults."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import bundled_voice, environment
from bench import test_bench_decode_loop as decode_loop
from bench.bundled_voice import BundledVoice, StartToFile
from bench.foreign_models import TARGETS
from bench.workload import COMPILE, EAGER, FASTGLOW, INFERENCE, ORDINARY, PEER, Implementation, all_workloads
from fastglow.kernels.cpu import fast_dtype

OURS = Implementation(FASTGLOW)
DTYPES = list(dict.fromkeys((fast_dtype(), torch.float32)))


@pytest.mark.skipif(environment.has_gpu(), reason="a GPU has other sizes")
def test_published_sizes():
    published = [workload for workload in all_workloads() if workload.runs(small=False)]
    others = [workload for workload in published if workload.op == "accelerate"]
    assert {workload.case for workload in others} == {target.case for target in TARGETS}
    loaders = [workload for workload in published if workload.op == "loader"]
    assert [workload.name for workload in loaders] == [
        f"{case}-workers-{n}" for case in ("waveglow-10x8000-int16", "tacotron2-128-float32") for n in (0, 1, 2)
    ]
    served = [workload for workload in published if workload.op == "serve"]
    assert [workload.name for workload in served] == ["1-clients", "8-clients", "32-clients"]
    assert all(workload.offers(ORDINARY) and workload.in_turn for workload in served)
    others += [*loaders, *served]
    timed = {f"{workload.op}/{workload.case}": workload for workload in published if workload not in others}
    precisions = {name: [x.dtype_name for x in (of, *of.beside())] for name, of in timed.items()}
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    assert precisions == {
        "waveglow/inference-256": names,
        "waveglow/inference-512": names,
        "decode_loop/cpu-1x128": [*names, "int8"],
        "decode_loop/cpu-8x128": [*names, "int8"],
        "synthesizer/heart-128-characters": [*names, "int8"],
        "command/start-to-file": names[:1],
        "tacotron2/train": names,
        "waveglow/train-256": names,
        "waveglow/train-256-saving": names,
    }
    assert {name for name, of in timed.items() if not of.supports(PEER)} == {
        "synthesizer/heart-128-characters", "command/start-to-file",
    }  # fmt: skip
    assert {name for name, of in timed.items() if of.supports(COMPILE)} == {
        "waveglow/inference-256", "decode_loop/cpu-1x128",
    }  # fmt: skip
    assert not any(of.supports(EAGER) for of in timed["decode_loop/cpu-1x128"].beside() if of.dtype_name == "int8")


def test_8_bits_have_a_step_for_each_row_of_input_and_state():
    model = decode_loop.new_model(small=True, frames=20, dtype=torch.float32)
    rounded = decode_loop.in_8_bits(model)
    for cell in ("attention_rnn", "decoder_rnn"):
        before, after = (
            torch.cat((of.decoder.get_parameter(f"{cell}.weight_ih"), of.decoder.get_parameter(f"{cell}.weight_hh")), 1)
            for of in (model, rounded)
        )
        step = before.abs().amax(1, keepdim=True) / 127
        assert not torch.equal(before, after)
        assert ((after - before).abs() <= 0.5001 * step).all()
        levels = after / step
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_weights_in_4_bits_are_too_inexact(monkeypatch):
    workload = decode_loop.decoding(
        decode_loop.ON_A_CPU, 2, 7, torch.bfloat16, small=True, n_frames=20, lstm_weights=torch.int8
    )
    assert 0 < workload.verify(OURS, INFERENCE) < 0.1
    pack = decode_loop.pack_decoder

    def wrong(recurrent, *others):
        cell = recurrent.decoder_rnn
        step = cell.weight_ih.abs().amax(1, keepdim=True) / 7
        weight = (cell.weight_ih / step).round() * step
        return pack(recurrent._replace(decoder_rnn=cell._replace(weight_ih=weight)), *others)

    monkeypatch.setattr(decode_loop, "pack_decoder", wrong)
    with pytest.raises(AssertionError, match="relative error"):
        workload.verify(OURS, INFERENCE)


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_a_wrong_mel_of_the_bundled_voice_is_found(monkeypatch):
    workload = BundledVoice("short", "No.", torch.float32)
    assert workload.verify(OURS, INFERENCE) < 1e-5
    assert workload.samples(INFERENCE) == pytest.approx(22050 * workload.audio_seconds(INFERENCE))
    speech = copy.deepcopy(bundled_voice.speech_of(workload))
    speech.sentences[0].mel[3, 5] += 0.1
    monkeypatch.setattr(bundled_voice, "speech_of", lambda workload: speech)
    with pytest.raises(AssertionError, match="relative error"):
        workload.verify(OURS, INFERENCE)
    speech.sentences[0] = replace(speech.sentences[0], readings=speech.sentences[0].readings * 2)
    with pytest.raises(AssertionError, match="decoded 2 times"):
        workload.verify(OURS, INFERENCE)


@pytest.mark.parametrize("fault, message", [(0.001, "a sample differs"), (None, "samples, not")])
def test_a_wrong_file_of_the_command_is_found(monkeypatch, fault, message):
    samples = np.linspace(-0.5, 0.5, 1001, dtype=np.float32)
    spoken = samples[:-1] if fault is None else samples + np.float32(fault) * (samples == 0)

    class Library:
        @staticmethod
        def from_voice(*arguments):
            return Library()

        def synthesize(self, text, seed):
            return type("Speech", (), {"audio": samples})

    monkeypatch.setattr(bundled_voice, "Synthesizer", Library)
    monkeypatch.setattr(bundled_voice, "speak_by_command", lambda: spoken)
    with pytest.raises(AssertionError, match=message):
        StartToFile().verify(OURS, INFERENCE)
    monkeypatch.setattr(bundled_voice, "speak_by_command", lambda: samples)
    assert StartToFile().verify(OURS, INFERENCE) == 0


def test_the_commands_file_has_the_librarys_samples():
    assert 0 < StartToFile().verify(OURS, INFERENCE) < 1e-3
