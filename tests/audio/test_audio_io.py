"""Reading and writing audio: formats, rates, clipping, pipes, and errors that leave no file."""

import io
import os
import subprocess
import sys
import threading
import warnings

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastglow.audio import read_audio, write_audio
from fastglow.errors import FastglowError

# Half a 16-bit step, and the full step between +1.0 and the largest value.
STEP = 1 / 32768


def sine(hz, rate, seconds=0.5, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_round_trip(tmp_path, suffix, as_tensor):
    audio = sine(440, 22050)
    path = tmp_path / f"a{suffix}"
    assert write_audio(path, torch.from_numpy(audio) if as_tensor else audio, 22050) == 0
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.channels) == (suffix[1:].upper(), "PCM_16", 1)
    back, rate = read_audio(str(path))
    assert rate == 22050 and back.dtype == np.float32 and back.shape == audio.shape
    assert np.abs(back - audio).max() <= STEP / 2
    assert os.listdir(tmp_path) == [path.name]


def test_16_bit_audio_survives_bit_for_bit(tmp_path):
    pcm = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "in.wav", pcm, 16000)
    audio, rate = read_audio(tmp_path / "in.wav")
    assert write_audio(tmp_path / "out.flac", audio, rate) == 0
    back, _ = soundfile.read(tmp_path / "out.flac", dtype="int16")
    assert np.array_equal(back, pcm)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_is_written(tmp_path, dtype):
    values = [0.0, 0.5, -0.25, 0.125]
    is_torch = isinstance(dtype, torch.dtype)
    audio = torch.tensor(values, dtype=dtype).requires_grad_() if is_torch else np.array(values, dtype)
    write_audio(tmp_path / "a.wav", audio, 22050)
    assert read_audio(tmp_path / "a.wav")[0].tolist() == values


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-4, 4)))
def test_loud_audio_is_clipped_never_wrapped(audio):
    stream = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        n_clipped = write_audio(stream, audio, 22050)
    back, _ = soundfile.read(io.BytesIO(stream.getvalue()))
    ideal = np.clip(audio, -1, 1 - STEP)
    assert np.abs(back - ideal).max() <= STEP / 2 + 1e-12
    assert n_clipped == (np.abs(audio) > 1 + STEP / 2).sum()
    assert len(caught) == (n_clipped > 0)
    if caught:
        assert f"{n_clipped} of {audio.size} samples were outside [-1, 1]" in str(caught[0].message)


@pytest.mark.parametrize("format, subtype", [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_24")])
def test_reads_every_format(tmp_path, format, subtype):
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, sine(440, 22050, 1.0), 22050, format=format, subtype=subtype)
    audio, rate = read_audio(path)
    assert rate == 22050 and audio.dtype == np.float32 and audio.ndim == 1
    spectrum = np.abs(np.fft.rfft(audio[2000:20000] * np.hanning(18000)))
    assert abs(spectrum.argmax() * 22050 / 18000 - 440) < 2
    assert abs(np.abs(audio[2000:20000]).max() - 0.5) < 0.05


def test_reading_ignores_the_suffix(tmp_path):
    write_audio(tmp_path / "a.flac", sine(440, 22050), 22050)
    os.rename(tmp_path / "a.flac", tmp_path / "a.bin")
    assert read_audio(tmp_path / "a.bin")[1] == 22050


def test_channels_are_averaged(tmp_path):
    left, right = sine(440, 22050), sine(1000, 22050)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 22050, subtype="FLOAT")
    audio, _ = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(audio, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [44100, 16000, 48000, 8000])
def test_resampling_keeps_the_sound(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(1000, rate, 1.0), rate, subtype="FLOAT")
    with pytest.warns(UserWarning, match=f"resampling audio from {rate} Hz to 22050 Hz"):
        audio, got = read_audio(tmp_path / "a.wav", sampling_rate=22050)
    assert got == 22050 and audio.dtype == np.float32
    assert abs(audio.size - 22050) <= 1
    middle = slice(3000, 19000)
    np.testing.assert_allclose(audio[middle], sine(1000, 22050, 1.0)[middle], atol=1e-3)


