import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.errors import FastglowError
from fastglow.train.clips import trim_silence
from fastglow.train.manifest import PreparedDataset
from fastglow.train.prepare import Storage, prepare, split_texts
from fastglow.train.sources import read_sources


def test_caches_hold_the_samples_and_their_mels(prepared, clips):
    dataset = PreparedDataset.open(prepared)
    items = [item for split in dataset.items.values() for item in split]
    assert len(items) == 8
    assert {split: len(members) for split, members in dataset.items.items()} == {"train": 7, "validation": 1}
    for item in items:
        recorded, _ = read_audio(clips / "wavs" / f"{item.id}.ogg")
        samples = dataset.samples(item)
        assert len(samples) == item.samples == len(recorded)
        assert np.abs(samples / 32768 - recorded).max() <= 1 / 32768
        expected = MelSpectrogram()(torch.from_numpy(samples / np.float32(32768))[None])[0].numpy()
        assert dataset.mel(item).shape == (80, item.frames)
        np.testing.assert_array_equal(dataset.mel(item), expected)


def test_another_sampling_rate_is_resampled(tmp_path, clips):
    with pytest.warns(UserWarning, match="resampling audio from 22050 Hz to 16000 Hz"):
        report = prepare(clips, tmp_path, MelConfig(16000, hop_length=200), progress=False, workers=1)
    original = {item.id: item for items in PreparedDataset.open(tmp_path).items.values() for item in items}
    for name, item in original.items():
        seconds = soundfile.info(clips / "wavs" / f"{name}.ogg").duration
        assert item.samples == pytest.approx(seconds * 16000, abs=2)
    assert report.hours == pytest.approx(sum(item.samples for item in original.values()) / 16000 / 3600)


@pytest.fixture
def damaged(tmp_path, clips):
    """The clips as a filelist, with one bad line of every kind."""
    folder = tmp_path / "source"
    shutil.copytree(clips / "wavs", folder / "sub")
    lines = [line.split("|") for line in (clips / "metadata.csv").read_text().splitlines()]
    entries = [f"sub/{name}.ogg|{text}" for name, text, _ in lines]
    rate = 22050
    tone = 0.1 * np.sin(np.arange(rate) / 20)
    soundfile.write(folder / "short.wav", tone[:100], rate)
    soundfile.write(folder / "long.wav", np.tile(tone, 21), rate)
    soundfile.write(folder / "silent.wav", np.zeros(rate), rate)
    soundfile.write(folder / "nan.wav", np.full(rate, np.nan, np.float32), rate, subtype="FLOAT")
    soundfile.write(folder / "textless.wav", tone, rate)
    (folder / "garbage.wav").write_bytes(b"RIFF nothing of the kind")
    bad = ["short", "long", "silent", "nan", "garbage", "missing"]
    entries += [f"{name}.wav|Some words." for name in bad] + ["textless.wav|"]
    filelist = folder / "list.txt"
    filelist.write_text("\n".join(entries) + "\n\n")
    return filelist, [*bad, "textless"]


def test_bad_items_are_listed_with_reasons_and_left_out(damaged, tmp_path):
    filelist, bad = damaged
    report = prepare(filelist, tmp_path / "out", progress=False, workers=1)
    reasons = dict(report.rejected)
    assert list(reasons) == bad
    for name, pattern in {
        "short": "lasts 0.00 s",
        "long": "lasts 21.00 s",
        "silent": "silent throughout",
        "nan": "NaN",
        "garbage": "cannot be read",
        "missing": "no such audio file",
        "textless": "nothing to speak",
    }.items():
        assert pattern in reasons[name]
        assert "\n" not in reasons[name]
    assert sum(len(items) for items in PreparedDataset.open(tmp_path / "out").items.values()) == 8
    recorded = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [entry["item"] for entry in recorded["rejected"]] == bad
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_on_bad_stop_names_the_first(damaged, tmp_path):
    filelist, _ = damaged
    with pytest.raises(FastglowError, match=r"^short: .*lasts 0.00 s"):
        prepare(filelist, tmp_path / "out", on_bad="stop", progress=False, workers=1)
    with pytest.raises(FastglowError, match="dataset.json is missing: run `fastglow prepare"):
        PreparedDataset.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda d: d / "absent", "does not exist"),
        (lambda d: d, "holds no metadata.csv"),
        (lambda d: _write(d / "list.txt", "a.wav without a bar\n"), "line 1 has no name"),
        (lambda d: _write(d / "list.txt", "|words\n"), "line 1 has no name"),
        (lambda d: _write(d / "list.txt", "a.wav|words|0\n"), "line 1 has 3 columns"),
        (lambda d: _write(d / "metadata.csv", "../a|words\n").parent, "names ../a: write the plain name"),
        (lambda d: _write(d / "list.txt", "a.wav|caf\xe9\n", "latin-1"), "cannot be read as UTF-8"),
        (lambda d: _write(d / "list.txt", "a.wav|x\na.wav|y\n"), "line 2 names a.wav a second time"),
        (lambda d: _write(d / "list.txt", "\n"), "holds no lines"),
        (lambda d: _write(d / "list.txt", "a.wav|x\n"), "none of the 1 items"),
    ],
)
def test_errors_are_one_line(tmp_path, make, pattern):
    with pytest.raises(FastglowError, match=pattern) as raised:
        prepare(make(tmp_path), tmp_path / "out", progress=False, workers=1)
    assert "\n" not in str(raised.value)


