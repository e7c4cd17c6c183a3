import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError, Speech, Synthesizer
from fastglow.audio import Denoiser, MelConfig
from fastglow.engine.frontend import Frontend
from fastglow.engine.seeds import sentence_seed
from fastglow.kernels.backend import use_backend
from fastglow.text import Lexicon, split_sentences, symbols, text_to_sequence
from fastglow.text.unspeakable import UnspeakableTextWarning
from fastglow.voices import DEFAULT_VOICE

from .conftest import UNSTOPPED, make_tacotron2, make_waveglow

TEXT = "Printing, in the only sense. It began there! Did it?"
pytestmark = pytest.mark.filterwarnings(UNSTOPPED)


@pytest.fixture(scope="module")
def synthesizer(voice_folder):
    return Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.float32, vocoder="waveglow")


def test_speech_equals_the_composition_of_its_parts(synthesizer):
    """One sentence, step by step through the public API."""
    speech = synthesizer.synthesize("Hello there.", seed=11, normalize=False, volume=0.1)
    ids = text_to_sequence("Hello there.", ["english_speech_cleaners"])
    tacotron2, waveglow = make_tacotron2(), make_waveglow()
    mel, lengths, alignments = tacotron2.infer(torch.tensor([ids]), torch.tensor([len(ids)]), seed=11)
    n = int(lengths[0])
    audio = waveglow.infer(mel[:, :, :n], 0.5, seed=11)
    assert isinstance(speech, Speech)
    assert speech.sample_rate == 22050
    assert speech.mel.shape == (80, n)
    assert speech.alignment.shape == (n // 2, len(ids))
    np.testing.assert_allclose(speech.mel, mel[0, :, :n], atol=1e-6)
    np.testing.assert_allclose(speech.alignment, alignments[0, : n // 2], atol=1e-6)
    assert speech.audio.dtype == np.float32
    assert speech.audio.shape == (n * 256,)
    np.testing.assert_allclose(speech.audio, 0.1 * audio[0], atol=1e-6)
    assert speech.timings["total"] == pytest.approx(speech.timings["acoustic"] + speech.timings["vocoder"])


def test_sentences_are_joined_with_silence(synthesizer):
    speech = synthesizer.synthesize(TEXT, seed=4, sentence_silence=0.1)
    assert [sentence.text for sentence in speech.sentences] == split_sentences(TEXT)
    parts = [sentence.audio for sentence in speech.sentences]
    silence = np.zeros(2205, np.float32)
    np.testing.assert_array_equal(speech.audio, np.concatenate([parts[0], silence, parts[1], silence, parts[2]]))
    assert speech.mel.shape[1] == sum(sentence.mel.shape[1] for sentence in speech.sentences)
    rows, columns = (sum(sentence.alignment.shape[axis] for sentence in speech.sentences) for axis in (0, 1))
    assert speech.alignment.shape == (rows, columns)
    n_rows, n_columns = speech.sentences[0].alignment.shape
    np.testing.assert_array_equal(speech.alignment[:n_rows, :n_columns], speech.sentences[0].alignment)
    assert not speech.alignment[:n_rows, n_columns:].any()


def test_same_seed_same_bits_and_the_seed_is_recorded(synthesizer):
    first = synthesizer.synthesize(TEXT)
    assert np.array_equal(first.audio, synthesizer.synthesize(TEXT, seed=first.seed).audio)
    assert not np.array_equal(first.audio, synthesizer.synthesize(TEXT, seed=first.seed + 1).audio)


@pytest.mark.parametrize("vocoder", ["griffin-lim", "waveglow"])
def test_stream_gives_the_bits_of_synthesize(voice_folder, vocoder):
    synthesizer = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder)
    chunks = list(synthesizer.stream(TEXT, seed=9, sentence_silence=0.05))
    assert len(chunks) == 5 if vocoder == "griffin-lim" else len(chunks) > 5  # with two silences
    expected = synthesizer.synthesize(TEXT, seed=9, sentence_silence=0.05).audio
    np.testing.assert_allclose(np.concatenate(chunks), expected, atol=0 if vocoder == "griffin-lim" else 1e-5, rtol=0)


BATCHES = [
    ["A long sentence stands here, with many words in it, to make lengths differ.", "No.", "", TEXT, "No."],
    ["One.", "Two and a half of them went home, and nobody minded."],
    [TEXT, *["Again."] * 6, "So it ends here; or does it?"],
]


@pytest.mark.filterwarnings("ignore::fastglow.engine.remarks.SilentTextWarning")
@pytest.mark.parametrize("texts", BATCHES)
@pytest.mark.parametrize("vocoder", ["griffin-lim", "waveglow"])
def test_batch_gives_every_text_its_own_result_in_order(voice_folder, texts, vocoder):
    """In float64, where rounding stays small."""
    synthesizer = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder, dtype=torch.float64)
    batch = synthesizer.synthesize_batch(texts, seed=21)
    assert len(batch) == len(texts)
    for text, speech in zip(texts, batch, strict=True):
        alone = synthesizer.synthesize(text, seed=21)
        assert bool(text) == bool(speech.sentences)
        assert [(s.text, s.stopped, s.attempts, s.cut) for s in speech.sentences] == [
            (s.text, s.stopped, s.attempts, s.cut) for s in alone.sentences
        ]
        np.testing.assert_allclose(speech.mel, alone.mel, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(speech.alignment, alone.alignment, atol=1e-7)
        assert speech.audio.shape == alone.audio.shape
        if vocoder == "waveglow":
            np.testing.assert_allclose(speech.audio, alone.audio, atol=1e-6)


def test_a_batch_in_float32_begins_each_sentence_as_alone(synthesizer):
    texts = [text for text in BATCHES[0] if text]
    for text, speech in zip(texts, synthesizer.synthesize_batch(texts, seed=21), strict=True):
        alone = synthesizer.synthesize(text, seed=21)
        assert [s.text for s in speech.sentences] == [s.text for s in alone.sentences]
        for ours, expected in zip(speech.sentences, alone.sentences, strict=True):
            np.testing.assert_allclose(ours.alignment[:2], expected.alignment[:2], atol=1e-5)


def test_a_trained_model_in_float64_batched_as_alone():
    """Rounding can grow over the utterances of a trained model: the bundled voice."""
    synthesizer = Synthesizer.from_voice(DEFAULT_VOICE, device="cpu", dtype=torch.float64)
    ids = [
        synthesizer.frontend.encode(text).symbols
        for text in ("It rains.", "Turn off the lights, please.", "Who knows why?")
    ]
    lengths = torch.tensor([len(symbols) for symbols in ids])
    text = torch.nn.utils.rnn.pad_sequence([torch.tensor(symbols) for symbols in ids], batch_first=True)
    for order in ([0, 1, 2], [2, 0], [1, 2]):
        mel, mel_lengths, alignments = synthesizer.tacotron2.infer(
            text[order], lengths[order], seed=[5 + i for i in order]
        )
        for row, i in enumerate(order):
            one = torch.tensor([ids[i]]), lengths[i : i + 1]
            alone, alone_length, alone_alignment = synthesizer.tacotron2.infer(*one, seed=5 + i)
            assert mel_lengths[row] == alone_length[0] > 20
            n, n_steps = alone.shape[2], alone_alignment.shape[1]
            torch.testing.assert_close(mel[row, :, :n], alone[0], atol=1e-9, rtol=0)
            torch.testing.assert_close(alignments[row, :n_steps, : len(ids[i])], alone_alignment[0], atol=1e-9, rtol=0)


def test_sentence_seeds_differ_and_the_first_is_the_texts_own():
    seeds = {sentence_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(100)}
    assert len(seeds) == 400
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert sentence_seed(-5, 0) == -5
    with pytest.raises(FastglowError, match="does not fit in 64 bits"):
        sentence_seed(2**63, 0)


def test_denoiser_is_applied(voice_folder):
    plain, denoised = (
        # Random weights exceed full scale: at a tenth of the volume nothing is scaled down.
        10 * synthesizer.synthesize("Hello.", seed=1, normalize=False, volume=0.1).audio
        for synthesizer in (
            Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.float32, vocoder="waveglow"),
            Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.float32, vocoder="waveglow", denoise=0.3),
        )
    )
    expected = Denoiser(make_waveglow()).denoise(torch.from_numpy(plain)[None], 0.3)[0]
    np.testing.assert_allclose(denoised, expected, atol=1e-5)
    assert not np.allclose(expected, plain, atol=1e-4)