def test_the_right_rate_is_not_resampled(tmp_path):
    audio = sine(440, 22050)
    soundfile.write(tmp_path / "a.wav", audio, 22050, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back, _ = read_audio(tmp_path / "a.wav", sampling_rate=22050)
    assert np.array_equal(back, audio)


def test_overshoot_is_scaled_into_range(tmp_path):
    """Resampling a loud square wave overshoots; a float file may have any values."""
    square = (0.9 * np.sign(sine(440, 44100))).astype(np.float32)
    soundfile.write(tmp_path / "square.wav", square, 44100, subtype="FLOAT")
    with pytest.warns(UserWarning, match="resampling") as caught:
        audio, _ = read_audio(tmp_path / "square.wav", sampling_rate=22050)
    assert np.abs(audio).max() == 1.0 and len(caught) == 1
    soundfile.write(tmp_path / "loud.wav", 20000 * sine(440, 22050), 22050, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"loud.wav: peaks at 1\d{4}(\.\d)?, scaled down to 1"):
        audio, _ = read_audio(tmp_path / "loud.wav")
    assert np.abs(audio).max() == 1.0


@pytest.mark.parametrize("n_channels", [1, 2, 3])
@pytest.mark.parametrize("largest", [1e30, 3.4e38])
def test_the_sum_of_channels_does_not_overflow(tmp_path, n_channels, largest):
    samples = np.repeat(sine(440, 22050)[:, None], n_channels, axis=1)
    samples = (samples.astype(np.float64) / np.abs(samples).max() * largest).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", samples, 22050, subtype="FLOAT")
    with pytest.warns(UserWarning, match="scaled down to 1") as caught:
        audio, _ = read_audio(tmp_path / "loud.wav")
    assert len(caught) == 1
    np.testing.assert_allclose(audio, samples[:, 0].astype(np.float64) / samples.max(), atol=1e-6)


def bad_file(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty-file":
        path.touch()
    elif kind == "no-samples":
        soundfile.write(path, np.zeros(0), 22050)
    elif kind == "text":
        path.write_text("this is not audio\n" * 100)
    elif kind == "nan":
        soundfile.write(path, np.array([0, np.nan, 0.5]), 22050, subtype="FLOAT")
    elif kind == "infinity":
        soundfile.write(path, np.array([0, -np.inf, 0.5]), 22050, subtype="FLOAT")
    elif kind == "both-infinities":
        soundfile.write(path, np.array([[0, 0], [np.inf, -np.inf]]), 22050, subtype="FLOAT")
    elif kind == "headerless":
        path = folder / "headerless.raw"
        path.write_bytes(bytes(1000))
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "no such audio file"),
        ("folder", "is a folder"),
        ("empty-file", "cannot be read as audio"),
        ("no-samples", "has no audio samples"),
        ("text", "cannot be read as audio"),
        ("nan", "NaN or infinite"),
        ("infinity", "NaN or infinite"),
        ("both-infinities", "NaN or infinite"),
        ("headerless", "cannot be read as audio"),
    ],
)
def test_bad_files_are_named(tmp_path, kind, message):
    path = bad_file(tmp_path, kind)
    with pytest.raises(FastglowError, match=message) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_bad_rates_are_named(tmp_path):
    with pytest.raises(FastglowError, match="sampling_rate=0 must be positive"):
        read_audio(tmp_path / "a.wav", sampling_rate=0)
    with pytest.raises(FastglowError, match="at -5 Hz"):
        write_audio(tmp_path / "a.wav", np.zeros(3), -5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros((2, 5)), r"has shape \[2, 5\], must be \[N\]"),
        (torch.zeros(1, 5), r"has shape \[1, 5\], must be \[N\]"),
        (np.zeros(5, np.int16), "has dtype int16, must be floating"),
        (torch.zeros(5, dtype=torch.int16), "has dtype torch.int16, must be floating"),
        (np.zeros(0), "0 samples"),
        (np.array([0, np.nan]), "NaN or infinite"),
        (torch.tensor([0, -float("inf")]), "NaN or infinite"),
    ],
)
def test_bad_audio_leaves_no_file(tmp_path, audio, message):
    with pytest.raises(FastglowError, match=message):
        write_audio(tmp_path / "a.wav", audio, 22050)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.aac", "a", "a.wav.txt"])
def test_unknown_suffixes_are_named(tmp_path, name):
    with pytest.raises(FastglowError, match=rf"{name}: cannot write .* use one of \.wav, \.flac"):
        write_audio(tmp_path / name, np.zeros(5), 22050)
    with pytest.raises(FastglowError, match="cannot write audio as 'aac'"):
        write_audio(io.BytesIO(), np.zeros(5), 22050, format="aac")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "suffix, container, subtype", [("mp3", "MP3", "MPEG_LAYER_III"), ("ogg", "OGG", "VORBIS"), ("OPUS", "OGG", "OPUS")]
)
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_compressed_formats_keep_the_sound(tmp_path, suffix, container, subtype, rate):
    path = tmp_path / f"a.{suffix}"
    assert write_audio(path, sine(440, rate, 2.0, 0.5), rate) == 0
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.channels) == (container, subtype, 1)
    back, back_rate = soundfile.read(path)
    if subtype != "OPUS":  # Opus decoders may always return 48 kHz
        assert back_rate == rate
    assert len(back) / back_rate == pytest.approx(2.0, abs=0.1)
    middle = back[len(back) // 4 : 3 * len(back) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * back_rate / len(middle) == pytest.approx(440, abs=2)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("suffix, rate, written", [("opus", 22050, 24000), ("opus", 8000, 8000), ("opus", 96000, 48000),
                                                   ("mp3", 20000, 22050), ("mp3", 50000, 48000)])  # fmt: skip
