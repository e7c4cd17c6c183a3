"""Filelists and metadata.csv in the variants that other systems and programs write."""

import codecs
import json

import numpy as np
import pytest
import soundfile

from fastglow.errors import FastglowError
from fastglow.text import sequence_to_text
from fastglow.train.data import TextMelDataset
from fastglow.train.manifest import PreparedDataset
from fastglow.train.prepare import prepare, read_sources

RATE = 22050


def tone(seconds=0.5, level=0.1):
    return level * np.sin(np.arange(int(seconds * RATE)) / 20)


@pytest.fixture
def lj(tmp_path):
    """Writes an LJ-Speech folder: metadata.csv and empty recordings of the given names; returns the folder."""

    def make(metadata, *names):
        (tmp_path / "lj" / "wavs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lj" / "metadata.csv").write_text(metadata, encoding="utf-8", newline="")
        for name in names:
            (tmp_path / "lj" / "wavs" / name).touch()
        return tmp_path / "lj"

    return make


@pytest.fixture
def filelist(tmp_path):
    """Writes a filelist and empty recordings at the given paths; returns the list's path."""

    def make(text, *paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
        return tmp_path / "list.txt"

    return make


def found(dataset):
    return [(source.id, source.path.name, source.text) for source in read_sources(dataset)]


@pytest.mark.parametrize(
    "line", ["a | Some words. ", " a|Some words.", "a\t|\tSome words.\t", "a | raw | Some words. "]
)
def test_columns_are_stripped(lj, line):
    assert found(lj(f"{line}\n", "a.wav")) == [("a", "a.wav", "Some words.")]


def test_columns_of_a_filelist_are_stripped(filelist):
    sources = found(filelist(" sub/a.wav | One two. \n\tb.wav\t|\tThree.\n", "sub/a.wav", "b.wav"))
    assert sources == [("sub_a", "a.wav", "One two."), ("b", "b.wav", "Three.")]


@pytest.mark.parametrize("line", [" |words", "\t|words", "  |  ", "|"])
def test_a_blank_name_is_refused(filelist, line):
    with pytest.raises(FastglowError, match="line 1 has no name"):
        read_sources(filelist(f"{line}\n"))


@pytest.mark.parametrize("name", ["a.WAV", "a.Wav", "a.FLAC", "a.Ogg", "a.mp3", "a.MP3", "a.opus"])
@pytest.mark.parametrize("written", ["a", "{name}", "{lower}", "{upper}", "wavs/{name}", "wavs\\{lower}", "./wavs/a"])
def test_suffixes_are_case_insensitive_and_optional(lj, name, written):
    written = written.format(name=name, lower=name.lower(), upper="a" + name[1:].upper())
    assert found(lj(f"{written}|words\n", name, "ab.wav", "b.wav")) == [("a", name, "words")]


@pytest.mark.parametrize("written", ["x/y/a.wav", "x/y/a.WAV", "x\\y\\a.wav", "x\\y\\a.Wav", "x/y/a", ".\\x\\y\\a.wav"])
def test_paths_of_a_filelist_may_have_backslashes(filelist, tmp_path, written):
    (source,) = read_sources(filelist(f"{written}|words\n", "x/y/a.WAV", "x/y/b.wav"))
    assert (source.id, source.path) == ("x_y_a", tmp_path / "x" / "y" / "a.WAV")


@pytest.mark.parametrize("name", ["back\\slash.wav", "\\a.wav", "x\\y.WAV"])
def test_a_backslash_in_a_name_is_kept_if_there_is_such_a_file(filelist, name):
    assert found(filelist(f"{name}|words\n", name))[0][1] == name


def test_the_exact_name_takes_precedence(lj):
    assert found(lj("a.wav|x\n", "a.wav", "a.WAV"))[0][1] == "a.wav"
    assert found(lj("a.WAV|x\n"))[0][1] == "a.WAV"
    assert found(lj("a|x\n"))[0][1] == "a.wav"


@pytest.mark.parametrize("name", ["A.wav", "a.b", "a.wav.txt", "aa.wav"])
def test_only_the_suffix_is_case_insensitive(lj, name):
    assert found(lj("a|x\n", name)) == [("a", "a.wav", "x")]
    assert not read_sources(lj("a|x\n"))[0].path.exists()


@pytest.mark.parametrize("name", ["a.1", "LJ001-0001.v2", "v1.5"])
def test_a_full_stop_in_a_name_is_not_a_suffix(lj, name):
    assert found(lj(f"{name}|x\n", f"{name}.wav")) == [(name, f"{name}.wav", "x")]


@pytest.mark.parametrize("names", ["a\na.wav", "a.wav\nwavs/a.WAV", "wavs\\a\na", "a.flac\n a "])
def test_two_spellings_of_one_recording_are_a_duplicate(lj, names):
    first, second = names.split("\n")
    with pytest.raises(FastglowError, match="line 2 names .* a second time, after line 1: every item"):
        read_sources(lj(f"{first}|x\n{second}|y\n", "a.wav"))


@pytest.mark.parametrize("name", ["../a", "/a", "other/a.wav", "..\\a.wav", "wavs/../a", "C:\\data\\a.wav"])
def test_metadata_names_files_in_wavs_only(lj, name):
    with pytest.raises(FastglowError, match="write the plain name of a file in wavs/"):
        read_sources(lj(f"{name}|x\n", "a.wav"))


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_line_feeds_and_carriage_returns_end_a_line(lj, filelist, separator, end):
    text = f"First half{separator}second half."
    assert found(lj(f"a|{text}{end}b|{text}|{text}{end}", "a.wav", "b.wav")) == [
        ("a", "a.wav", text),
        ("b", "b.wav", text),
    ]
    assert found(filelist(f"a.wav|{text}{end}b.wav|{text}{end}")) == [("a", "a.wav", text), ("b", "b.wav", text)]


@pytest.mark.parametrize("cleaners", ["english_cleaners", "basic_cleaners", "english_speech_cleaners"])
def test_texts_with_unicode_separators_survive_the_manifest(tmp_path, filelist, cleaners):
    separators = "\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e"
    lines = [f"clip{i}.wav|before{separator}after\n" for i, separator in enumerate(separators)]
    for i in range(len(separators)):
        soundfile.write(tmp_path / f"clip{i}.wav", tone(), RATE)
    prepare(filelist("".join(lines)), tmp_path / "out", cleaners=[cleaners], n_validation=0, progress=False, workers=1)
    prepared = PreparedDataset.open(tmp_path / "out")
    assert len(prepared.items["train"]) == len(separators)
    assert {sequence_to_text(symbols) for _, symbols, _ in TextMelDataset(prepared, "train", [cleaners])} == {
        "before after"
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["Z\xfcrich", "caf\xe9 \u2013 na\xefve", "\u201cquoted\u201d"])
def test_labels_with_a_byte_order_mark(tmp_path, encoding, text):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_bytes(mark + f"a|{text}\r\nb|{text}".encode(encoding))
    assert found(tmp_path) == [("a", "a.wav", text), ("b", "b.wav", text)]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis", "utf-16-le"])
def test_labels_in_another_encoding_are_refused(tmp_path, encoding):
    text = "\u65e5\u672c" if encoding == "shift-jis" else "caf\xe9"
    (tmp_path / "list.txt").write_bytes(f"a.wav|{text}\n".encode(encoding))
    with pytest.raises(FastglowError, match=r"list.txt cannot be read as UTF-8 text: line 1 .*; save it as UTF-8"):
        read_sources(tmp_path / "list.txt")


def prepared_reasons(tmp_path, clips):
    """The reasons for which `prepare` rejects clips, by name; clips: (samples [N, channels], libsndfile's subtype)."""
    for name, (audio, subtype) in {**clips, "good": (tone(), "PCM_16")}.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE, subtype=subtype)
    (tmp_path / "list.txt").write_text("".join(f"{name}.wav|Some words.\n" for name in [*clips, "good"]))
    report = prepare(tmp_path / "list.txt", tmp_path / "out", progress=False, workers=1)
    return dict(report.rejected)


