"""The JSON-lines log of a run: what is written, and what counts when it is read."""

import json
import logging
import math
import os
import random

import numpy as np
import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train.history import HistoryWriter, Record, read_backwards, read_history

from .conftest import files_of_at_most


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def line(iteration, group="train", **values):
    return json.dumps({"group": group, "epoch": 0, "iteration": iteration, "time": 1.5, **values}) + "\n"


def iterations(log):
    return [record.iteration for record in read_history(log)]


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_what_is_written_is_read(log):
    values = {
        "loss": 0.1 + 0.2,
        "nan": math.nan,
        "inf": math.inf,
        "minus_inf": -math.inf,
        "count": 3,
        "flag": True,
        "text": "Zoë\n\u2028",
        "none": None,
        "numpy": np.float32(0.5),
        "torch": torch.tensor(0.25),
        "torch_nan": torch.tensor(math.nan),
    }
    with HistoryWriter(log) as writer:
        writer.write("run", 0, 0, {})
        writer.write("train", 2, 7, values)
    records = read_history(log.parent)
    assert [(record.group, record.epoch, record.iteration) for record in records] == [("run", 0, 0), ("train", 2, 7)]
    read = records[1].values
    for name in ("loss", "inf", "minus_inf", "count", "flag", "text", "none", "numpy", "torch"):
        assert read[name] == values[name] and type(read[name]) in (float, int, bool, str, type(None)), name
    assert math.isnan(read["nan"]) and math.isnan(read["torch_nan"])
    assert list(read) == list(values)
    assert all(record.time <= later.time for record, later in zip(records, records[1:], strict=False))
    # Strict JSON, one object a line, in ASCII, whatever the values.
    for text in log.read_bytes().decode("ascii").splitlines():
        assert isinstance(json.loads(text, parse_constant=refuse), dict)


def test_a_value_cannot_replace_the_record_itself(log):
    with HistoryWriter(log) as writer:
        writer.write("train", 0, 5, {"iteration": 9.0, "group": "run", "loss": 1.0})
    assert read_history(log)[0][:3] == ("train", 0, 5)


def test_each_record_is_one_write_of_one_line(log, monkeypatch):
    written = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or real(file, data))
    with HistoryWriter(log) as writer:
        for i in range(3):
            writer.write("train", 0, i, {"loss": 1.0, "text": "a\nb"})
    monkeypatch.undo()
    assert [data.count(b"\n") for data in written] == [1, 1, 1]
    assert all(data.endswith(b"}\n") for data in written)
    assert log.read_bytes() == b"".join(written)


def test_a_cut_last_line_does_not_swallow_the_next_record(log, caplog):
    whole = line(1) + line(2)
    last = line(3, loss=0.5)
    for length in range(len(last) + 1):
        caplog.clear()
        log.write_text(whole + last[:length])
        with HistoryWriter(log) as writer:
            writer.write("train", 0, 4, {})
        complete = length >= len(last) - 1  # without the line feed it is still whole
        assert iterations(log) == ([1, 2, 3, 4] if complete else [1, 2, 4]), length
        messages = [record.getMessage() for record in caplog.records]
        expected = [] if complete or length == 0 else [f"{log}: line 3 is damaged or incomplete and left out"]
        assert messages == expected, length


def test_a_log_that_is_being_written_is_read(log):
    with HistoryWriter(log) as writer, HistoryWriter(log) as other:
        writer.write("train", 0, 1, {})
        other.write("train", 0, 2, {})
        writer.write("train", 0, 3, {})
        assert iterations(log) == [1, 2, 3]


def counting(lines):
    """The rule, one line after the other."""
    kept = []
    for group, iteration in lines:
        if group == "run":
            kept = [record for record in kept if record[1] <= iteration]
        kept.append((group, iteration))
    return kept


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("R0 T1 T2 V2 T3 T4", "R0 T1 T2 V2 T3 T4"),
        ("R0 T1 T2 V2 T3 T4 R2 T3 V3", "R0 T1 T2 V2 R2 T3 V3"),
        ("R0 T1 T2 R2 T3 T4 R1 T2", "R0 T1 R1 T2"),  # the resumption at 2 was lost too
        ("R0 T1 T2 R0 T1", "R0 R0 T1"),
        ("T1 T2 T3 R0", "R0"),
        ("R0 T1 T2 R5 T6", "R0 T1 T2 R5 T6"),  # records of the iterations up to 5 are missing
        ("R0 T1 T2 T3 T4 R3 T4 T5 R4 R2 T3", "R0 T1 T2 R2 T3"),
    ],
)
def test_superseded_records_do_not_count(log, lines, kept):
    groups = {"R": "run", "T": "train", "V": "validation"}

    def parse(words):
        return [(groups[word[0]], int(word[1:])) for word in words.split()]

    log.write_text("".join(line(iteration, group) for group, iteration in parse(lines)))
    assert [(record.group, record.iteration) for record in read_history(log)] == parse(kept) == counting(parse(lines))


