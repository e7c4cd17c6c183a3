"""Audio encoded while it is made: complete, readable without seeking, the same however it is split, early, frugal."""

import gc
import io
import os
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.audio import StreamEncoder, read_audio, write_audio
from fastglow.errors import FastglowError

from .pieces import SIZES, pieces, speech_like

RATE = 22050
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "pcm")
LOSSY = ("mp3", "ogg", "opus")


def voiced(seconds, rate=RATE):
    """Harmonics of a gliding pitch in syllables, faded at both ends; peaks at 0.5."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * 0.7 * t)) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    fade = np.minimum(t, t[::-1]).clip(max=0.03) / 0.03
    return (0.5 * fade * wave / np.abs(wave).max()).astype(np.float32)


def encoded(format, audio, sizes=(2000,), rate=RATE):
    encoder = StreamEncoder(format, rate)
    return b"".join([*(encoder.push(piece) for piece in pieces(audio, sizes)), encoder.finish()])


class OneWay(soundfile.SoundFile):
    """Reads from front to back, as FLAC of unknown length needs."""

    def seekable(self):
        return False


def decoded(format, data):
    """The samples that libsndfile reads; float32."""
    if format == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32768)
    with OneWay(io.BytesIO(data)) as file:
        return file.read(1 << 22, dtype="float32")


def assert_heard(audio, original, format, delay=1200):
    """All of `original` is in `audio`, behind the delay of MP3, with a codec's error and no other sound."""
    assert len(original) <= len(audio) <= len(original) + 2 * delay
    half = original[: len(original) // 2]
    lag = int(np.correlate(audio[: len(half) + delay], half, "valid").argmax())
    assert lag == 0 or format == "mp3"
    error = audio.copy()
    error[lag : lag + len(original)] -= original[: len(audio) - lag]
    if format not in LOSSY:
        assert np.abs(error).max() < 2 / 32768
        return
    blocks = np.array_split(error, len(error) // 400)
    worst = max(np.sqrt(np.mean(block**2)) for block in blocks)
    assert worst < 0.25 * np.sqrt(np.mean(original**2)) and np.abs(error).max() < 0.1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rate", [22050, 24000, 44100])
def test_all_of_a_stream_is_read(tmp_path, format, rate):
    audio = voiced(1.5, rate)
    encoder = StreamEncoder(format, rate)
    data = encoded(format, audio, rate=rate)
    if format == "pcm":
        back, back_rate = decoded("pcm", data), 24000
    else:
        (tmp_path / "stream").write_bytes(data)
        back, back_rate = read_audio(tmp_path / "stream")
        assert soundfile.info(io.BytesIO(data)).samplerate == encoder.rate
    expected_rate = {"opus": 48000 if rate == 44100 else 24000, "pcm": 24000}.get(format, rate)
    assert back_rate == encoder.rate == expected_rate
    assert_heard(back, audio if rate == back_rate else soxr.resample(audio, rate, back_rate), format)


@pytest.mark.parametrize(
    ("format", "media_type", "begin"),
    [
        ("wav", "audio/wav", b"RIFF\xff\xff\xff\xffWAVE"),
        ("flac", "audio/flac", b"fLaC"),
        ("mp3", "audio/mpeg", b"\xff\xf3"),
        ("ogg", "audio/ogg", b"OggS"),
        ("opus", "audio/ogg; codecs=opus", b"OggS"),
        ("pcm", "audio/pcm", b""),
    ],
)
def test_the_media_type_tells_what_the_bytes_are(format, media_type, begin):
    assert StreamEncoder(format, RATE).media_type == media_type
    assert encoded(format, voiced(0.1)).startswith(begin)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("format", FORMATS[:-1])
def test_ffmpeg_reads_a_stream_from_a_pipe(format):
    audio = voiced(3)  # of Ogg with a single page of audio, ffmpeg loses the end, also in a file
    command = ["ffmpeg", "-v", "error", "-i", "pipe:0", "-ar", "22050", "-f", "f32le", "-"]
    done = subprocess.run(command, input=encoded(format, audio), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert_heard(np.frombuffer(done.stdout, np.float32), audio, format)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99), n=st.integers(1, 50000))
def test_a_stream_does_not_depend_on_how_it_is_split(format, sizes, seed, n):
    audio = speech_like(n, seed).clip(-1, 1)
    whole, split = encoded(format, audio, (n,)), encoded(format, audio, sizes)
    if format in ("ogg", "opus"):  # each has a serial number of its own
        assert len(split) == len(whole)
        np.testing.assert_array_equal(decoded(format, split), decoded(format, whole))
    else:
        assert split == whole


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "opus"])
def test_a_stream_has_the_samples_of_a_file(format):
    audio = speech_like(40000, 3).clip(-1, 1)
    file = io.BytesIO()
    write_audio(file, audio, RATE, format)
    samples, of_file = decoded(format, encoded(format, audio)), decoded(format, file.getvalue())
    silence = 24000 // 25 if format == "opus" else 0
    assert len(samples) == len(of_file) + silence
    if silence:  # before it, a file ends with a click
        samples, of_file = samples[: -silence - 480], of_file[:-480]
    np.testing.assert_array_equal(samples, of_file)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("n", [1, 700, 30011])
