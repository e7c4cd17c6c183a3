"""Training checkpoints are read bit for bit; hostile or damaged ones are refused before they cost memory."""

import collections
import io
import math
import os
import struct
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.train.checkpointing import (
    BEST,
    DamagedCheckpoint,
    find_newest_checkpoint,
    load_training_checkpoint,
    random_state,
    restore_random_state,
    save_training_checkpoint,
)
from fastglow.train.config import WaveGlowTrainConfig
from fastglow.train.resuming import find_checkpoint

CPU = torch.device("cpu")


def checkpoint(iteration: int = 3, **changed) -> dict:
    """A checkpoint of a small model after some steps, with every kind of optimizer state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 3), torch.nn.BatchNorm1d(5), torch.nn.LSTM(5, 4))
    model[0].weight.data = model[0].weight.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True, weight_decay=1e-6)
    for _ in range(3):
        model[2](model[1](model[0](torch.randn(2, 3, 9))).transpose(1, 2))[0].square().sum().backward()
        optimizer.step()
    return {
        "model": "waveglow",
        "config": {"n_flows": 4, "WN_config": {"n_layers": 2}, "names": ["a", ("b", 1, None)], "sigma": math.inf},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 1,
        "iteration": iteration,
        "batch": 2,
        "random_state": random_state(CPU),
        "training": {"learning_rate": 1e-4, "p": None, "cleaners": ("english_cleaners",)},
        "odd": [
            torch.tensor(5, dtype=torch.int64),
            torch.zeros(0, 3),
            torch.randn(4).half(),
            torch.randn(4).bfloat16(),
        ],
    } | changed


def same(x, y) -> bool:
    if isinstance(x, torch.Tensor):
        return isinstance(y, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y)
    if isinstance(x, dict):
        return isinstance(y, dict) and list(x) == list(y) and all(same(x[key], y[key]) for key in x)
    if isinstance(x, (list, tuple)):
        return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
    return type(x) is type(y) and x == y


@pytest.mark.parametrize("legacy", [False, True])
def test_everything_is_read_bit_for_bit(tmp_path, legacy):
    saved, path = checkpoint(), tmp_path / "checkpoint_3.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    read = load_training_checkpoint(path, "waveglow")
    assert same(read, torch.load(path, weights_only=True)) and same(read, saved)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros_like(x)) for x in _parameters(saved)])
    optimizer.load_state_dict(read["optimizer"])
    assert same(optimizer.state_dict()["state"], saved["optimizer"]["state"])


def _parameters(saved: dict) -> list[torch.Tensor]:
    return [saved["optimizer"]["state"][i]["exp_avg"] for i in range(len(saved["optimizer"]["state"]))]


def test_the_random_state_is_restored(tmp_path):
    path = tmp_path / "checkpoint_3.pt"
    save_training_checkpoint(path, checkpoint())
    read = load_training_checkpoint(path, "waveglow")
    restore_random_state(read["random_state"], CPU)
    first = torch.rand(3), np.random.rand(3)
    restore_random_state(torch.load(path, weights_only=True)["random_state"], CPU)
    assert torch.equal(torch.rand(3), first[0]) and np.array_equal(np.random.rand(3), first[1])


def test_shared_objects_stay_shared(tmp_path):
    shared, loop = torch.randn(3), []
    loop.append(loop)
    path = tmp_path / "m.pt"
    torch.save(checkpoint(odd=[shared, {"again": shared}, loop]), path)
    first, second, loop = load_training_checkpoint(path, "waveglow")["odd"]
    assert second["again"] is first
    assert loop[0] is loop


def rewritten(data: bytes, change) -> bytes:
    """A zip archive after `change(name, content)` -> (content, compression)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content, compression = change(name, old.read(name))
            new.writestr(name, content, compression)
    return buffer.getvalue()


