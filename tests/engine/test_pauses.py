"""Pause marks and SSML breaks: exact silence, in every way to speak a text."""

import numpy as np
import pytest

from fastglow import FastglowError, Synthesizer
from fastglow.engine import Sentence
from fastglow.engine.remarks import SilentTextWarning
from fastglow.engine.silence import MOST_SAMPLES
from fastglow.text.cleaners import cleaner_names

from .conftest import UNSTOPPED, make_tacotron2, make_waveglow
from .scripted import ScriptedTacotron2, reading
from .test_streaming_faults import LONG, SEED, synthesizer

pytestmark = [pytest.mark.filterwarnings(UNSTOPPED), pytest.mark.filterwarnings("ignore::UserWarning")]
RATE, BETWEEN = 22050, 0.01


@pytest.fixture(scope="module")
def speaker():
    model = ScriptedTacotron2(lambda symbols, seed: reading(len(symbols)))
    return Synthesizer(
        model, "waveglow", make_waveglow(), text_cleaners=["english_cleaners"], level=-20.0, device="cpu"
    )


def joined(parts):
    return np.concatenate([np.zeros(0, np.float32), *parts])


def spoken(speaker, text, **delivery):
    """The speech of a text, which is the same to the sample however it is asked for."""
    whole = speaker.synthesize(text, SEED, **delivery)
    (batched,) = speaker.synthesize_batch([text], SEED, **delivery)
    streamed = joined(speaker.stream(text, SEED, chunk_frames=8, **delivery))
    one_by_one = list(speaker.sentences(text, SEED, **delivery))
    with_sentences = list(speaker.stream_sentences(text, SEED, chunk_frames=8, **delivery))
    told = [part for part in with_sentences if isinstance(part, Sentence)]
    for sentences in (batched.sentences, one_by_one, told):
        assert [(s.text, len(s.audio), s.pause_before, s.pause_after) for s in sentences] == [
            (s.text, len(s.audio), s.pause_before, s.pause_after) for s in whole.sentences
        ]
    assert whole.audio.shape == batched.audio.shape == streamed.shape
    # A phase vocoder amplifies rounding.
    np.testing.assert_allclose(streamed, whole.audio, atol=0.01 if "speed" in delivery else 1e-5, rtol=0)
    np.testing.assert_array_equal(joined(x for x in with_sentences if not isinstance(x, Sentence)), streamed)
    return whole


def gaps(speech):
    """Samples before, between and after the sentences, which are checked to be silent."""
    found, position, audio = [], 0, speech.audio
    for sentence in speech.sentences:
        start = next(
            i for i in range(position, len(audio)) if np.array_equal(audio[i : i + len(sentence.audio)], sentence.audio)
        )
        assert not audio[position:start].any()
        found.append(start - position)
        position = start + len(sentence.audio)
    assert not audio[position:].any()
    return [*found, len(audio) - position]