def test_rates_that_a_format_lacks_are_resampled_to_the_next(tmp_path, suffix, rate, written):
    path = tmp_path / f"a.{suffix}"
    write_audio(path, sine(440, rate, 1.0, 0.5), rate)
    data = path.read_bytes()
    if suffix == "opus":  # the header has the rate of the encoded audio
        header = data.index(b"OpusHead")
        assert int.from_bytes(data[header + 12 : header + 16], "little") == written
    else:
        assert soundfile.info(path).samplerate == written
    assert soundfile.info(path).duration == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("format", ["ogg", "opus", "mp3", "flac"])
def test_ten_minutes_do_not_overflow_an_encoder(format):
    """In a separate process, which a stack overflow would kill."""
    code = f"""
import io, numpy, soundfile
from fastglow.audio import write_audio
stream = io.BytesIO()
audio = numpy.random.default_rng(0).uniform(-0.1, 0.1, 600 * 8000).astype("f4")
write_audio(stream, audio, 8000, {format!r})
stream.seek(0)
print(soundfile.info(stream).duration)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(600, abs=0.2)


@pytest.mark.parametrize("suffix, missing", [("mp3", "MP3"), ("opus", "OPUS"), ("ogg", "VORBIS")])
def test_a_format_that_libsndfile_cannot_write_is_refused(tmp_path, monkeypatch, suffix, missing):
    formats, subtypes = soundfile.available_formats(), soundfile.available_subtypes
    monkeypatch.setattr(soundfile, "available_formats", lambda: {k: v for k, v in formats.items() if k != missing})
    monkeypatch.setattr(
        soundfile, "available_subtypes", lambda name: {k: v for k, v in subtypes(name).items() if k != missing}
    )
    with pytest.raises(FastglowError, match=rf"a.{suffix}: libsndfile .* cannot write '{suffix}': .* use .wav"):
        write_audio(tmp_path / f"a.{suffix}", np.zeros(5), 22050)
    assert os.listdir(tmp_path) == []


def test_unwritable_paths_are_named(tmp_path):
    for path in (tmp_path / "nowhere" / "a.wav", tmp_path / "folder.wav"):
        if path.suffix and path.parent == tmp_path:
            path.mkdir()
        with pytest.raises(FastglowError, match=f"{path}: cannot be written: .+"):
            write_audio(path, np.zeros(5), 22050)
    assert os.listdir(tmp_path) == ["folder.wav"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FastglowError, match="a.wav: cannot be written: No space left on device"):
        write_audio(path, np.zeros(5), 22050)
    assert os.listdir(tmp_path) == ["a.wav"] and path.read_bytes() == b"old"


def test_overwrites_what_a_link_points_to_and_keeps_permissions_usual(tmp_path):
    real, link = tmp_path / "real.wav", tmp_path / "link.wav"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_audio(link, sine(440, 22050), 22050)
    assert link.is_symlink() and soundfile.info(real).frames == 11025
    (tmp_path / "usual").touch()
    assert real.stat().st_mode == (tmp_path / "usual").stat().st_mode


class Pipe(io.RawIOBase):
    """A stream that cannot seek and writes at most 1000 bytes per call."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data[:1000])
        return min(len(data), 1000)


@pytest.mark.parametrize("format, name", [(None, "WAV"), ("wav", "WAV"), ("flac", "FLAC")])
def test_writes_to_a_stream_that_cannot_seek(format, name):
    audio = sine(440, 22050)
    pipe = Pipe()
    write_audio(pipe, audio, 22050, format=format)
    assert soundfile.info(io.BytesIO(pipe.data)).format == name
    back, rate = soundfile.read(io.BytesIO(pipe.data), dtype="float32")
    assert rate == 22050 and np.abs(back - audio).max() <= STEP / 2


@pytest.mark.parametrize("format, name", [("mp3", "MP3"), ("OGG", "OGG"), ("opus", "OGG")])
def test_writes_compressed_audio_to_a_stream_that_cannot_seek(format, name):
    pipe = Pipe()
    write_audio(pipe, sine(440, 24000), 24000, format=format)
    info = soundfile.info(io.BytesIO(pipe.data))
    assert info.format == name
    assert info.duration == pytest.approx(0.5, abs=0.1)


def test_writes_into_a_named_pipe_without_replacing_it(tmp_path):
    path = tmp_path / "pipe.wav"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    write_audio(path, sine(440, 22050), 22050)
    reader.join()
    assert soundfile.info(io.BytesIO(received[0])).frames == 11025
    assert path.is_fifo()


def test_standard_output_carries_a_complete_wav():
    code = "import sys, numpy; from fastglow.audio import write_audio\n"
    code += "write_audio(sys.stdout.buffer, numpy.zeros(500), 22050)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    info = soundfile.info(io.BytesIO(done.stdout))
    assert (info.format, info.frames, info.samplerate) == ("WAV", 500, 22050)


def test_importing_the_package_loads_none_of_its_libraries():
    code = "import sys, fastglow.audio as a\n"
    code += "assert a.MelConfig().hop_length == 256 and 'griffin_lim' in dir(a)\n"
    code += "sys.exit(', '.join({'torch', 'numpy', 'soundfile', 'soxr'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_has_no_other_names():
    import fastglow.audio

    assert callable(fastglow.audio.griffin_lim)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastglow.audio.nothing