def test_reduced_precision_stays_near(voice_folder):
    full = Synthesizer.from_voice(voice_folder, device="cpu", vocoder="waveglow")
    reduced = Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.bfloat16, vocoder="waveglow")
    a, b = full.synthesize("Hello.", seed=1), reduced.synthesize("Hello.", seed=1)
    n = min(4, a.mel.shape[1], b.mel.shape[1])
    assert n > 0
    np.testing.assert_allclose(a.mel[:, :n], b.mel[:, :n], atol=0.2)
    assert np.isfinite(b.audio).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=15)
@given(text=st.text(max_size=60))
def test_any_text_is_spoken_or_reported_silent(voice_folder, text):
    synthesizer = _cached(voice_folder)
    speech = synthesizer.synthesize(text, seed=0)
    assert np.isfinite(speech.audio).all()
    speakable = [s for s in split_sentences(text) if synthesizer.frontend.encode(s).symbols]
    # A random gate may fire at once: then a sentence has no audio and is not listed. Or never: then its parts are.
    position, spoken = 0, "\n".join(speakable)
    for sentence in speech.sentences:
        position = spoken.index(sentence.text, position) + len(sentence.text)
    assert bool(len(speech.audio)) == bool(speech.sentences)
    assert speech.sentences or not any(len(s.split()) > 2 for s in speakable)