@pytest.mark.parametrize(
    ("text", "texts", "seconds"),
    [
        ("A b. [pause:0.1s] C d.", ["A b.", "C d."], [0, 0.1, 0]),
        ("[pause:50ms]A b! C d![pause 0.02]", ["A b!", "C d!"], [0.05, BETWEEN, 0.02]),
        ("See [Pause:10ms] [PAUSE=0.02s]<break time='30ms'/> me", ["See", "me"], [0, 0.06, 0]),
        ("One (or [pause:20ms] two) <b>three[pause:30ms] four</b>", ["One (or", "two) three", "four"],
         [0, 0.02, 0.03, 0]),
        ("A b. [pause:0] C d. [pause] ?! <break strength='weak'/>", ["A b.", "C d."], [0, 0, 1.25]),
        ("A b {AA [pause:1s]} c.", ["A b {AA [pause:1s]} c."], [0, 0]),
        ("See<break strength='none'/>me.", ["See me."], [0, 0]),
        ("<speak>A b.<break/>C d.<break time='+40 ms'></break></speak>", ["A b.", "C d."], [0, 0.75, 0.04]),
        ("[pause:1.00003s]A b.", ["A b."], [1.00003, 0]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trim", [False, True])
def test_exact_silence(speaker, text, texts, seconds, trim):
    speech = spoken(speaker, text, sentence_silence=BETWEEN, trim_silence=trim)
    assert [sentence.text for sentence in speech.sentences] == texts
    n_silent = [round(pause * RATE) for pause in seconds]
    assert len(speech.audio) == sum(n_silent) + sum(len(sentence.audio) for sentence in speech.sentences)
    assert gaps(speech) == n_silent


def test_a_pause_does_not_change_with_the_speed(speaker):
    speech = spoken(speaker, "[pause:0.1s]A b! [pause:0.2s] C d!", speed=2.0)
    assert gaps(speech) == [2205, 4410, 0]


def test_a_sentence_keeps_its_audio_beside_pauses(speaker):
    plain, paused = (speaker.synthesize(text, SEED) for text in ("A b! C d!", "A b! [pause:0.3s] C d!"))
    for ours, expected in zip(paused.sentences, plain.sentences, strict=True):
        np.testing.assert_array_equal(ours.audio, expected.audio)


def test_long_silence_comes_in_parts(speaker):
    chunks = list(speaker.stream("[pause:25s]A b.[pause:11s]", SEED))
    assert max(map(len, chunks)) == MOST_SAMPLES
    n_audio = len(speaker.synthesize("A b.", SEED).audio)
    assert len(joined(chunks)) == 36 * RATE + n_audio


def test_a_pause_is_streamed_before_what_follows_is_decoded(speaker):
    parts = speaker.stream_sentences("A b! [pause:0.3s] C d!", SEED)
    while not isinstance(next(parts), Sentence):
        pass
    n_calls = len(speaker.tacotron2.calls)
    assert len(next(parts)) == round(0.3 * RATE) and len(speaker.tacotron2.calls) == n_calls
    parts.close()


def test_pauses_around_a_sentence_that_is_spoken_in_parts():
    """Every attempt at more than 60 symbols skips most of them."""

    def script(symbols, seed):
        path = reading(len(symbols))
        return path if len(symbols) < 60 else [*path[:4], *path[60:]]

    speech = spoken(synthesizer(script), f"[pause:0.1s]{LONG} {LONG}[pause:0.2s]", sentence_silence=BETWEEN)
    n_parts = len(speech.sentences)
    assert n_parts > 1 and gaps(speech) == [2205, *[220] * (n_parts - 1), 4410]


def test_pauses_around_a_sentence_without_audio():
    """The gate fires at once."""
    model = ScriptedTacotron2(lambda symbols, seed: [] if len(symbols) == 4 else reading(len(symbols)))
    speaker = Synthesizer(model, "waveglow", make_waveglow(), text_cleaners=[], level=-20.0, device="cpu")
    pauses = "one two[pause:10ms]abc[pause:20ms]"
    assert gaps(spoken(speaker, pauses + "five six")) == [0, 0, 662, 0]  # the sum is rounded
    assert len(spoken(speaker, pauses).audio) == 662 + len(speaker.synthesize("one two", SEED).audio)
    assert len(spoken(speaker, "[pause:10ms]abc[pause:20ms]").audio) == 0


@pytest.mark.parametrize("text", ["[pause:1s]", "<speak><break/> [pause] ?!</speak>"])
def test_pauses_alone_are_nothing_to_speak(speaker, text):
    with pytest.warns(SilentTextWarning, match="nothing to speak"):
        assert len(speaker.synthesize(text, SEED).audio) == 0
    assert list(speaker.stream_sentences(text, SEED)) == []


def test_a_pause_that_is_too_long_is_refused_at_the_call(speaker):
    for call in (speaker.synthesize, speaker.stream, speaker.stream_sentences, speaker.sentences):
        with pytest.raises(FastglowError, match="^pause=61s must be at most 60 seconds: write several in a row"):
            call("A b. [pause:61s]", SEED)
    with pytest.raises(FastglowError, match="pause=1.1 min must"):
        speaker.synthesize_batch(["A b.", "[pause 1.1 min] C d."])


@pytest.mark.parametrize("cleaner", cleaner_names())
def test_tags_are_not_read_by_any_cleaner(cleaner):
    speaker = Synthesizer(make_tacotron2(), "griffin-lim", text_cleaners=[cleaner], device="cpu")
    text = """<?xml version="1.0"?><speak xml:lang="en-US"><!-- no --><p><s>One day</s><s><emphasis level="strong">Rock
    &amp; roll</emphasis></s></p><amazon:effect name="whispered">psst</amazon:effect> <prosody rate="+10%">hey <sub
    alias="you">U</sub></prosody><audio src="x.wav"><desc>a dog</desc></audio></speak>"""
    jobs = list(speaker._jobs(text, 0))
    assert [" ".join(job.text.split()) for job in jobs] == ["One day", "Rock & roll", "psst hey you"]
    for plain in ("a < b", "I <3 you", "an <unknown> tag", "x <y and z> w"):
        (job,) = speaker._jobs(plain, 0)
        assert job.symbols == speaker.frontend.encode(plain).symbols
