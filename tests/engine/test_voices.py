import json
import shutil

import numpy as np
import pytest
import torch

from fastglow import Synthesizer
from fastglow.audio import MelSpectrogram
from fastglow.audio.loudness import mel_level
from fastglow.engine.settings import OtherwiseTrainedWarning
from fastglow.errors import FastglowError
from fastglow.text import Lexicon, text_to_sequence
from fastglow.voices import AS_TRAINED, BUNDLED, DEFAULT_VOICE, VOCODERS, Voice, list_voices


def test_bundled_voices_load():
    assert DEFAULT_VOICE in list_voices()
    for name in list_voices():
        voice = Voice.load(name)
        assert voice.name == name
        speech = Synthesizer.from_voice(name, device="cpu").synthesize("This voice can speak.", seed=1)
        assert 0.5 < speech.seconds < 10
        assert np.abs(speech.audio).max() > 0.05
        folder = voice.tacotron2.parent
        assert (folder / "README.md").is_file()
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 32e6


def test_a_voice_needs_no_lexicon(voice_folder):
    assert Voice.load(voice_folder).lexicon is AS_TRAINED
    assert Synthesizer.from_voice(voice_folder, device="cpu").frontend.lexicon is None


def test_a_voice_may_have_no_lexicon(voice_folder, tmp_path):
    shutil.copytree(voice_folder, tmp_path / "voice")
    for lexicon in (None, ""):
        values = json.loads((voice_folder / "voice.json").read_text()) | {"lexicon": lexicon}
        (tmp_path / "voice" / "voice.json").write_text(json.dumps(values))
        assert Voice.load(tmp_path / "voice").lexicon is None


def test_a_folder_and_its_voice_json_are_the_same(voice_folder):
    assert Voice.load(voice_folder) == Voice.load(str(voice_folder / "voice.json"))


@pytest.fixture
def folder_with_level(voice_folder, tmp_path):
    """`folder_with_level(level)`: a voice whose voice.json has this level."""
    folder = shutil.copytree(voice_folder, tmp_path / "levelled")

    def write(level):
        values = json.loads((voice_folder / "voice.json").read_text()) | {"level": level}
        (folder / "voice.json").write_text(json.dumps(values))
        return folder

    return write


def test_a_voice_may_tell_its_level(voice_folder, folder_with_level):
    assert Voice.load(voice_folder).level is None
    for level in (None, 0, -80, -21.5):
        assert Voice.load(folder_with_level(level)).level == level


@pytest.mark.parametrize("level", [0.1, -80.5, 20, float("nan"), float("-inf"), "-20", True, [], {}])
def test_impossible_levels_are_refused(folder_with_level, level):
    folder = folder_with_level(level)
    with pytest.raises(FastglowError, match=r"voice.json: level=.* must be -80 to 0 dBFS, or null where it is not"):
        Voice.load(folder)


