"""MP3 without the number of its frames, as streams are, is read in full."""

import io

import numpy as np
import pytest
import soundfile

from fastglow.audio import read_audio
from fastglow.audio.mp3 import with_frame_count

RATES = [8000, 16000, 22050, 32000, 44100, 48000]
ID3 = b"ID3\4\0\0" + bytes([0, 0, 3, 5]) + bytes(3 * 128 + 5)


def stream(rate, channels=1, mode="VARIABLE", seconds=3):
    """Loud, then quiet, so that the first frames are much larger than most; without its first frame, which counts."""
    audio = 0.2 * np.random.default_rng(5).standard_normal((seconds * rate, channels))
    audio[rate:] *= 1e-3
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    data = file.getvalue()
    return data[data.index(data[:2], 4) :], audio.mean(1)


@pytest.fixture
def read(tmp_path):
    def read(data):
        (tmp_path / "clip.mp3").write_bytes(data)
        return read_audio(tmp_path / "clip.mp3")[0]

    return read


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_all_frames_are_read(read, rate, channels, mode):
    data, audio = stream(rate, channels, mode)
    back = read(data)
    assert len(audio) <= len(back) <= len(audio) + 4 * 1152
    lag = int(np.correlate(back[: rate // 2 + 3000], audio[: rate // 2], "valid").argmax())
    middle = slice(1000, rate)
    error = back[middle.start + lag : middle.stop + lag] - audio[middle]
    assert 0 < lag < 2000 and np.sqrt(np.mean(error**2)) < 0.7 * np.sqrt(np.mean(audio[middle] ** 2))


def test_tags_are_no_frames(read):
    data, _ = stream(22050)
    expected = read(data)
    for tagged in (ID3 + data, data + b"TAG" + bytes(125), data + bytes(300), ID3 + data + b"TAG" + bytes(125)):
        np.testing.assert_array_equal(read(tagged), expected)


def test_an_incomplete_last_frame_is_left_out(read):
    data, _ = stream(22050)
    whole = read(data)
    sizes = [len(read(data[: len(data) - cut])) for cut in (1, 2, 30)]
    assert sizes == [len(whole) - 576] * 3
    np.testing.assert_array_equal(read(data[:-1]), whole[: sizes[0]])


def test_other_files_are_left_alone(tmp_path):
    data, _ = stream(22050)
    for name, content in {
        "empty": b"",
        "short": data[:3],
        "text": b"text" * 9,
        "cut": data[:50],
        "gap": data[:-200] + b"junk" + data,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert with_frame_count(tmp_path / name) is None, name
    soundfile.write(tmp_path / "counted", np.zeros(9000), 22050, format="MP3")
    assert with_frame_count(tmp_path / "counted") is None