def test_superseding_in_any_history(log):
    choose = random.Random(3)
    for _ in range(200):
        lines = [(choose.choice(["run", "train", "train", "validation"]), choose.randrange(8)) for _ in range(12)]
        log.write_text("".join(line(iteration, group) for group, iteration in lines))
        read = read_history(log)
        assert [(record.group, record.iteration) for record in read] == counting(lines)
        assert list(read_backwards(log)) == read[::-1]


GARBAGE = [
    b"\0" * 50,
    b"\xff\xfe\x80",
    b"[" * 100_000,
    b"1",
    b"null",
    b"[1, 2]",
    b'"text"',
    b'{"group": "train"}',
    line(1)[:-3].encode(),
    line(-1).strip().encode(),
    line(10**30).strip().encode(),
    line(True).strip().encode(),
    line(1.0).strip().encode(),
    line(1).replace("1.5", '"now"').strip().encode(),
    line(1).replace('"train"', "7").strip().encode(),
    line(1, loss=1).replace(" 1}", " " + "9" * 5000 + "}").strip().encode(),
    (line(1).strip() * 2).encode(),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_line_is_skipped(log, garbage, caplog):
    log.write_bytes(line(1).encode() + garbage + b"\n" + line(2).encode())
    assert iterations(log) == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"{log}: line 2 is damaged or incomplete and left out"
    ]


def test_all_damaged_lines_make_one_warning(log, caplog):
    caplog.set_level(logging.DEBUG)
    log.write_bytes(line(1).encode() + b"\n\r\n" + b"\n".join(GARBAGE) + b"\n" + line(2).replace("\n", "\r\n").encode())
    assert iterations(log) == [1, 2]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{log}: {len(GARBAGE)} lines, from line 4 on, are damaged or incomplete and left out"


def test_an_empty_log_has_no_records(log, caplog):
    for text in ("", "\n", " \n\n"):
        log.write_text(text)
        assert read_history(log) == []
    assert not caplog.records


def test_files_that_python_would_write(log):
    """json.dumps writes NaN as it is; another program may write a byte order mark."""
    log.write_bytes(b"\xef\xbb\xbf" + line(1, loss=math.nan, other=math.inf).encode())
    (record,) = read_history(log)
    assert math.isnan(record.values["loss"]) and record.values["other"] == math.inf
    assert record == Record("train", 0, 1, 1.5, record.values)


def test_what_is_missing_is_named(tmp_path):
    remedy = "pass the output folder (--out) of a `fastglow train` that has begun"
    for path, what in ((tmp_path, f"{tmp_path} holds no log.jsonl"), (tmp_path / "x", f"{tmp_path / 'x'} does not")):
        with pytest.raises(FastglowError) as raised:
            read_history(path)
        assert str(raised.value).startswith(what) and str(raised.value).endswith(remedy)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FastglowError, match="log.jsonl cannot be read: Is a directory"):
        read_history(tmp_path)
    with pytest.raises(FastglowError, match="log.jsonl cannot be written: Is a directory"):
        HistoryWriter(tmp_path / "log.jsonl")
    with pytest.raises(FastglowError, match="absent/log.jsonl cannot be written: No such file"):
        HistoryWriter(tmp_path / "absent" / "log.jsonl")


def test_a_full_disk_is_an_error(log):
    log.symlink_to("/dev/full")
    with HistoryWriter(log) as writer, pytest.raises(FastglowError, match="log.jsonl cannot be written: No space left"):
        writer.write("train", 0, 1, {})


@pytest.mark.parametrize("room", [1, 20])
def test_a_record_that_fits_in_part_is_an_error_and_the_next_one_is_whole(log, room):
    with HistoryWriter(log) as writer:
        writer.write("train", 0, 1, {})
        with files_of_at_most(log.stat().st_size + room):
            with pytest.raises(FastglowError, match=f"log.jsonl cannot be written: only {room} of .* bytes fit"):
                writer.write("train", 0, 2, {})
            with pytest.raises(FastglowError, match="log.jsonl cannot be written: File too large"):
                writer.write("train", 0, 2, {})
        writer.write("train", 0, 3, {})
        writer.write("train", 0, 4, {})
    assert iterations(log) == [1, 3, 4]
    assert log.read_text().count("\n") == 4