def test_the_bundled_voices_level_is_that_of_its_speech():
    texts = ["We were away a year ago.", "Is this the right way to the station?", "Please close the door behind you."]
    synthesizer = Synthesizer.from_voice(DEFAULT_VOICE, device="cpu")
    sentences = [synthesizer.synthesize(text, seed=1, normalize=False).sentences[0] for text in texts]
    for sentence in sentences:
        # What is vocoded has the level that the mel tells.
        blocks = sentence.audio[: len(sentence.audio) // 441 * 441].astype(np.float64).reshape(-1, 441)
        powers = np.mean(blocks**2, axis=1)
        spoken = 10 * np.log10(powers[powers >= powers.max() * 10**-2.5].mean())
        assert mel_level(sentence.mel, synthesizer.audio) == pytest.approx(spoken, abs=1)
    level = np.mean([mel_level(sentence.mel, synthesizer.audio) for sentence in sentences])
    assert Voice.load(DEFAULT_VOICE).level == pytest.approx(level, abs=1.5)


def test_the_bundled_waveglow_says_what_the_mel_says():
    """At the voice's settings, of the same mel as Griffin-Lim."""
    text = "This voice can speak."
    speeches = {
        vocoder: Synthesizer.from_voice(DEFAULT_VOICE, "cpu", torch.float32, vocoder=vocoder).synthesize(text, seed=1)
        for vocoder in VOCODERS
    }
    mels = {vocoder: speech.mel for vocoder, speech in speeches.items()}
    assert np.array_equal(mels["waveglow"], mels["griffin-lim"])
    spectrogram = MelSpectrogram()
    for vocoder, speech in speeches.items():
        heard = spectrogram(torch.from_numpy(speech.audio)[None])[0].numpy()[:, : speech.mel.shape[1]]
        loud = speech.mel.mean(axis=0) > speech.mel.mean()
        # Another voice's vocoder, or noise, is off by more than 1.
        assert np.abs(heard - speech.mel)[:, loud].mean() < 0.5, vocoder


@pytest.fixture
def voice_with_lexicon(tmp_path):
    """The bundled voice, with its folder's lexicon named in voice.json."""
    folder = tmp_path / "voice"
    shutil.copytree(BUNDLED / DEFAULT_VOICE, folder)
    values = json.loads((folder / "voice.json").read_text())
    (folder / "voice.json").write_text(json.dumps({**values, "lexicon": "lexicon.txt.gz"}))
    return folder


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_a_voice_with_a_lexicon_reads_phones(voice_with_lexicon):
    voice = Voice.load(voice_with_lexicon)
    assert voice.lexicon == voice_with_lexicon / "lexicon.txt.gz"
    synthesizer = Synthesizer.from_voice(voice_with_lexicon, device="cpu")
    text = "Hello, world."
    phones = text_to_sequence("{HH AH0 L OW1}, {W ER1 L D}.", [])
    assert synthesizer.frontend.encode(text).symbols == phones
    speech = synthesizer.synthesize(text, seed=1)
    assert speech.alignment.shape[1] == len(phones)
    with pytest.warns(OtherwiseTrainedWarning, match="is used without one"):
        letters = Synthesizer.from_voice(voice_with_lexicon, device="cpu", lexicon=None)
    assert letters.frontend.encode(text).symbols == text_to_sequence("hello, world.", [])


def test_a_lexicon_replaces_or_precedes_the_voices(voice_with_lexicon, lexicon_file):
    voice = Voice.load(voice_with_lexicon)
    text = "Hello's world."
    instead = Synthesizer.from_voice(voice, device="cpu", lexicon=str(lexicon_file))
    assert instead.frontend.encode(text).symbols == text_to_sequence("{Y EH1 L OW0 Z} world.", [])
    before = Synthesizer.from_voice(voice, device="cpu", lexicon=Lexicon(lexicon_file, voice.lexicon))
    assert before.frontend.encode(text).symbols == text_to_sequence("{Y EH1 L OW0 Z} {W ER1 L D}.", [])


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"lexicon": "absent.txt"}, "names absent.txt, which is not in .*: put it there$"),
        ({"lexicon": 3}, "cannot be read as a voice description"),
        ({"vocoder": "wavenet"}, "vocoder 'wavenet' must be one of"),
        ({"tacotron2": "absent.safetensors"}, "names absent.safetensors, which is not in .*: put it there$"),
        ({"audio": {"hop": 3}}, "unknown audio parameter 'hop'"),
        ({"text_cleaners": None}, "cannot be read as a voice description"),
        ({"name": ...}, "lacks 'name'"),
        ({"sigma": "loud"}, "cannot be read as a voice description"),
        ({"sigma": 10**400}, "cannot be read as a voice description"),
        ({"audio": {"hop_length": 10**400}}, "hop_length must be below 2\\^31, the value has 1329 bits"),
        ({"text_cleaners": "english_cleaners"}, "must be a list"),
    ],
)
def test_a_damaged_description_is_one_line(voice_folder, tmp_path, change, pattern):
    folder = tmp_path / "voice"
    shutil.copytree(voice_folder, folder)
    values = json.loads((folder / "voice.json").read_text()) | change
    (folder / "voice.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    with pytest.raises(FastglowError, match=pattern) as raised:
        Voice.load(folder)
    assert "\n" not in str(raised.value)


def test_unknown_voices_and_garbage(tmp_path):
    with pytest.raises(FastglowError, match="unknown voice 'nobody': use a bundled one"):
        Voice.load("nobody")
    for garbage in (b"\xff{", b"[" * 100_000, b'{"name": ' + b"9" * 10_000, b"[1]", b"null"):
        (tmp_path / "voice.json").write_bytes(garbage)
        with pytest.raises(FastglowError, match="cannot be read as a voice description"):
            Voice.load(tmp_path)