def test_a_clip_is_silent_if_its_cached_samples_are(tmp_path):
    noise = np.random.default_rng(3).uniform(-1, 1, RATE)
    silent = {
        "zeros": (np.zeros(RATE), "PCM_16"),
        "opposite": (np.stack([tone(1), -tone(1)], 1), "PCM_24"),
        "opposite_float": (np.stack([tone(1), -tone(1) + 1e-6 * noise], 1), "FLOAT"),
        "faint_24_bits": (3e-6 * noise, "PCM_24"),
        "faint_float": (1.4e-5 * noise, "FLOAT"),
        "constant": (np.full(RATE, 0.25), "PCM_16"),
        "eight_bits": (np.full(RATE, -1 / 128), "PCM_U8"),
    }
    spoken = {
        "soft": (4e-5 * noise, "FLOAT"),
        "one_channel": (np.stack([tone(1), 0 * tone(1)], 1), "PCM_16"),
        "nearly_opposite": (np.stack([tone(1), -0.99 * tone(1)], 1), "PCM_24"),
    }
    reasons = prepared_reasons(tmp_path, {**silent, **spoken})
    assert reasons == {name: f"{tmp_path}/{name}.wav is silent throughout" for name in silent}


def test_a_truncated_clip_is_rejected_by_name(tmp_path):
    for name in ("half", "header_only", "a_sample_less", "whole"):
        soundfile.write(tmp_path / f"{name}.wav", tone(), RATE)
    data = (tmp_path / "whole.wav").read_bytes()
    for name, length in {"half": len(data) // 2, "header_only": 44, "a_sample_less": len(data) - 2}.items():
        (tmp_path / f"{name}.wav").write_bytes(data[:length])
    (tmp_path / "piped.wav").write_bytes(data[:4] + b"\xff" * 4 + data[8:40] + b"\xff" * 4 + data[44:])
    names = ["half", "header_only", "a_sample_less", "whole", "piped"]
    (tmp_path / "list.txt").write_text("".join(f"{name}.wav|Words of {name}.\n" for name in names))
    report = prepare(tmp_path / "list.txt", tmp_path / "out", n_validation=0, progress=False, workers=1)
    assert [name for name, _ in report.rejected] == names[:3]
    for name, reason in report.rejected:
        assert f"{name}.wav: is cut short: its header declares 22050 bytes of audio, " in reason
    assert {item.id: item.samples for item in report.dataset.items["train"]} == {"whole": 11025, "piped": 11025}


def test_an_impossible_path_is_rejected(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(), RATE)
    text = "the columns of this line were swapped " * 20
    (tmp_path / "list.txt").write_text(f"good.wav|Words.\n{text}|other.wav\n")
    report = prepare(tmp_path / "list.txt", tmp_path / "out", progress=False, workers=1)
    ((_, reason),) = report.rejected
    assert "no such audio file" in reason


@pytest.mark.parametrize("cleaners", [["english_cleaners"], ["basic_cleaners"], ["basic_cleaners", "english_cleaners"]])
def test_the_cleaners_are_recorded(tmp_path, filelist, cleaners):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    prepare(filelist("a.wav|Words.\n"), tmp_path / "out", cleaners=cleaners, progress=False, workers=1)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["text_cleaners"] == cleaners
    assert PreparedDataset.open(tmp_path / "out").text_cleaners == cleaners


@pytest.mark.parametrize("cleaners", ["english_cleaners", [1], {"a": 1}, 3])
def test_a_damaged_record_of_cleaners_is_refused(tmp_path, filelist, cleaners):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    prepare(filelist("a.wav|Words.\n"), tmp_path / "out", progress=False, workers=1)
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(description | {"text_cleaners": cleaners}))
    with pytest.raises(FastglowError, match="damaged manifest .text_cleaners must be a list of names"):
        PreparedDataset.open(tmp_path / "out")
