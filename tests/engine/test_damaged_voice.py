"""The bundled voice, made bad on purpose: whatever it does, what is spoken ends with what it can read."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastglow import Synthesizer
from fastglow.engine.acoustic import Acoustic
from fastglow.engine.attempts import MAX_ATTEMPTS
from fastglow.engine.jobs import make_jobs
from fastglow.engine.reading import Fault
from fastglow.engine.remarks import FaultySpeechWarning
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.voices import DEFAULT_VOICE

TEXTS = ["The moon is small.", "Thank you."]
LIMIT = 130  # steps, 3 s


@pytest.fixture(scope="module")
def voice():
    return Synthesizer.from_voice(DEFAULT_VOICE, device="cpu")


@pytest.fixture(scope="module")
def right(voice):
    """Seconds of each text."""
    return [speech.seconds for speech in voice.synthesize_batch(TEXTS, seed=3, normalize=False)]


@pytest.fixture
def damaged(voice):
    """A function that applies a damage to a copy of the voice."""

    def make(damage):
        synthesizer = copy.copy(voice)
        model = copy.deepcopy(voice.tacotron2)
        model.config = replace(model.config, max_decoder_steps=LIMIT)
        model.decoder.max_decoder_steps = LIMIT
        with torch.no_grad():
            damage(model.decoder)
        synthesizer.acoustic = Acoustic(model, 256 / 22050)
        return synthesizer

    return make


def never_stops(decoder):
    decoder.gate_layer.linear_layer.bias.fill_(-100)


def forgets_where_it_was(decoder):
    """Attention does not see the sum of its weights, so that it stands still."""
    decoder.attention_layer.location_layer.location_conv.conv.weight[:, 1] = 0


def location_is_noise(decoder):
    """Attention does not see its weights at all: it stands still or wanders."""
    decoder.attention_layer.location_layer.location_dense.linear_layer.weight.zero_()


@pytest.mark.filterwarnings("ignore::fastglow.engine.remarks.FaultySpeechWarning")
@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
@pytest.mark.parametrize("damage", [never_stops, forgets_where_it_was, location_is_noise])
def test_a_damaged_voice_ends(damaged, voice, right, damage):
    synthesizer = damaged(damage)
    jobs = [job for text in TEXTS for job in make_jobs([text], 3, voice.frontend, 250)]
    attempts = [synthesizer.acoustic.attempts(job) for job in jobs]
    synthesizer.acoustic.complete(attempts)
    for utterance, seconds in zip((one.best() for one in attempts), right, strict=True):
        assert (utterance.attempts, utterance.cut, utterance.stopped) == (MAX_ATTEMPTS, True, False)
        assert utterance.fault is Fault.RUNS_ON if damage is never_stops else utterance.fault >= Fault.BREAKS_OFF
        assert utterance.mel.shape[1] * 256 / 22050 < seconds + 1.0


@pytest.mark.parametrize("damage", [never_stops, forgets_where_it_was])
def test_a_damaged_voice_says_so(damaged, right, damage):
    synthesizer = damaged(damage)
    with pytest.warns((FaultySpeechWarning, DecoderStepLimitWarning), match="'Thank you.'"):
        speech = synthesizer.synthesize(TEXTS[1], seed=3)
    (sentence,) = speech.sentences
    assert (sentence.cut, len(sentence.audio) > 0) == (True, True)
    assert speech.seconds < right[1] + 1.0
    assert np.isfinite(speech.audio).all()
    assert sentence.fault == ("runs_on" if damage is never_stops else "unfinished")
    assert sentence.faults == [sentence.fault] * MAX_ATTEMPTS
    with pytest.warns((FaultySpeechWarning, DecoderStepLimitWarning)):
        np.testing.assert_array_equal(synthesizer.synthesize(TEXTS[1], seed=3).audio, speech.audio)


def test_names_of_faults_of_a_right_sentence(voice):
    (sentence,) = voice.synthesize(TEXTS[1], seed=3).sentences
    assert (sentence.fault, sentence.faults) == (None, [None])
