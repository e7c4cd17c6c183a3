"""Audio files that are shorter than their headers claim, and files of unknown length."""

import io
import struct

import numpy as np
import pytest
import soundfile

from fastglow.audio import read_audio
from fastglow.errors import FastglowError

RATE = 16000
# (libsndfile's format, subtype) whose header or pages say where the audio ends.
CLAIMING = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("AU", "ULAW"),
    ("W64", "PCM_16"),
    ("W64", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def noise(n=RATE, channels=1):
    return 0.2 * np.random.default_rng(5).standard_normal((n, channels))


def encoded(format, subtype, audio=None, endian="FILE"):
    file = io.BytesIO()
    soundfile.write(file, noise() if audio is None else audio, RATE, subtype, endian, format)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """read_audio of bytes."""

    def read(data):
        (tmp_path / "clip").write_bytes(data)
        return read_audio(tmp_path / "clip")[0]

    return read


@pytest.mark.parametrize(("format", "subtype"), CLAIMING)
def test_a_file_cut_short_is_named(read, format, subtype):
    data = encoded(format, subtype)
    assert len(read(data)) == len(soundfile.read(io.BytesIO(data))[0])
    for length in (len(data) - 1, len(data) - 1000, len(data) // 2, len(data) // 3):
        with pytest.raises(FastglowError, match="clip: (is cut short|cannot be read as audio)") as caught:
            read(data[:length])
        assert "\n" not in str(caught.value)


def test_the_error_has_the_declared_and_the_present_size(read):
    data = encoded("WAV", "PCM_16")
    with pytest.raises(
        FastglowError, match=r"declares 32000 bytes of audio, the file has 31999; copy or record it again$"
    ):
        read(data[:-1])
    with pytest.raises(FastglowError, match="declares 32000 bytes of audio, the file has 0"):
        read(data[: data.index(b"data") + 8])
    stereo = encoded("WAV", "PCM_16", noise(100, 2), "BIG")
    assert stereo.startswith(b"RIFX")
    with pytest.raises(FastglowError, match="declares 400 bytes of audio, the file has 397"):
        read(stereo[:-3])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
@pytest.mark.parametrize("riff_size", ["as the data's", 0, 0xFFFFFFFF])
@pytest.mark.parametrize("chunk_before", [b"", b"LIST" + struct.pack("<I", 3) + b"abc\0"])
def test_a_wav_written_to_a_pipe_is_read_to_its_end(read, size, riff_size, chunk_before):
    data = encoded("WAV", "PCM_16")
    start = data.index(b"data")
    riff = min(size + start + 8, 0xFFFFFFFF) if riff_size == "as the data's" else riff_size
    head = b"RIFF" + struct.pack("<I", riff) + data[8:start] + chunk_before
    streamed = head + b"data" + struct.pack("<I", size) + data[start + 8 :]
    np.testing.assert_array_equal(read(streamed), read(data))


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1])
def test_an_rf64_written_to_a_pipe_is_read_to_its_end(read, size):
    data = encoded("RF64", "PCM_16")
    start = data.index(b"ds64") + 8
    streamed = data[: start + 8] + struct.pack("<Q", size) + struct.pack("<Q", 0) + data[start + 24 :]
    np.testing.assert_array_equal(read(streamed), read(data))


@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
def test_an_au_file_written_to_a_pipe_is_read_to_its_end(read, endian):
    data = encoded("AU", "PCM_16", endian=endian)
    with pytest.raises(FastglowError, match="declares 32000 bytes of audio, the file has 31000"):
        read(data[:-1000])
    np.testing.assert_array_equal(read(data[:8] + b"\xff" * 4 + data[12:]), read(data))


@pytest.mark.parametrize("seconds", [0.1, 1, 9])  # around the size of the blocks that are read
def test_a_flac_written_to_a_pipe_is_read_to_its_end(read, seconds):
    data = bytearray(encoded("FLAC", "PCM_16", noise(int(seconds * RATE), 2)))
    whole = read(data)
    data[21] &= 0xF0  # STREAMINFO's 36 bits for the number of samples
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(read(data), whole)
    with pytest.raises(FastglowError, match="cannot be read as audio"):
        read(data[:-500])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extra", [b"", b"LIST\4\0\0\0abcd", b"junk\3\0\0\0abc\0LIST\2\0\0\0ab", b"id3 \0\0\0\0"])
def test_chunks_after_the_audio_are_not_read_as_audio(read, channels, extra):
    data = encoded("WAV", "PCM_16", noise(1000, channels))
    np.testing.assert_array_equal(read(data + extra), read(data))
    with pytest.raises(FastglowError, match="has no audio samples"):
        read(encoded("WAV", "PCM_16", np.zeros((0, channels))) + extra)


@pytest.mark.parametrize("n", [1001, 1003, 999])
def test_an_odd_length_needs_no_padding(read, n):
    data = encoded("WAV", "PCM_U8", noise(n))
    end = data.index(b"data") + 8 + n
    assert len(read(data)) == len(read(data[:end])) == n
    with pytest.raises(FastglowError, match=f"declares {n} bytes of audio, the file has {n - 1}"):
        read(data[: end - 1])


def test_a_partial_frame_in_the_declared_size_is_ignored(read):
    data = bytearray(encoded("WAV", "PCM_16", noise(100, 2)))
    start = data.index(b"data")
    for size in (401, 402, 403):
        data[start + 4 : start + 8] = struct.pack("<I", size)
        assert len(read(data)) == 100
    data[start + 4 : start + 8] = struct.pack("<I", 404)
    with pytest.raises(FastglowError, match="declares 404 bytes of audio, the file has 400"):
        read(data)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(100), b"Ogg"[:1] + b"x" * 40])
def test_data_after_an_ogg_file_is_ignored(read, tail):
    data = encoded("OGG", "VORBIS")
    assert len(read(data + tail)) == RATE


@pytest.mark.parametrize("data", [b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1", b"OggS", b"FORM"])
def test_truncated_headers_are_refused(read, data):
    with pytest.raises(FastglowError, match="clip: cannot be read as audio"):
        read(data)


def test_an_impossible_file_name_is_refused():
    with pytest.raises(FastglowError, match="no such audio file"):
        read_audio("a sentence where a path should be " * 20)


def mp3(mode, tag=b"", n=3 * RATE):
    file = io.BytesIO()
    soundfile.write(file, noise(n), RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return tag + file.getvalue()


ID3 = b"ID3\4\0\0" + bytes([0, 0, 3, 5]) + bytes(3 * 128 + 5)


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("tag", [b"", ID3])
def test_an_mp3_cut_short_is_named(read, mode, tag):
    data = mp3(mode, tag)
    assert len(read(data)) == len(read(data + b"TAG" + bytes(125))) == 3 * RATE
    for length in (len(data) * 9 // 10, len(data) // 2, len(data) // 3):
        with pytest.raises(
            FastglowError, match=r"^\S+/clip: is cut short: its header declares 48000 samples, the file has \d+"
        ):
            read(data[:length])


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_an_mp3_without_a_frame_count_may_end_anywhere(read, mode):
    """Without a frame count, libsndfile's estimate may be far off."""
    data = mp3(mode)
    for name in (b"Xing", b"Info"):
        data = data.replace(name, b"none")
    assert 0 < len(read(data[: len(data) // 2])) < len(read(data))