def bomb(data: bytes) -> bytes:
    """A record of 200 MB in 200 KB."""
    zeros = bytes(200_000_000)
    return rewritten(data, lambda name, c: (zeros, zipfile.ZIP_DEFLATED) if name.endswith("/data/0") else (c, 0))


def compressed_pickle(data: bytes) -> bytes:
    return rewritten(data, lambda name, c: (c, zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else 0))


def one_record_for_all(data: bytes) -> bytes:
    """Every entry of the directory points at the largest record and has its size."""
    data = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    position = data.find(b"PK\x01\x02")
    while position >= 0:
        name_size = struct.unpack_from("<H", data, position + 28)[0]
        if b"/data/" in data[position + 46 : position + 46 + name_size]:
            struct.pack_into("<3L", data, position + 16, largest.CRC, *[largest.file_size] * 2)
            struct.pack_into("<L", data, position + 42, largest.header_offset)
        position = data.find(b"PK\x01\x02", position + 46)
    return bytes(data)


HOSTILE = {"zip bomb": bomb, "compressed pickle": compressed_pickle, "overlapping records": one_record_for_all}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path, hostile, caplog):
    path = tmp_path / "checkpoint_3.pt"
    save_training_checkpoint(path, checkpoint(odd=[torch.randn(5000)]))
    bad = tmp_path / "checkpoint_4.pt"
    bad.write_bytes(HOSTILE[hostile](path.read_bytes()))
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpoint, match=r"checkpoint_4\.pt: .*(compressed|overlap|bytes)"):
            load_training_checkpoint(bad, "waveglow")
        assert find_newest_checkpoint(tmp_path, "waveglow").checkpoint["iteration"] == 3
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert "skipping" in caplog.text


def test_many_views_of_one_storage_are_refused(tmp_path):
    x = torch.randn(100_000)
    torch.save(checkpoint(odd=[x[i:] for i in range(50)]), tmp_path / "m.pt")
    with pytest.raises(DamagedCheckpoint, match="its tensors would take"):
        load_training_checkpoint(tmp_path / "m.pt", "waveglow")


def test_containers_that_are_shared_exponentially_cost_nothing(tmp_path):
    node = [1]
    for _ in range(40):  # 2 ** 40 ones, written out
        node = [node, node]
    torch.save(checkpoint(odd=node), tmp_path / "m.pt")
    read = load_training_checkpoint(tmp_path / "m.pt", "waveglow")["odd"]
    assert read[0] is read[1]
    for _ in range(20):
        node = (node,)
    torch.save(checkpoint(odd=node), tmp_path / "m.pt")
    with pytest.raises(DamagedCheckpoint, match="nested more than 50 deep"):
        load_training_checkpoint(tmp_path / "m.pt", "waveglow")


class Mine:
    pass


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"epoch": "1"}, "its epoch is not a count"),
        ({"iteration": -1}, "its iteration is not a count"),
        ({"batch": True}, "its batch is not a count"),
        ({"state_dict": [1]}, "its state_dict is not a dictionary"),
        ({"model": 3}, "its model is not a string"),
        ({"odd": {1, 2}}, "holds a set: only numbers"),
        ({"odd": {("a", 1): 2}}, "a dictionary's key is neither text nor a number"),
        ({"odd": torch.nn.Linear(1, 1)}, "holds a torch.nn.modules.linear.Linear: only numbers"),
        ({"odd": eval}, "refused: the file asks Python for builtins.eval"),
    ],
    ids=str,
)
def test_contents_that_no_run_writes_are_refused(tmp_path, changed, message):
    torch.save(checkpoint(**changed), tmp_path / "m.pt")
    with pytest.raises(DamagedCheckpoint, match=message):
        load_training_checkpoint(tmp_path / "m.pt", "waveglow")


