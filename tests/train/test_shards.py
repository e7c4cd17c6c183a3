"""What is in a shard, and that processes share it."""

import json
import multiprocessing
import pickle
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fastglow import FastglowError
from fastglow.audio import MelConfig, MelSpectrogram
from fastglow.train.manifest import Item, PreparedDataset
from fastglow.train.prepare import Storage, prepare
from fastglow.train.publishing import About, Clip, write_dataset
from fastglow.train.shard_writer import ShardWriter
from fastglow.train.shards import VERSION, Entry, Head

from .conftest import ENVIRONMENT

RATE = 22050
TEXTS = ["Words.", "Ein Wort: caf\xe9.", "words \u2028 between others", "one more", "the last"]
IDS = ["a", "\xe9t\xe9", "clip \U0001f600", "\u4e2d\u6587", "b.c"]
LENGTHS = [11025, 8001, 6999, 22051, 7937]  # odd ones


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A filelist of five recordings of noise of odd lengths, with names and texts of many alphabets."""
    folder = tmp_path_factory.mktemp("recordings")
    random = np.random.default_rng(1)
    for name, length in zip(IDS, LENGTHS, strict=True):
        soundfile.write(folder / f"{name}.wav", random.normal(0, 0.1, length).clip(-1, 1), RATE, subtype="PCM_16")
    lines = [f"{name}.wav|{text}\n" for name, text in zip(IDS, TEXTS, strict=True)]
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("mel_dtype", ["float32", "float16"])
def test_what_is_stored_is_what_was_recorded(recordings, tmp_path, shards, mel_dtype):
    """Shards without clips too: there are five for seven shards."""
    report = prepare(
        recordings / "list.txt", tmp_path, n_validation=1, storage=Storage(mel_dtype, shards),
        progress=False, workers=2,
    )  # fmt: skip
    dataset = PreparedDataset.open(tmp_path)
    assert len(dataset.description["shards"]) == shards == report.shards
    items = sorted(
        (item for members in dataset.items.values() for item in members), key=lambda item: IDS.index(item.id)
    )
    assert [(item.id, item.text, item.samples) for item in items] == list(zip(IDS, TEXTS, LENGTHS, strict=True))
    assert [item.id for item in dataset.items["train"]] == [
        name for name in IDS if name != dataset.items["validation"][0].id
    ]
    for item in items:
        recorded, _ = soundfile.read(recordings / f"{item.id}.wav", dtype="int16")
        samples, mel = dataset.samples(item), dataset.mel(item)
        assert (samples.dtype, mel.dtype) == (np.int16, np.dtype(mel_dtype))
        np.testing.assert_array_equal(samples, recorded)
        expected = MelSpectrogram()(torch.from_numpy(recorded / np.float32(32768))[None])[0].numpy()
        assert mel.shape == expected.shape == (80, item.frames)
        if mel_dtype == "float32":
            np.testing.assert_array_equal(mel, expected)
        else:
            assert (np.abs(mel.astype(np.float64) - expected) <= 2.0**-11 * np.abs(expected)).all()
        for array in (samples, mel):
            assert not array.flags.writeable and array.flags.c_contiguous and not array.flags.owndata
            assert array.ctypes.data % 64 == 0
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_the_files_are_as_documented(recordings, tmp_path):
    """Read by nothing of the package."""
    prepare(recordings / "list.txt", tmp_path, n_validation=1, storage=Storage(shards=2), progress=False)
    description = json.loads((tmp_path / "dataset.json").read_text())
    index = (tmp_path / description["index"]).read_bytes()
    magic, version, crc, n_train, n_validation, n_strings = struct.unpack_from("<8sIIQQQ", index)
    assert (magic, version, n_train, n_validation) == (b"fastglow", 2, 4, 1)
    assert crc == zlib.crc32(index[16:]) and len(index) == 64 + 5 * 64 + n_strings
    found = {}
    for i in range(5):
        strings, id_bytes, text_bytes, samples, frames, pcm, mel, shard, pcm_crc, mel_crc, unused = struct.unpack_from(
            "<QIIqqqqIIII", index, 64 + 64 * i
        )
        name = index[384 + strings :][:id_bytes].decode()
        text = index[384 + strings + id_bytes :][:text_bytes].decode()
        base = tmp_path / description["shards"][shard]["name"]
        data = Path(f"{base}.pcm").read_bytes()
        assert zlib.crc32(data[pcm : pcm - (-2 * samples // 64) * 64]) == pcm_crc
        data_of_mel = Path(f"{base}.mel").read_bytes()
        assert zlib.crc32(data_of_mel[mel : mel - (-320 * frames // 64) * 64]) == mel_crc
        found[name] = text, np.frombuffer(data[pcm : pcm + 2 * samples], "<i2")
    assert {name: text for name, (text, _) in found.items()} == dict(zip(IDS, TEXTS, strict=True))
    for name, (_, samples) in found.items():
        np.testing.assert_array_equal(samples, soundfile.read(recordings / f"{name}.wav", dtype="int16")[0])
    for shard in description["shards"]:
        head, *entries, end = (tmp_path / f"{shard['name']}.clips").read_bytes().splitlines()
        for line in (head, *entries, end):
            assert int(line[:8], 16) == zlib.crc32(line[9:])
        assert json.loads(end[9:]) == {"end": len(entries), "pcm": shard["pcm"], "mel": shard["mel"]}
        assert all(json.loads(line[9:])[0] in IDS for line in entries)


def test_the_clips_of_a_shard_do_not_depend_on_others(recordings, tmp_path):
    def shards(names):
        folder = tmp_path / str(len(names))
        filelist = recordings / f"{len(names)}.txt"
        filelist.write_text("".join(f"{name}.wav|{text}\n" for name, text in names), encoding="utf-8")
        prepare(filelist, folder, n_validation=0, storage=Storage(shards=3), progress=False, workers=1)
        return {
            json.loads(line[9:])[0]: path.name[:20]
            for path in folder.glob("*.clips")
            for line in path.read_bytes().splitlines()[1:-1]
        }

    every = list(zip(IDS, TEXTS, strict=True))
    assert shards(every[::2]).items() <= shards(every).items()


def test_a_data_set_may_lack_samples_or_mels(tmp_path):
    audio = MelConfig(n_mel_channels=3)
    random = np.random.default_rng(0)
    samples = random.integers(-9, 9, 11).astype(np.int16)
    mel = random.normal(size=(3, 5)).astype(np.float32)
    clips = [
        Clip(Item("both", "x", 11, 5), samples, mel),
        Clip(Item("samples", "y", 11, 5), samples),
        Clip(Item("mel", "z", 11, 5), mel=mel),
    ]
    dataset = write_dataset(tmp_path, About("test", audio), {"validation": iter(clips)}, n_shards=2)
    both, only_samples, only_mel = dataset.items["validation"]
    for item in (both, only_samples):
        np.testing.assert_array_equal(dataset.samples(item), samples)
    for item in (both, only_mel):
        np.testing.assert_array_equal(dataset.mel(item), mel)
    with pytest.raises(FastglowError, match="has no samples of mel"):
        dataset.samples(only_mel)
    with pytest.raises(FastglowError, match="has no log-mel of samples"):
        dataset.mel(only_samples)
    with pytest.raises(ValueError, match=r"a: mel \[4, 5\] must be \[3, 5\]"):
        write_dataset(tmp_path, About("test", audio), {"train": [Clip(Item("a", "", 11, 5), mel=np.zeros((4, 5)))]})
    assert len(PreparedDataset.open(tmp_path).items["validation"]) == 3, "the old one stays"


def test_a_shard_has_one_writer(tmp_path):
    head = Head(VERSION, 0, 1, 80, "float32", "", "")
    with ShardWriter(tmp_path, head) as writer:
        with pytest.raises(FastglowError, match="another process makes shard-00000-of-00001 in .* with --shard"):
            ShardWriter(tmp_path, head)
        writer.add(Entry("a", "b", 3, 1), np.arange(3, dtype=np.int16))
        shard = writer.finish()
    assert [placed.entry.id for placed in shard.entries()] == ["a"]
    with ShardWriter(tmp_path, head) as writer:
        assert writer.n_clips == 0


N, SAMPLES = 16, 2**19


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """16 MB of samples in two shards."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    items = [Item(f"clip{i}", "x" * 1000, SAMPLES, 1) for i in range(N)]
    clips = (Clip(item, random.integers(-999, 999, SAMPLES).astype(np.int16)) for item in items)
    write_dataset(folder, About("test", MelConfig()), {"train": clips}, n_shards=2)
    return folder


