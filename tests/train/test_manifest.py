"""Damaged or forged prepared data sets give an error of one line and no warning."""

import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.train.arrays import read_array
from fastglow.train.manifest import PreparedDataset


@pytest.mark.parametrize(
    "dtype, shape", [(np.float32, (80, 7)), (np.int16, (12345,)), (np.float32, (3, 0)), (np.int64, ())]
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, shape, order, version):
    array = np.asarray(np.random.default_rng(0).normal(0, 99, shape).astype(dtype), order=order)
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        if version == (3, 0):  # NumPy writes this version only for field names, with a warning
            file.write(_of_version_3(array))
        else:
            np.lib.format.write_array(file, array, version=version)
    for mapped in (False, True) if array.size else (False,):
        found = read_array(path, dtype, shape, mapped=mapped)
        assert found.dtype == dtype and isinstance(found, np.memmap) == mapped
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(found, np.load(path))


def _of_version_3(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(2, 0))
    return buffer.getvalue().replace(b"NUMPY\x02", b"NUMPY\x03", 1)


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def of_header(header: bytes, n_bytes: int = 24) -> bytes:
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(n_bytes)


def test_the_forged_header_is_complete(tmp_path):
    (tmp_path / "a.npy").write_bytes(of_header(HEADER))
    assert not read_array(tmp_path / "a.npy", np.float32, (2, 3)).any()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        of_header(HEADER)[:-1],
        of_header(HEADER, 25),
        of_header(HEADER.replace(b"descr", b"des\\qr")),
        of_header(HEADER.replace(b"<f4", b"<f4\\d")),
        of_header(HEADER.replace(b"(2, 3)", b"(2L, 3L)")),
        of_header(HEADER.replace(b"(2, 3)", b"(3, 2)")),
        of_header(HEADER.replace(b"(2, 3)", b"(2, 3333333333333)")),
        of_header(HEADER.replace(b"(2, 3)", b"(" * 50 + b"2, 3")),
        of_header(HEADER.replace(b"<f4", b"<f8"), 48),
        of_header(HEADER.replace(b"<f4", b"|O"), 48),
        of_header(HEADER).replace(b"\x01\x00v", b"\x01\x00w"),
        of_header(b"'" + HEADER),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04K\x01.",
    ],
    ids=lambda data: repr(data[:90]),
)
def test_damaged_arrays(prepared, tmp_path, data):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    dataset = PreparedDataset.open(folder)
    item = dataset.items["train"][0]
    for kind, read in (("mels", dataset.mel), ("audio", dataset.samples)):
        dataset.path(kind, item.id).write_bytes(data)
        with pytest.raises(FastglowError, match=r"\.npy cannot be read .*: run `fastglow prepare` again"):
            read(item)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match="not a NumPy array|bytes must be|it holds"):
        read_array(tmp_path / "a.npy", np.float32, (2, 3))


@settings(max_examples=100)
@given(st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_any_damage_to_a_header(scratch, position, noise):
    data = bytearray(of_header(HEADER))
    data[position : position + len(noise)] = noise
    path = scratch / "a.npy"
    path.write_bytes(data)
    try:
        read_array(path, np.float32, (2, 3))
    except ValueError:
        pass


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


ITEM = {"id": "a", "text": "b", "samples": 2000, "frames": 5}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"id": ' + "9" * 10_000 + "}",
        "null",
        "[]",
        "{",
        '{"id": "a\\ud800", "more\\nlines": 1}',
        json.dumps(ITEM | {"samples": "2000"}),
        json.dumps(ITEM | {"samples": 2000.0}),
        json.dumps(ITEM | {"frames": True}),
        json.dumps(ITEM | {"frames": 0}),
        json.dumps(ITEM | {"frames": 2001}),
        json.dumps(ITEM | {"samples": 10**30}),
        json.dumps(ITEM | {"id": None}),
        json.dumps(ITEM | {"text": ["b"]}),
    ],
    ids=lambda line: line[:60],
)
def test_damaged_manifests(prepared, tmp_path, line):
    for name in ("dataset.json", "train.jsonl", "validation.jsonl"):
        shutil.copy(prepared / name, tmp_path)
    assert PreparedDataset.open(tmp_path).items["train"]
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(FastglowError, match="damaged manifest .*: run `fastglow prepare` again") as caught:
        PreparedDataset.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "description",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"audio": 3}',
        '{"audio": {"sampling_rate": ' + "9" * 400 + "}}",
        '{"audio": {"mel_fmin": ' + "9" * 400 + "}}",
        '{"audio": {"mel_fmax": NaN}}',
        '{"audio": {"mel_fmax": 1e999}}',
        '{"audio": {"hop_length": "256"}}',
    ],
    ids=lambda text: text[:60],
)
def test_damaged_descriptions(prepared, tmp_path, description):
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(prepared / name, tmp_path)
    (tmp_path / "dataset.json").write_text(description)
    with pytest.raises(FastglowError) as caught:
        PreparedDataset.open(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