_synthesizers = {}


def _cached(voice_folder):
    if voice_folder not in _synthesizers:
        _synthesizers[voice_folder] = Synthesizer.from_voice(voice_folder, device="cpu", vocoder="waveglow")
    return _synthesizers[voice_folder]


def test_torchaudio_symbol_tables():
    """Ids by the position in torchaudio's documented tables: twelve marks, then letters or phones."""
    characters = "_-!'(),.:;? abcdefghijklmnopqrstuvwxyz"
    assert Frontend(["english_cleaners"], 38).encode("Ab, c?").symbols == [characters.index(c) for c in "ab, c?"]
    phones = Frontend(["english_cleaners"], 96)
    with pytest.warns(UnspeakableTextWarning):
        ids = phones.encode("x {AA AA0 ZH}.").symbols
    table = [*characters[:12], *(s[1:] for s in symbols if s.startswith("@"))]
    assert len(table) == 96
    assert [table[i] for i in ids] == [" ", "AA", "AA0", "ZH", "."]
    with pytest.raises(FastglowError, match="no known symbol table has 77 symbols"):
        Frontend(["english_cleaners"], 77)


def test_torchaudios_phones_read_english_with_a_lexicon(cmudict):
    """torchaudio's documented table of phones: twelve marks, then ARPAbet as sorted by name."""
    table = [*"_-!'(),.:;? ", *(s[1:] for s in symbols if s.startswith("@"))]
    synthesizer = Synthesizer(make_tacotron2(n_symbols=96), "griffin-lim", lexicon=cmudict, device="cpu")
    phones = "HH AH0 L OW1 , _ W ER1 L D Z _ F ER1 S T _ S T EY1 SH AH0 N !".split()
    text = "Hello, WORLD's 1st station!"
    assert [table[i].replace(" ", "_") for i in synthesizer.frontend.encode(text).symbols] == phones
    speech = synthesizer.synthesize(text, seed=1)
    assert speech.sentences[0].alignment.shape[1] == len(phones)
    with pytest.warns(UnspeakableTextWarning, match=r"'q' \(U\+0071\), 'x' \(U\+0078\)$"):
        assert [table[i] for i in synthesizer.frontend.encode("the qxq").symbols] == ["DH", "AH0", "."]


def test_lexicon_as_file_or_object_or_none(lexicon_file):
    def read(lexicon):
        return (
            Synthesizer(make_tacotron2(), "griffin-lim", lexicon=lexicon, device="cpu")
            .frontend.encode("Hello, you!")
            .symbols
        )

    phones = text_to_sequence("{Y EH1 L OW0}, you!", [])
    for lexicon in (lexicon_file, str(lexicon_file), Lexicon(lexicon_file)):
        assert read(lexicon) == phones
    assert read(None) == text_to_sequence("hello, you!", [])


