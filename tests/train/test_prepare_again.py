"""`fastglow prepare` after an interruption, with changed recordings, and by several processes."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from fastglow.audio import MelConfig
from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.train import clips, making, shard_writer
from fastglow.train.manifest import PreparedDataset
from fastglow.train.prepare import Storage, prepare

from .conftest import ENVIRONMENT, files_of_at_most

RATE = 22050
NAMES = [f"clip{i}" for i in range(6)]


def write_noise(path, seed, length=8001):
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, length).clip(-1, 1), RATE, subtype="PCM_16")


@pytest.fixture
def source(tmp_path):
    """Six recordings and one that cannot be read, amid them."""
    folder = tmp_path / "source"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        write_noise(folder / f"{name}.wav", i)
    (folder / "bad.wav").write_bytes(b"RIFF nothing of the kind")
    write_list(folder, [*NAMES[:3], "bad", *NAMES[3:]])
    return folder


def write_list(folder, names, texts={}):  # noqa: B006
    lines = [f"{name}.wav|{texts.get(name, f'Words of {name}.')}\n" for name in names]
    (folder / "list.txt").write_text("".join(lines))


def run(source, out, **options):
    storage = Storage(**{name: options.pop(name) for name in ("mel_dtype", "shards", "only") if name in options})
    defaults = {"n_validation": 2, "progress": False, "workers": 1, "storage": storage}
    return prepare(source / "list.txt", out, **defaults | options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, data in one.items():
        assert other[name] == data, name


class Killed(BaseException):
    pass


def killing(monkeypatch, at, part=0.5):
    """Ends the writing of a shard as SIGKILL does: the n-th write is done in part only, or a file is not renamed."""
    steps = iter(range(10**6))
    write, place = shard_writer._write, shard_writer.place

    def killed_write(file, data):
        if next(steps) == at:
            write(file, data[: int(part * len(data))])
            raise Killed
        write(file, data)

    def killed_place(temporary, path):
        if next(steps) == at:
            raise Killed
        place(temporary, path)

    monkeypatch.setattr(shard_writer, "_write", killed_write)
    monkeypatch.setattr(shard_writer, "place", killed_place)


# Writes of a shard: the head, three for each of six clips, one for the bad one, the end; then three files are renamed.
STEPS = 1 + 3 * 6 + 1 + 1 + 3


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_it_goes_on_after_a_kill_at_any_step(source, tmp_path, monkeypatch, part):
    whole = run(source, tmp_path / "whole")
    assert whole.made == 7
    expected = contents(tmp_path / "whole")
    made = []
    for at in range(STEPS + 1):
        out = tmp_path / f"out{at}"
        with monkeypatch.context() as patch:
            killing(patch, at, part)
            if at == STEPS:
                run(source, out)
            else:
                with pytest.raises(Killed):
                    run(source, out)
                with pytest.raises(FastglowError, match="dataset.json is missing"):
                    PreparedDataset.open(out)
        made.append(run(source, out).made)
        same(expected, contents(out))
    # Whole clips by the number of whole writes: each but the bad one has samples, log-mel and line.
    clips = [0] * 4 + [1] * 3 + [2] * 3 + [3] + [4] * 3 + [5] * 3 + [6] * 3 + [7] * 6
    written = [min(at + (part == 1.0), STEPS) for at in range(STEPS + 1)]
    assert made == [7 - clips[n] for n in written]


def test_after_a_power_cut_the_data_may_be_missing_behind_a_line(source, tmp_path, monkeypatch):
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killing(patch, STEPS - 3)  # all is written
        run(source, tmp_path / "out")
    file = tmp_path / "out" / ".shard-00000-of-00001.mel.partial"
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.seek(size // 2)
        stream.write(bytes(size - size // 2))
    assert 3 <= run(source, tmp_path / "out").made <= 4
    same(contents(tmp_path / "whole"), contents(tmp_path / "out"))


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 300, b"12345678 {\n", b"[" * 99999 + b"\n"], ids=["none", "zeros", "checksum", "deep"]
)
def test_a_damaged_journal_costs_what_follows(source, tmp_path, monkeypatch, damage):
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killing(patch, STEPS - 3)
        run(source, tmp_path / "out")
    file = tmp_path / "out" / ".shard-00000-of-00001.clips.partial"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + damage + b"".join(lines[3:]))
    assert run(source, tmp_path / "out").made == (5 if damage else 0)
    same(contents(tmp_path / "whole"), contents(tmp_path / "out"))


KILLED = """
import os, signal, sys
from fastglow.train import shard_writer
from fastglow.cli import main
left, write = [int(sys.argv[1])], shard_writer._write
def killed(file, data):
    left[0] -= 1
    if left[0] == 0:
        write(file, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, data)
