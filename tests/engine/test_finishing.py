"""What follows the models: cut, level and fades of a sentence, the same alone, streamed and in a batch."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fastglow import FastglowError, Synthesizer
from fastglow.audio.loudness import mel_level
from fastglow.engine.attempts import MAX_ATTEMPTS
from fastglow.engine.remarks import FaultySpeechWarning, SilentTextWarning
from fastglow.engine.seeds import attempt_seed, sentence_seed
from fastglow.engine.synthesizer import LEVEL_TEXT
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text import split_sentences
from fastglow.voices import DEFAULT_VOICE

from .scripted import ScriptedTacotron2, mel_of, reading

RATE = 22050
LEVEL = 20 * np.log10(0.03)  # of the noise that stands for speech
JOIN = round(0.005 * RATE)
# The number of symbols of each sentence: letters, spaces and the final mark.
TEXT = "Well now. I see them! Where are the others"
CLEANERS = ["basic_cleaners"]
LENGTHS = [9, 11, 21]


def synthesizer(script=None, level=lambda n_frames: 0.03, most=400, known_level=LEVEL):
    """A synthesizer whose vocoder returns noise with an RMS of `level(frames)`."""
    script = script or (lambda symbols, seed: reading(len(symbols)))
    model = ScriptedTacotron2(script, max_decoder_steps=most)
    speaker = Synthesizer(model, "griffin-lim", text_cleaners=CLEANERS, level=known_level, device="cpu")
    speaker.vocoder = NoiseVocoder(level)
    return speaker


class NoiseVocoder:
    context = None

    def __init__(self, level):
        self.level = level

    def vocode(self, mels, lengths, seeds):
        return [
            self.level(n) * torch.randn(n * 256, generator=torch.Generator().manual_seed(seed % 2**63)).numpy()
            for n, seed in zip(lengths, seeds, strict=True)
        ]


def failing(lengths, attempts):
    """Sentences of these lengths run on in their first attempts; the others are correct."""

    def script(symbols, seed):
        n = len(symbols)
        wrong = {attempt_seed(s, a) for s in sentence_seeds() for a in range(attempts)}
        return [*reading(n), None] if n in lengths and seed in wrong else reading(n)

    return script


def sentence_seeds():
    return [sentence_seed(5, i) for i in range(3)]


def levels(audio):
    """RMS in dBFS of the blocks of 20 ms within 25 dB of the loudest."""
    blocks = audio[: len(audio) // 441 * 441].astype(np.float64).reshape(-1, 441)
    powers = (blocks**2).mean(1)
    return 10 * np.log10(powers[powers > powers.max() * 10**-2.5].mean())


@pytest.mark.parametrize("silence", [0.0, 0.1])
def test_sentences_fade_where_they_join_and_only_there(silence):
    speaker = synthesizer()
    speech = speaker.synthesize(TEXT, seed=5, sentence_silence=silence)
    assert [s.alignment.shape[1] for s in speech.sentences] == LENGTHS
    for i, sentence in enumerate(speech.sentences):
        # Alone it has no joins.
        (alone,) = speaker.synthesize(sentence.text, seed=sentence_seed(5, i)).sentences
        np.testing.assert_array_equal(sentence.mel, alone.mel)
        first, last = JOIN if i > 0 else 0, JOIN if i < 2 else 0
        middle = slice(first, len(alone.audio) - last)
        np.testing.assert_array_equal(sentence.audio[middle], alone.audio[middle])
        ramp = (1 - np.cos(np.pi * (np.arange(JOIN) + 0.5) / JOIN)) / 2
        if first:
            np.testing.assert_allclose(sentence.audio[:JOIN], alone.audio[:JOIN] * ramp, atol=1e-6)
        if last:
            np.testing.assert_allclose(sentence.audio[-JOIN:], alone.audio[-JOIN:] * ramp[::-1], atol=1e-6)


@pytest.mark.parametrize("silence", [0.0, 0.1])
@pytest.mark.parametrize(("lengths", "attempts"), [([], 0), ([11], 2), ([9, 21], MAX_ATTEMPTS), (LENGTHS, 1)])
def test_stream_and_batch_give_the_bits_of_synthesize(lengths, attempts, silence):
    speaker = synthesizer(failing(lengths, attempts))
    options = {"seed": 5, "sentence_silence": silence, "volume": 0.7}
    with pytest.warns() if attempts == MAX_ATTEMPTS else nullcontext():
        speech = speaker.synthesize(TEXT, **options)
        again = speaker.synthesize(TEXT, **options)
        chunks = list(speaker.stream(TEXT, **options))
        batch = speaker.synthesize_batch(["What?", TEXT, "Nothing but this, and in many words.", TEXT], **options)
    for other in (again.audio, np.concatenate(chunks), batch[1].audio, batch[3].audio):
        np.testing.assert_array_equal(other, speech.audio)
    for others in (batch[1].sentences, batch[3].sentences):
        assert [(s.attempts, s.cut, s.stopped) for s in others] == [
            (s.attempts, s.cut, s.stopped) for s in speech.sentences
        ]
    for n, sentence in zip(LENGTHS, speech.sentences, strict=True):
        assert sentence.attempts == (min(attempts + 1, MAX_ATTEMPTS) if n in lengths else 1)
        assert sentence.cut == (n in lengths and attempts == MAX_ATTEMPTS)
        assert sentence.stopped != sentence.cut


@pytest.mark.parametrize("length", LENGTHS)
def test_a_cut_warns_and_fades(length):
    speaker = synthesizer(failing([length], MAX_ATTEMPTS))
    with pytest.warns(FaultySpeechWarning) as caught:
        speech = speaker.synthesize(TEXT, seed=5, normalize=False)
    (warning,) = caught
    i = LENGTHS.index(length)
    sentence = speech.sentences[i]
    assert f"{sentence.text!r} goes on past its end in each of 4 attempts; it was cut there" in str(warning.message)
    assert warning.filename == __file__
    n_steps = len(sentence.alignment)
    assert 2 * length - 2 < n_steps < 2 * length + 12
    assert sentence.mel.shape == (80, 3 * n_steps)
    assert sentence.audio.shape == (3 * n_steps * 256,)
    n = round(0.03 * RATE)
    quiet, before = sentence.audio[-n // 10 :], sentence.audio[-4 * n : -n]
    assert np.abs(quiet).max() < 0.1 * np.abs(before).max()


def test_a_sentence_that_a_retry_corrected_gives_no_warning():
    """Warnings are errors in tests."""
    speech = synthesizer(failing([9], 3)).synthesize(TEXT, seed=5)
    assert [s.attempts for s in speech.sentences] == [4, 1, 1]
    assert [s.cut for s in speech.sentences] == [False] * 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([*reading(21)[:16], *reading(21)[38:]], "skips a part"),
        ([*reading(21)[:30], *reading(21)[4:]], "repeats a part of the text"),
        (reading(21)[:12], "breaks off"),
    ],
)
def test_other_faults_warn(path, words):
    speaker = synthesizer(lambda symbols, seed: path if len(symbols) == 21 else reading(len(symbols)))
    with pytest.warns(FaultySpeechWarning, match=f"'Where are the others' {words}.*try another seed, or split it"):
        speech = speaker.synthesize(TEXT, seed=5)
    assert [(s.attempts, s.cut, s.stopped) for s in speech.sentences] == [(1, False, True)] * 2 + [(4, False, True)]


def test_a_word_longer_than_the_step_limit_warns_and_is_kept():
    speaker = synthesizer(most=30)
    with pytest.warns(DecoderStepLimitWarning, match="max_decoder_steps=30, which cut the speech of 'Incomprehens"):
        (sentence,) = speaker.synthesize("Incomprehensibilities", seed=1).sentences
    assert (sentence.stopped, sentence.attempts, sentence.cut) == (False, 1, False)
    assert len(sentence.alignment) == 30


@pytest.mark.parametrize("silence", [0.0, 0.1])
@pytest.mark.parametrize(
    "text",
    [
        "One of them, and not the least",
        "I see. Here is much to be read now!",
        "a b c d e f g h i j k l m n o p q r s t u v",
    ],
)
def test_a_sentence_longer_than_the_step_limit_is_spoken_in_parts(text, silence):
    """At two steps per symbol, 44 steps hold 20 symbols. Nothing is lost, without a warning."""
    speaker = synthesizer(most=44)
    speech = speaker.synthesize(text, seed=5, sentence_silence=silence)
    parts = [s.text for s in speech.sentences]
    assert " ".join(parts) == text
    assert 1 < max(len(part) for part in parts) <= 20
    assert all((s.stopped, s.attempts, s.cut) == (True, 1, False) for s in speech.sentences)
    chunks = list(speaker.stream(text, seed=5, sentence_silence=silence))
    batch = speaker.synthesize_batch(["Other words.", text], seed=5, sentence_silence=silence)
    for audio in (np.concatenate(chunks), batch[1].audio):
        np.testing.assert_array_equal(audio, speech.audio)
    for i, sentence in enumerate(speech.sentences):
        assert (abs(sentence.audio[0]) < 1e-4) == (i > 0)
        assert (abs(sentence.audio[-1]) < 1e-4) == (i < len(parts) - 1)


@pytest.mark.parametrize(
    "text",
    [
        "On 12/31/1999 at 11:59:59 pm the rates were 1,234,567.89 and 9,876,543.21 and 5,555,555.55 and 7,777,777.77",
        "From 1777 to 1888, from 1888 to 1999, for $777,777.77 or $888,888.88, and 24 hours a day, 7 days a week",
        " ".join("{" + " ".join(["AH0", "N", "S"] * n) + "}" for n in (45, 60)),
    ],
)
def test_a_text_that_expands_to_too_many_symbols_is_spoken_in_parts(text):
    """Short texts that expand to more symbols than attention can follow."""
    model = ScriptedTacotron2(lambda symbols, seed: reading(len(symbols)), r=1, max_decoder_steps=2000)
    speaker = Synthesizer(model, "griffin-lim", text_cleaners=["english_speech_cleaners"], device="cpu")
    assert len(split_sentences(text)) == 1 or "{" in text
    assert len(speaker.frontend.encode(text).symbols) > 250
    speaker.vocoder = NoiseVocoder(lambda n_frames: 0.0)
    sentences = speaker.synthesize(text, seed=5).sentences
    assert " ".join(s.text for s in sentences) == text
    assert all(20 < s.alignment.shape[1] <= 250 for s in sentences)


@pytest.mark.parametrize("text", ["...", "- - -", "!?", "(')"])
def test_punctuation_alone_is_nothing_to_speak(text):
    speaker = synthesizer()
    with pytest.warns(SilentTextWarning, match="nothing to speak"):
        assert speaker.synthesize(text, seed=1).sentences == []
    assert speaker.tacotron2.calls == []
    assert len(speaker.synthesize(f"Well now.\n\n{text}\n\nI see.", seed=1).sentences) == 2


@pytest.mark.parametrize("difference", [0.0, -1.0, 0.5])
def test_a_voice_has_one_gain(difference):
    """The long sentence differs from the short ones by `difference` nepers, before and after."""
    speaker = synthesizer(level=lambda n_frames: 0.03 * np.exp(difference * (n_frames > 100)))
    speech = speaker.synthesize(TEXT, seed=5)
    gain = 10 ** (-18 / 20) / 0.03
    raw = speaker.synthesize(TEXT, seed=5, normalize=False)
    for sentence, plain in zip(speech.sentences, raw.sentences, strict=True):
        below = np.abs(plain.audio) * gain < 10 ** (-1 / 20)
        np.testing.assert_allclose(np.where(below, plain.audio * gain, 0), np.where(below, sentence.audio, 0), atol=0.1)
    for sentence, plain in list(zip(speech.sentences, raw.sentences, strict=True))[:2]:
        assert levels(sentence.audio) == pytest.approx(-18, abs=0.3)
        np.testing.assert_allclose(sentence.audio, plain.audio * gain, atol=1e-6)
    rms = [np.sqrt(np.mean(s.audio.astype(np.float64) ** 2)) for s in raw.sentences]
    np.testing.assert_allclose(rms, [0.03, 0.03, 0.03 * np.exp(difference)], rtol=0.05)


@pytest.mark.parametrize(("normalize", "ceiling"), [(True, 10 ** (-1 / 20)), (False, 1.0)])
def test_peaks_are_limited_and_volume_is_a_factor(normalize, ceiling):
    speaker = synthesizer()
    speech = speaker.synthesize(TEXT, seed=5, normalize=normalize)
    half = speaker.synthesize(TEXT, seed=5, normalize=normalize, volume=0.5)
    np.testing.assert_allclose(half.audio, speech.audio / 2, atol=1e-6)
    loud = speaker.synthesize(TEXT, seed=5, normalize=normalize, volume=50)
    assert 0.9 * ceiling < np.abs(loud.audio).max() <= ceiling
    assert np.array_equal(np.concatenate(list(speaker.stream(TEXT, 5, normalize=normalize, volume=50))), loud.audio)


def test_an_unknown_level_is_measured_once_and_again_for_other_weights():
    speaker = synthesizer(known_level=None)
    speaker.synthesize(TEXT, seed=5, normalize=False)
    n_calls = len(speaker.tacotron2.calls)
    level = speaker.level
    assert len(speaker.tacotron2.calls) == n_calls + 1 and speaker.tacotron2.calls[-1][0] == [0]
    n_frames = 3 * len(reading(len(LEVEL_TEXT)))
    assert level == pytest.approx(mel_level(mel_of(0, n_frames), speaker.audio))
    speech = speaker.synthesize(TEXT, seed=5)
    assert len(speaker.tacotron2.calls) == n_calls + 1 + len(speech.sentences)
    with torch.no_grad():
        speaker.tacotron2.embedding.weight.add_(1)
    assert speaker.level == level
    assert speaker.tacotron2.calls[-1][0] == [0]


@pytest.mark.parametrize("volume", [-1.0, float("nan"), float("inf")])
def test_bad_volumes_are_refused_before_decoding(volume):
    speaker = synthesizer()
    for call in (
        lambda: speaker.synthesize(TEXT, volume=volume),
        lambda: speaker.synthesize_batch([TEXT], volume=volume),
        lambda: list(speaker.stream(TEXT, volume=volume)),
    ):
        with pytest.raises(FastglowError, match=f"volume={volume}"):
            call()
    assert speaker.tacotron2.calls == []


@pytest.mark.filterwarnings("ignore::fastglow.engine.remarks.FaultySpeechWarning")
@pytest.mark.filterwarnings("ignore::fastglow.text.unspeakable.UnspeakableTextWarning")
def test_the_bundled_voice_does_not_run_on_after_short_texts():
    """Each of them once ran to the step limit, 14 s."""
    texts = ["Hello", "Thank you", "Press any key", '"Sure"', "(maybe)", "Okay -", "Goodbye:", "Oh!", "Ha ha ha ha!"]
    speeches = Synthesizer.from_voice(DEFAULT_VOICE, device="cpu").synthesize_batch(texts, seed=0)
    for speech in speeches:
        assert 0.15 < speech.seconds < 3
        assert levels(speech.audio) == pytest.approx(-18, abs=5)


LONG = "One of them is long, and it is read wrong each time, so that it is spoken in parts"


@pytest.mark.parametrize(
    ("path", "n_parts"),
    [
        ([*reading(83)[:40], *reading(83)[90:]], 3),  # skips; cut at its commas
        (reading(83)[:60], 3),  # breaks off
        ([*reading(83), None], 1),  # runs on: cutting it mends it
        ([-1] * 60, 1),  # illegible: nothing is known of it
    ],
    ids=["skips", "breaks off", "runs on", "illegible"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_long_sentence_that_no_attempt_reads_is_spoken_in_parts(path, n_parts):
    speaker = synthesizer(lambda symbols, seed: path if len(symbols) == 83 else reading(len(symbols)))
    speech = speaker.synthesize(LONG, seed=5)
    assert [s.alignment.shape[1] for s in speech.sentences].count(83) == (n_parts == 1)
    assert len(speech.sentences) == n_parts
    assert " ".join(s.text for s in speech.sentences) == LONG
    assert np.array_equal(np.concatenate(list(speaker.stream(LONG, 5))), speech.audio)
    assert np.array_equal(speaker.synthesize_batch(["Well.", LONG], 5)[1].audio, speech.audio)