def test_pcm_is_resampled_as_a_whole_clip_is(rate, n):
    audio = np.round(speech_like(n, 5).clip(-1, 1) * 32767).astype(np.float32) / 32768
    whole = audio if rate == 24000 else soxr.resample(audio, rate, 24000).clip(-1, 1)
    expected = np.clip(np.rint(whole.astype(np.float64) * 32768), -32768, 32767)
    np.testing.assert_array_equal(np.frombuffer(encoded("pcm", audio, (331, 5, 1), rate), "<i2"), expected)


@pytest.mark.parametrize(
    ("format", "seconds"), [("wav", 0.001), ("flac", 0.19), ("mp3", 0.1), ("ogg", 2.0), ("opus", 0.2), ("pcm", 0.06)]
)
def test_sound_leaves_early(format, seconds):
    """What has left can be decoded, and is behind what was pushed by no more than this."""
    audio = voiced(6)
    encoder = StreamEncoder(format, RATE)
    data = b""
    for end in range(500, len(audio), 500):
        data += encoder.push(audio[end - 500 : end])
        if end / RATE > seconds and end % 4500 == 0:
            assert len(decoded(format, data)) / encoder.rate >= end / RATE - seconds


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_short_and_empty_streams_are_valid(tmp_path, format, n):
    data = encoded(format, np.full(n, 0.25, np.float32))
    if format == "pcm":
        assert len(data) == 2 * round(n * 24000 / RATE)
        return
    (tmp_path / "stream").write_bytes(data)
    audio, rate = read_audio(tmp_path / "stream")
    assert len(audio) >= max(1, round(n * rate / RATE))
    assert n or np.abs(audio).max() < 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_without_samples_add_nothing(format):
    empty, audio = np.zeros(0, np.float32), voiced(0.3)
    encoder = StreamEncoder(format, RATE)
    data = b"".join([*(encoder.push(part) for part in (empty, audio, empty, empty)), encoder.finish()])
    np.testing.assert_array_equal(decoded(format, data), decoded(format, encoded(format, audio)))


@pytest.mark.parametrize("format", FORMATS)
def test_loud_audio_is_clipped_with_a_warning(format):
    encoder = StreamEncoder(format, 24000)
    with pytest.warns(UserWarning, match="2 of 3 samples were outside"):
        data = encoder.push(np.array([2.0, -3.0, 0.5]))
    if format in ("wav", "pcm"):
        assert np.frombuffer(data[-6:], "<i2").tolist() == [32767, -32768, 16384]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([0.1, np.nan], "NaN or infinite"),
        ([-np.inf], "NaN or infinite"),
        (np.zeros((1, 5)), r"has shape \[1, 5\]"),
        (np.zeros(5, np.int16), "has dtype int16"),
    ],
)
def test_bad_audio_is_refused_and_changes_nothing(audio, message):
    encoder, good = StreamEncoder("wav", RATE), voiced(0.1)
    data = encoder.push(good)
    with pytest.raises(FastglowError, match=message):
        encoder.push(audio)
    assert data + encoder.push(good) + encoder.finish() == encoded("wav", np.concatenate((good, good)))