shard_writer._write = killed
main(sys.argv[2:])
"""


def test_sigkill(source, tmp_path):
    arguments = ["prepare", str(source / "list.txt"), "--validation", "2", "--workers", "2", "--out"]
    command = [sys.executable, "-c", KILLED, "18", *arguments, str(tmp_path / "out")]
    killed = subprocess.run(command, env=ENVIRONMENT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    run(source, tmp_path / "whole")
    assert 0 < run(source, tmp_path / "out").made < 7
    same(contents(tmp_path / "whole"), contents(tmp_path / "out"))


def test_ctrl_c_says_how_to_continue(source, tmp_path, monkeypatch, capsys):
    calls = iter(range(100))

    class Interrupted(making.ClipMaker):
        def __call__(self, clip):
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(clip)

    arguments = ["prepare", str(source / "list.txt"), "--out", str(tmp_path / "out"), "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(making, "ClipMaker", Interrupted)
        assert main(arguments) == 130
    assert "fastglow: interrupted: run the same command to continue\n" in capsys.readouterr().err
    assert main(arguments) == 0
    assert len(PreparedDataset.open(tmp_path / "out").items["train"]) == 6 - 1


def test_a_full_disk(source, tmp_path):
    run(source, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for n_bytes in (10, 5000, 30_000, 50_000):
        with files_of_at_most(n_bytes), pytest.raises(FastglowError) as caught:
            run(source, tmp_path / "out")
        assert str(caught.value) == (
            f"cannot write to {tmp_path / 'out'} (File too large): mend that and run the same command to continue, or "
            "pass another --out"
        )
    assert run(source, tmp_path / "out").made < 7
    same(expected, contents(tmp_path / "out"))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_complete_folder_is_left_alone(source, tmp_path, capsys, shards):
    out = tmp_path / "out"
    run(source, out, shards=shards)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for change in (lambda: None, lambda: [os.utime(path) for path in source.glob("*.wav")]):  # read, and found equal
        change()
        report = run(source, out)
        assert (report.made, report.changes, report.missing, report.shards) == (0, [], [], shards)
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert main(["prepare", str(source / "list.txt"), "--validation", "2", "--out", str(out)]) == 0
    assert f"{out}: up to date, 5 items to train on, 1 to validate" in capsys.readouterr().out


def test_what_has_changed_is_noticed_and_made_again(source, tmp_path, capsys):
    out = tmp_path / "out"
    run(source, out, shards=3)
    write_noise(source / "clip0.wav", 100)  # as long as before
    modified = (source / "clip3.wav").stat().st_mtime_ns
    write_noise(source / "clip3.wav", 103)
    os.utime(source / "clip3.wav", ns=(modified, modified))  # and, by its own account, as old
    (source / "clip1.wav").unlink()
    write_noise(source / "bad.wav", 101)
    write_noise(source / "new.wav", 102)
    write_list(source, ["new", "bad", *NAMES[:4], "clip5"], {"clip2": "Other words."})
    arguments = ["prepare", str(source / "list.txt"), "--validation", "2", "--shards", "3", "--out"]
    assert main([*arguments, str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line for line in lines if line.startswith("changed")) == [
        "changed bad: its recording has changed",
        "changed clip0: its recording has changed",
        "changed clip1: its recording has changed",
        "changed clip2: its text has changed",
        "changed clip3: its recording has changed",
        "changed clip4: is not in the list any more",
        "changed new: is new",
    ]
    assert any(line.startswith("left out clip1: ") and "no such audio file" in line for line in lines)
    assert main([*arguments, str(tmp_path / "anew")]) == 0
    same(contents(tmp_path / "anew"), contents(out))


def test_a_recording_that_could_not_be_read_is_tried_again(source, tmp_path, monkeypatch):
    path, out = source / "clip3.wav", tmp_path / "out"
    digest, read = clips._digest, clips.read_audio

    def refusing(file, *rate):
        if file == path:
            raise FastglowError(f"{file}: cannot be read as audio: Permission denied")
        return read(file, *rate)

    with monkeypatch.context() as patch:
        patch.setattr(clips, "read_audio", refusing)
        patch.setattr(clips, "_digest", lambda file: "" if file == path else digest(file))
        assert [name for name, _ in run(source, out).rejected] == ["bad", "clip3"]
    assert [name for name, _ in run(source, out).rejected] == ["bad"]
    run(source, tmp_path / "whole")
    same(contents(tmp_path / "whole"), contents(out))


def test_only_what_has_changed_is_read(source, tmp_path, monkeypatch):
    out, made = tmp_path / "out", []
    run(source, out)

    class Noting(making.ClipMaker):
        def __call__(self, clip):
            made.append(clip.id)
            return super().__call__(clip)

    monkeypatch.setattr(making, "ClipMaker", Noting)
    write_noise(source / "clip4.wav", 100)
    (source / "clip0.wav").rename(source / "renamed.wav")
    write_list(source, ["renamed", *NAMES[1:]])
    report = run(source, out)
    assert sorted(made) == ["clip4", "renamed"] and report.made == 2
    assert dict(report.changes).keys() == {"clip4", "renamed", "clip0", "bad"}
    run(source, out, shards=2)
    assert len(made) == 2 and len(PreparedDataset.open(out).description["shards"]) == 2
    shutil.move(source, tmp_path / "moved")
    assert run(tmp_path / "moved", out).made == 0
    assert len(made) == 2


def test_the_old_data_set_stays_until_the_new_one_is_complete(source, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    old = run(source, out).dataset
    before = {item.id: old.samples(item).copy() for item in old.items["train"]}
    write_noise(source / "clip3.wav", 100)
    for _ in range(4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killing(patch, 5)
            run(source, out)
        found = PreparedDataset.open(out)
        assert found.description == old.description
        assert all(np.array_equal(found.samples(item), before[item.id]) for item in found.items["train"])
    sent = pickle.dumps(old)
    new = run(source, out).dataset
    changed = [item.id for item in new.items["train"] if not np.array_equal(new.samples(item), before[item.id])]
    assert changed == ["clip3"] and "clip3" in before
    assert all(np.array_equal(old.samples(item), before[item.id]) for item in old.items["train"]), (
        "its files are mapped"
    )
    with pytest.raises(FastglowError, match="was prepared again while it was in use: start again"):
        pickle.loads(sent)
    with caplog.at_level(logging.INFO):
        run(source, out, audio=MelConfig(hop_length=200), mel_dtype="float16")
    assert f"{out} was prepared with hop_length=256, mel_dtype=float32: all clips are made again" in caplog.messages
    assert len(list(out.iterdir())) == 5, "nothing of the old one is left"


@pytest.mark.parametrize("kind", ["pcm", "mel", "clips", "index", "json"])
@pytest.mark.parametrize("how", ["byte", "cut", "gone"])
def test_damage_is_repaired(source, tmp_path, kind, how, caplog):
    out = tmp_path / "out"
    run(source, out, shards=1)
    expected = contents(out)
    (file,) = out.glob(f"*.{kind}")
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    report = run(source, out, shards=1)
    same(expected, contents(out))
    if kind in ("pcm", "mel"):
        assert report.made == {"byte": 1, "cut": 3, "gone": 6}[how]
        assert {change for _, change in report.changes} == {"its samples or log-mel are damaged"}


def test_a_bad_clip_stops_it_also_if_it_was_skipped_before(source, tmp_path):
    assert [name for name, _ in run(source, tmp_path / "out").rejected] == ["bad"]
    for out in ("out", "another"):
        with pytest.raises(FastglowError, match="^bad: .* cannot be read.*pass --on-bad skip"):
            run(source, tmp_path / out, on_bad="stop")
    assert run(source, tmp_path / "another").made == 4, "three were made before the bad one"
    assert PreparedDataset.open(tmp_path / "out").items["train"]


def test_several_processes_fill_one_folder(source, tmp_path):
    run(source, tmp_path / "whole", shards=4)
    arguments = ["prepare", str(source / "list.txt"), "--validation", "2", "--shards", "4", "--workers", "1"]
    command = [sys.executable, "-m", "fastglow", *arguments, "--out", str(tmp_path / "out")]
    processes = [
        subprocess.Popen([*command, *(word for i in shards for word in ("--shard", i))], env=ENVIRONMENT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for shards in (["0", "2"], ["1", "3"])
    ]  # fmt: skip
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert any("5 items to train on, 1 to validate" in out for out, _ in outputs)
    same(contents(tmp_path / "whole"), contents(tmp_path / "out"))


def test_shards_of_other_options_or_lists_do_not_count(source, tmp_path):
    out = tmp_path / "out"
    assert run(source, out, shards=3, only=[0]).missing == [1, 2]
    assert run(source, out, shards=3, only=[1], trim_db=50.0).missing == [0, 2]
    assert run(source, out, shards=3, only=[1]).missing == [2]
    with pytest.raises(FastglowError, match="dataset.json is missing"):
        PreparedDataset.open(out)
    report = run(source, out, shards=3, only=[2])
    assert report.missing == [] and report.dataset is not None
    assert {path.name[:20] for path in out.glob("shard-*")} == {f"shard-0000{i}-of-00003" for i in range(3)}
    run(source, tmp_path / "whole", shards=3)
    same(contents(tmp_path / "whole"), contents(out))


def test_several_that_finish_at_once_make_the_same(source, tmp_path):
    out = tmp_path / "out"
    run(source, out, shards=2)
    expected = contents(out)
    for _ in range(5):
        for path in (out / "dataset.json", *out.glob("*.index")):
            path.unlink()
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(lambda _: run(source, out, shards=2), range(4)))
        assert all(report.dataset is not None and report.made == 0 for report in reports)
        same(expected, contents(out))


def test_a_folder_of_the_older_format_is_prepared_anew(source, tmp_path, caplog):
    out = tmp_path / "out"
    (out / "mels").mkdir(parents=True)
    (out / "dataset.json").write_text(json.dumps({"source": "x", "audio": {}}))
    with caplog.at_level(logging.INFO):
        assert run(source, out).made == 7
    assert f"{out / 'dataset.json'} is damaged or of another version: all clips are made again" in caplog.messages
    assert (out / "mels").is_dir(), "what it did not make it does not remove"