CHECKSUMS = """
import re, sys, zlib
def read(dataset):
    '''Checksums of all samples; kilobytes of the mapped files that are in memory, and of changed copies of them.'''
    sums = [zlib.crc32(dataset.samples(item)) for item in dataset.items["train"]]
    resident = private = 0
    for block in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
        if str(dataset.folder) in block.splitlines()[0]:
            resident += int(re.search(r"Rss: +(\\d+)", block)[1])
            private += int(re.search(r"Private_Dirty: +(\\d+)", block)[1]) + int(re.search(r"Swap: +(\\d+)", block)[1])
    writable = [line for line in open("/proc/self/maps") if str(dataset.folder) in line and " r--" not in line]
    return sums, resident, private, writable
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_the_same_memory(large, start):
    """A process that has read everything has no copies, whether it inherited the maps or was sent the data set."""
    dataset = PreparedDataset.open(large)
    expected = [zlib.crc32(dataset.samples(item)) for item in dataset.items["train"]]
    assert len(set(expected)) == N
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000, "no clips, which have 1000 letters each"
    if start == "spawn":
        code = f"{CHECKSUMS}\nimport pickle\nprint(repr(read(pickle.load(sys.stdin.buffer))))"
        done = subprocess.run(
            [sys.executable, "-c", code], input=sent, env=ENVIRONMENT, capture_output=True, check=True
        )
        found = eval(done.stdout)
    else:
        names = {}
        exec(CHECKSUMS, names)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(names["read"](dataset)))
        process.start()
        found = receiver.recv()
        process.join()
    sums, resident, private, writable = found
    assert sums == expected
    assert resident >= N * SAMPLES * 2 / 1024
    assert private == 0 and writable == []


def test_each_process_verifies_for_itself(large, tmp_path):
    random = np.random.default_rng(0)
    clips = [Clip(Item("a", "", 1000, 1), random.integers(-99, 99, 1000).astype(np.int16))]
    dataset = write_dataset(tmp_path, About("test", MelConfig()), {"train": clips})
    (item,) = dataset.items["train"]
    before = dataset.samples(item).copy()
    sent = pickle.dumps(dataset)
    (file,) = tmp_path.glob("*.pcm")
    with open(file, "r+b") as stream:  # in place, as a disk fails
        stream.write(b"\1\1\1")
    np.testing.assert_array_equal(dataset.samples(item)[2:], before[2:])
    with pytest.raises(FastglowError, match=re.escape(f"{file} is damaged in the clip a: run `fastglow prepare`")):
        pickle.loads(sent).samples(item)
