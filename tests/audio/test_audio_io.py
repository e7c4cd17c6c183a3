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

# Half a step of 16 bits, and the whole one by which +1.0 misses the loudest value.
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
def test_reads_what_others_wrote(tmp_path, format, subtype):
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, sine(440, 22050, 1.0), 22050, format=format, subtype=subtype)
    audio, rate = read_audio(path)
    assert rate == 22050 and audio.dtype == np.float32 and audio.ndim == 1
    spectrum = np.abs(np.fft.rfft(audio[2000:20000] * np.hanning(18000)))
    assert abs(spectrum.argmax() * 22050 / 18000 - 440) < 2
    assert abs(np.abs(audio[2000:20000]).max() - 0.5) < 0.05


def test_the_suffix_of_what_is_read_does_not_matter(tmp_path):
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
    """A loud square wave overshoots when it is resampled; a float file may hold anything."""
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
        ("no-samples", "holds no audio samples"),
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
    with pytest.raises(FastglowError, match="sampling_rate must be positive, not 0"):
        read_audio(tmp_path / "a.wav", sampling_rate=0)
    with pytest.raises(FastglowError, match="at -5 Hz"):
        write_audio(tmp_path / "a.wav", np.zeros(3), -5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros((2, 5)), r"\[N\], not \[2, 5\]"),
        (torch.zeros(1, 5), r"\[N\], not \[1, 5\]"),
        (np.zeros(5, np.int16), "not int16"),
        (torch.zeros(5, dtype=torch.int16), "not torch.int16"),
        (np.zeros(0), "0 samples"),
        (np.array([0, np.nan]), "NaN or infinite"),
        (torch.tensor([0, -float("inf")]), "NaN or infinite"),
    ],
)
def test_bad_audio_leaves_no_file(tmp_path, audio, message):
    with pytest.raises(FastglowError, match=message):
        write_audio(tmp_path / "a.wav", audio, 22050)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp3", "a", "a.wav.txt"])
def test_unknown_suffixes_are_named(tmp_path, name):
    with pytest.raises(FastglowError, match=rf"{name}: cannot write .* supported are \.wav, \.flac"):
        write_audio(tmp_path / name, np.zeros(5), 22050)
    with pytest.raises(FastglowError, match="cannot write audio as 'mp3'"):
        write_audio(io.BytesIO(), np.zeros(5), 22050, format="mp3")
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
    """A stream that cannot seek and takes at most 1000 bytes at a time."""

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