@pytest.mark.parametrize("format", ["aac", "", "WAV", "raw"])
def test_unknown_formats_are_named(format):
    with pytest.raises(FastglowError, match=f"format='{format}' must be one of wav, flac, mp3, ogg, opus, pcm"):
        StreamEncoder(format, RATE)


@pytest.mark.parametrize("format", FORMATS)
def test_impossible_rates_are_named(format):
    """At 0 Hz, libsndfile's Vorbis encoder divides by zero."""
    for rate in (0, -22050):
        with pytest.raises(
            FastglowError, match=f"cannot write {format} at {rate} Hz: a sampling rate must be positive"
        ):
            StreamEncoder(format, rate)


def test_a_rate_that_libsndfile_refuses_late_is_named():
    encoder = StreamEncoder("flac", 192001)
    with pytest.raises(FastglowError, match="cannot write flac at 192001 Hz"):
        encoder.push(voiced(1))
    with pytest.raises(FastglowError, match="cannot write ogg at 500000 Hz: use at most 200000 Hz"):
        StreamEncoder("ogg", 500000)


def test_a_format_that_libsndfile_cannot_write_is_refused(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
    with pytest.raises(FastglowError, match="libsndfile .* cannot write 'mp3': install a newer soundfile"):
        StreamEncoder("mp3", RATE)


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_whose_soundfile_has_no_private_names_is_complete(format, monkeypatch, tmp_path):
    public = {name: getattr(soundfile, name) for name in dir(soundfile) if name[0] != "_" or name[-1] == "_"}
    monkeypatch.setattr("fastglow.audio.encoder.soundfile", SimpleNamespace(**public))
    audio = voiced(1)
    data = encoded(format, audio)
    if format == "pcm":
        return
    (tmp_path / "stream").write_bytes(data)
    back, rate = read_audio(tmp_path / "stream")
    assert_heard(back, audio if rate == RATE else soxr.resample(audio, RATE, rate), format)


def test_a_finished_encoder_is_refused():
    encoder = StreamEncoder("mp3", RATE)
    encoder.push(voiced(0.1))
    encoder.finish()
    for call in (encoder.finish, lambda: encoder.push(voiced(0.1))):
        with pytest.raises(RuntimeError, match="is finished"):
            call()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [0, 30000])
def test_an_encoder_that_is_dropped_leaves_nothing(format, n):
    """Not even until the next garbage collection, and no warning, which pytest would make an error."""
    open_files = os.listdir("/proc/self/fd")
    encoder = StreamEncoder(format, RATE)
    encoder.push(speech_like(n, 1).clip(-1, 1))
    dropped = weakref.ref(encoder)
    gc.disable()
    try:
        del encoder
        assert dropped() is None
    finally:
        gc.enable()
    assert os.listdir("/proc/self/fd") == open_files


def test_encoders_in_threads_are_independent():
    jobs = [(format, seed) for seed in range(4) for format in FORMATS]
    start = threading.Barrier(8)

    def encode(job):
        format, seed = job
        with warnings.catch_warnings():
            return decoded(format, encoded(format, speech_like(30000, seed).clip(-1, 1), (700,)))

    alone = [encode(job) for job in jobs]
    with ThreadPoolExecutor(8, initializer=start.wait) as pool:
        for job, got, expected in zip(jobs, pool.map(encode, jobs), alone, strict=True):
            assert np.array_equal(got, expected), job


def test_memory_does_not_grow_with_the_stream():
    """In a separate process, whose memory no other test has stretched."""
    code = f"""
import resource, numpy
from fastglow.audio import StreamEncoder
audio = numpy.random.default_rng(0).uniform(-0.3, 0.3, 10 * 8000).astype("f4")
encoders = [StreamEncoder(format, 8000) for format in {FORMATS}]
peaks, n_bytes = [], 0
for i in range(10):
    for encoder in encoders:
        for start in range(0, len(audio), 4000):
            n_bytes += len(encoder.push(audio[start : start + 4000]))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[-1] - peaks[2], n_bytes // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, written = map(int, done.stdout.split())
    assert grown < 1500 and written > 6000  # KiB