def _write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("cleaners", [["latin_cleaners"], ["english_cleaners", "nope"], [""]])
def test_an_unknown_cleaner_leaves_a_prepared_folder_alone(clips, tmp_path, cleaners):
    (tmp_path / "dataset.json").write_text("of an earlier call")
    with pytest.raises(FastglowError, match="^unknown cleaner"):
        prepare(clips, tmp_path, cleaners=cleaners, progress=False, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"storage": Storage(shards=0)}, "shards=0 must be from 1 to 256"),
        ({"storage": Storage(shards=257)}, "shards=257"),
        ({"storage": Storage(shards=3, only=[1, 3])}, "shard=3 must be from 0 to 2: pass --shards"),
        ({"storage": Storage(only=[-1])}, "shard=-1"),
        ({"storage": Storage(mel_dtype="bfloat16")}, "mel_dtype=bfloat16 must be one of float32, float16"),
        ({"n_validation": -4}, "n_validation=-4"),
        ({"trim_db": -10.0}, "trim_db=-10.0"),
        ({"trim_db": float("nan")}, "trim_db=nan"),
        ({"min_seconds": float("nan")}, "min_seconds=nan .* max_seconds=20.0"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "min_seconds=3.0 .* max_seconds=2.0"),
    ],
)
def test_bad_options_leave_a_prepared_folder_alone(clips, tmp_path, option, message):
    description = _write(tmp_path / "dataset.json", "before")
    with pytest.raises(FastglowError, match=message):
        prepare(clips, tmp_path, progress=False, **option)
    assert description.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_lj_layout_takes_the_last_column_and_a_filelist_the_second(tmp_path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_text("a|raw 5|normalised five\n")
    (source,) = read_sources(tmp_path)
    assert (source.id, source.text, source.path) == ("a", "normalised five", tmp_path / "wavs" / "a.wav")
    filelist = _write(tmp_path / "list.txt", "x/y.flac|words\n")
    (source,) = read_sources(filelist)
    assert (source.id, source.text, source.path) == ("x_y", "words", tmp_path / "x" / "y.flac")


def test_takes_of_a_sentence_are_held_out_together_and_stay_held_out():
    texts = [f"sentence {i}" for i in range(50)]
    held_out = split_texts(texts * 3, 5)
    assert len(held_out) == 5
    assert split_texts(reversed(texts), 5) == held_out
    assert len(held_out & split_texts([*texts, "one more"], 5)) >= 4


def test_trim_keeps_the_loud_part_and_a_margin():
    tone = np.sin(np.arange(5120) / 10).astype(np.float32)
    audio = np.concatenate([np.zeros(10240, np.float32), tone, 1e-4 * tone, np.zeros(7000, np.float32)])
    trimmed = trim_silence(audio, 40, keep=500)
    np.testing.assert_array_equal(trimmed, audio[10240 - 500 : 10240 + 5120 + 500])
    np.testing.assert_array_equal(trim_silence(audio, 100, keep=0), audio[10240 : 10240 + 2 * 5120])
    short = np.ones(10, np.float32)
    assert trim_silence(short, 40, keep=0) is short


def test_a_separate_data_set_to_validate(clips, tmp_path):
    lines = [line.split("|") for line in (clips / "metadata.csv").read_text().splitlines()]
    entries = [f"{clips}/wavs/{name}.ogg|{text}\n" for name, text, _ in lines]
    everything = _write(tmp_path / "all.txt", "".join(entries))
    held_out = _write(tmp_path / "held_out.txt", "".join(entries[2:4]))
    report = prepare(everything, tmp_path / "out", validation=held_out, progress=False, workers=1)
    found = {split: [item.text for item in items] for split, items in report.dataset.items.items()}
    assert found["validation"] == [text for _, text, _ in lines[2:4]]
    assert found["train"] == [text for _, text, _ in lines[:2] + lines[4:]]


def test_excluded_clips_move_no_other_between_the_splits(prepared, clips, tmp_path):
    before = PreparedDataset.open(prepared).items
    (held_out,), (first, *_) = before["validation"], before["train"]
    exclude = _write(tmp_path / "exclude.txt", f"# misread\n\n{first.id}|another name\n{held_out.id}.ogg\n")
    report = prepare(clips, tmp_path / "out", exclude=exclude, progress=False, workers=1)
    assert dict(report.rejected) == {first.id: "excluded: another name", held_out.id: "excluded"}
    found = PreparedDataset.open(tmp_path / "out").items
    assert {split: list(items) for split, items in found.items()} == {
        "train": list(before["train"][1:]),
        "validation": [],
    }


def test_a_clip_to_exclude_that_there_is_not_is_refused(clips, tmp_path):
    exclude = _write(tmp_path / "exclude.txt", "# a list\narctic_zzzz|misread\n")
    out = tmp_path / "out"
    out.mkdir()
    _write(out / "dataset.json", "before")
    with pytest.raises(FastglowError, match=r"exclude.txt line 2 names arctic_zzzz, which the data set has not"):
        prepare(clips, out, exclude=exclude, progress=False, workers=1)
    assert [path.name for path in out.iterdir()] == ["dataset.json"]