def test_a_table_without_phones_takes_no_lexicon(lexicon_file):
    model = make_tacotron2(n_symbols=38)
    Synthesizer(model, "griffin-lim", device="cpu")
    with pytest.raises(
        FastglowError, match="^a model of 38 symbols reads letters, not ARPAbet: leave the lexicon out$"
    ):
        Synthesizer(model, "griffin-lim", lexicon=lexicon_file, device="cpu")
    with pytest.raises(FastglowError, match="cannot read the lexicon absent.txt"):
        Synthesizer(make_tacotron2(), "griffin-lim", lexicon="absent.txt", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"vocoder": "wavenet"}, "unknown vocoder 'wavenet'"),
        ({"vocoder": "waveglow"}, "needs a WaveGlow checkpoint"),
        (
            {"vocoder": "griffin-lim", "audio": MelConfig(n_mel_channels=40)},
            "has n_mel_channels=80, must have 40 as the voice",
        ),
        ({"vocoder": "griffin-lim", "device": "cuda:77"}, "'cuda:77' is not available"),
        (
            {"vocoder": "waveglow", "waveglow": {"upsample_stride": 200, "upsample_kernel_size": 800}},
            "makes 200 samples",
        ),
        ({"vocoder": "waveglow", "waveglow": {}, "sigma": -1.0}, "sigma=-1.0 .* must be finite and not negative"),
        ({"vocoder": "waveglow", "waveglow": {}, "sigma": float("inf")}, "must be finite"),
        ({"vocoder": "waveglow", "waveglow": {}, "denoise": float("inf")}, "must be finite"),
        ({"vocoder": "griffin-lim", "text_cleaners": ["no_such"]}, "unknown cleaner 'no_such'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, pattern):
    arguments = {**arguments}
    if "waveglow" in arguments:
        arguments["waveglow"] = make_waveglow(**arguments["waveglow"])
    with pytest.raises(FastglowError, match=pattern) as raised:
        Synthesizer(make_tacotron2(), **arguments).synthesize("Hello.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("silence", [-0.1, float("nan"), 61.0])
def test_bad_silences_are_refused(synthesizer, silence):
    with pytest.raises(FastglowError, match=f"sentence_silence={silence} must be between 0 and 60"):
        synthesizer.synthesize("Hello.", sentence_silence=silence)


@pytest.mark.parametrize("vocoder", ["griffin-lim", "waveglow"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_warmup_changes_nothing_that_is_spoken(voice_folder, vocoder, batch_size):
    expected = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder).synthesize(TEXT, seed=3).audio
    synthesizer = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder)
    synthesizer.warmup(batch_size)
    np.testing.assert_array_equal(synthesizer.synthesize(TEXT, seed=3).audio, expected)


def test_memory_of_the_weights(synthesizer):
    parameters = [*synthesizer.tacotron2.parameters(), *make_waveglow().parameters()]
    assert synthesizer.memory() == {"weights": 4 * sum(p.numel() for p in parameters), "graphs": 0}


def test_a_batch_takes_a_seed_per_text_and_any_batch_size(voice_folder):
    synthesizer = Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.float64)
    texts, seeds = ["One.", "Two and a half of them.", "One."], [3, -4, 5]
    for batch_size in (None, 1, 2):
        speeches = synthesizer.synthesize_batch(texts, seeds, batch_size=batch_size)
        for text, seed, speech in zip(texts, seeds, speeches, strict=True):
            assert speech.seed == seed
            np.testing.assert_allclose(speech.mel, synthesizer.synthesize(text, seed).mel, atol=1e-6)
    with pytest.raises(FastglowError, match="2 seeds for 3 texts: pass one seed, or one per text"):
        synthesizer.synthesize_batch(texts, [1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.synthesize("A.", seed=1.5), "seed=1.5 must be an integer"),
        (lambda s: s.synthesize("A.", seed=2**63), "does not fit in 64 bits"),
        (lambda s: s.stream("A.", seed="x"), "seed='x' must be an integer"),
        (lambda s: s.synthesize_batch(["A."], [1.5]), "seed=1.5 must be an integer"),
        (lambda s: s.synthesize_batch(["A."], batch_size=-1), "batch_size=-1 must be a whole number of at least 1"),
        (lambda s: s.synthesize_batch(["A."], batch_size=0), "batch_size=0 must be a whole number of at least 1"),
        (lambda s: s.stream("A.", chunk_frames=1.5), "chunk_frames=1.5 must be a whole number of at least 1"),
        (lambda s: s.warmup(0), "batch_size=0 must be a whole number of at least 1"),
        (lambda s: s.synthesize("A.", sentence_silence="a"), "sentence_silence='a' must be between 0 and 60"),
    ],
)
def test_bad_arguments_of_calls(synthesizer, call, message):
    with pytest.raises(FastglowError, match=message):
        call(synthesizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_decoder": "int4"}, "cpu_decoder='int4' with device='cpu' and dtype=.*: use int8 on a CPU in float32 or"),
        ({"cpu_decoder": "int8", "dtype": torch.float64}, "cpu_decoder='int8' with device='cpu' and dtype=float64"),
    ],
)
def test_bad_types_of_the_decoder(voice_folder, options, message):
    with pytest.raises(FastglowError, match=message):
        Synthesizer.from_voice(voice_folder, device="cpu", **options)