def test_other_files_are_distinguished_from_damaged_ones(tmp_path):
    torch.save({"state_dict": collections.OrderedDict(a=torch.zeros(1))}, tmp_path / "weights.pt")
    for name, message in (("weights.pt", "use --init-from"), ("none.pt", "does not exist")):
        with pytest.raises(FastglowError, match=message) as caught:
            load_training_checkpoint(tmp_path / name, "waveglow")
        assert not isinstance(caught.value, DamagedCheckpoint)


def test_the_best_checkpoint_counts_by_its_iteration(tmp_path):
    """Regular ones may be far apart; of two of an iteration, the regular one is taken."""

    def newest():
        found = find_newest_checkpoint(tmp_path, "waveglow")
        return found.path.name, found.checkpoint["iteration"]

    save_training_checkpoint(tmp_path / BEST, checkpoint(7))
    assert newest() == (BEST, 7)
    for iteration, name in ((5, BEST), (7, "checkpoint_7.pt"), (9, "checkpoint_9.pt")):
        save_training_checkpoint(tmp_path / f"checkpoint_{iteration}.pt", checkpoint(iteration))
        assert newest() == (name, max(7, iteration))
    for iteration in (7, 9):
        (tmp_path / f"checkpoint_{iteration}.pt").write_bytes(b"PK")
    assert newest() == (BEST, 7)
    (tmp_path / BEST).write_bytes(b"PK")
    assert newest() == ("checkpoint_5.pt", 5)


def test_a_run_that_is_started_again_takes_its_own_checkpoints_only(tmp_path):
    """Others may be in the folder, newer ones too if the run continues an old one of them."""
    config = WaveGlowTrainConfig(data="", out=str(tmp_path))
    for iteration, launchers in ((3, ["a", "b"]), (6, ["a"]), (9, ["c"]), (12, None), (15, 5), (18, [["a"]])):
        contents = checkpoint(iteration) | ({} if launchers is None else {"launchers": launchers})
        save_training_checkpoint(tmp_path / f"checkpoint_{iteration}.pt", contents)
    for launchers, found in (({"a"}, 6), ({"b", "d"}, 3), ({"c"}, 9)):
        assert find_checkpoint(config, "waveglow", launchers).checkpoint["iteration"] == found
    for launchers in (set(), {"d"}):
        with pytest.raises(FastglowError, match="already holds checkpoints: pass --resume"):
            find_checkpoint(config, "waveglow", launchers)
        assert find_checkpoint(replace(config, resume=True), "waveglow", launchers).checkpoint["iteration"] == 18
    (tmp_path / "checkpoint_6.pt").write_bytes(b"PK")
    assert find_checkpoint(config, "waveglow", {"a"}).checkpoint["iteration"] == 3


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
@pytest.mark.parametrize("value", [None, [1, 2], [1, [2, 3], None], torch.zeros(3), "state"], ids=str)
def test_a_malformed_random_state_is_refused(key, value):
    with pytest.raises(DamagedCheckpoint, match="random state cannot be restored"):
        restore_random_state(random_state(CPU) | {key: value}, CPU)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the file `good`, and room for damaged ones."""
    folder = tmp_path_factory.mktemp("saved")
    torch.save(checkpoint(), folder / "good")
    return folder


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_damage_anywhere(saved, changes, n_cut):
    good = (saved / "good").read_bytes()
    data = _changed(good[: len(good) - 7**n_cut + 1], changes)
    pickled = rewritten(good, lambda name, c: (bytes(_changed(c, changes)) if name.endswith("data.pkl") else c, 0))
    for content in (bytes(data), pickled):
        (saved / "bad").write_bytes(content)
        try:
            load_training_checkpoint(saved / "bad", "waveglow")
        except FastglowError as error:
            assert len(str(error).splitlines()) == 1
    assert sorted(os.listdir(saved)) == ["bad", "good"]


def _changed(content: bytes, changes: list) -> bytearray:
    data = bytearray(content)
    for position, noise in changes:
        position %= len(data)
        data[position : position + len(noise)] = noise
    return data