def test_types_of_the_decoder(voice_folder):
    voice = Synthesizer.from_voice(voice_folder, device="cpu", dtype=torch.float32, cpu_decoder="int8")
    assert (voice.dtype, voice.cpu_decoder) == (torch.float32, "int8")
    rounded = voice.synthesize("Hello.", seed=1).mel
    voice.tacotron2.decoder.cpu_weights = None
    assert voice.cpu_decoder is None
    exact = voice.synthesize("Hello.", seed=1).mel
    n = 4  # of the first steps, before the gate or the drift decides
    assert not np.array_equal(rounded[:, :n], exact[:, :n])
    np.testing.assert_allclose(rounded[:, :n], exact[:, :n], atol=0.1)


def test_another_synthesizer_of_a_model_reports_what_runs():
    model = make_tacotron2()
    first = Synthesizer(model, "griffin-lim", device="cpu", dtype=torch.float32, cpu_decoder="int8")
    second = Synthesizer(model, "griffin-lim", device="cpu")
    assert first.cpu_decoder == second.cpu_decoder == "int8"
    one, two = (voice.synthesize("Hello.", seed=1) for voice in (first, second))
    np.testing.assert_array_equal(one.audio, two.audio)
    for dtype, cpu_decoder in ((torch.bfloat16, "int8"), (torch.float64, None)):  # float64 runs on the reference
        Synthesizer(model, "griffin-lim", device="cpu", dtype=dtype)
        assert (first.dtype, first.cpu_decoder) == (dtype, cpu_decoder)
    model.to(torch.float32).decoder.cpu_weights = torch.bfloat16
    assert first.cpu_decoder == "bfloat16"
    with use_backend("reference"):
        assert first.cpu_decoder is None
    model.to(torch.bfloat16)
    assert first.cpu_decoder is None, "the parameters' own type"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_models_of_the_caller_keep_their_type(dtype):
    model = make_tacotron2().to(dtype)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert Synthesizer(model, "griffin-lim", device="cpu").dtype == dtype
    for name, x in model.state_dict().items():
        assert x.dtype == before[name].dtype and torch.equal(x, before[name])


def test_seeds_may_be_an_array(synthesizer):
    one, two = synthesizer.synthesize_batch(["One.", "One."], np.array([3, 4]))
    assert (one.seed, two.seed) == (3, 4) and not np.array_equal(one.audio, two.audio)


@pytest.mark.filterwarnings(UNSTOPPED)
def test_models_made_in_inference_mode_speak():
    with torch.inference_mode():
        voice = Synthesizer(make_tacotron2(), "waveglow", make_waveglow(), device="cpu", dtype=torch.float64)
    expected = Synthesizer(make_tacotron2(), "waveglow", make_waveglow(), device="cpu", dtype=torch.float64)
    found = voice.synthesize("Hello.", seed=1).audio
    np.testing.assert_array_equal(found, expected.synthesize("Hello.", seed=1).audio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_voice_loaded_in_inference_mode_has_caches_too(voice_folder, dtype):
    with torch.inference_mode():
        voice = Synthesizer.from_voice(voice_folder, device="cpu", dtype=dtype, vocoder="waveglow")
        inside = voice.synthesize("Hello.", seed=1).audio
    models = (voice.tacotron2, voice.vocoder.model)
    assert not any(parameter.is_inference() for model in models for parameter in model.parameters())
    np.testing.assert_array_equal(voice.synthesize("Hello.", seed=1).audio, inside)
    packed = dtype != torch.float64
    assert all((wn._packed if packed else wn._folded)._entry is not None for wn in voice.vocoder.model.WN)


@pytest.mark.gpu
def test_a_warm_engine_on_a_gpu_records_no_more_and_gives_the_same_bits(voice_folder):
    cold, warm = (Synthesizer.from_voice(voice_folder, device="cuda", vocoder="waveglow", denoise=0.1) for _ in "ab")
    expected = cold.synthesize(TEXT, seed=3).audio
    warm.warmup()
    before = warm.memory()
    assert before["graphs"] > 0
    for _ in range(3):
        np.testing.assert_array_equal(warm.synthesize(TEXT, seed=3).audio, expected)
    assert warm.memory() == before
    with torch.no_grad():  # new weights are noticed
        for parameter in warm.tacotron2.postnet.parameters():
            parameter.mul_(1.5)
    changed = warm.synthesize(TEXT, seed=3).audio
    assert changed.shape == expected.shape and not np.array_equal(changed, expected)
