"""Damaged, forged and old prepared data sets give an error of one line that names the file, and no warning."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.cli import main
from fastglow.train.checking import find_damage
from fastglow.train.index import Index
from fastglow.train.manifest import Item, PreparedDataset


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "data")


def the(folder, suffix):
    (path,) = folder.glob(f"*.{suffix}")
    return path


def refused(folder, pattern):
    with pytest.raises(FastglowError, match=pattern) as caught:
        PreparedDataset.open(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def read_all(folder):
    dataset = PreparedDataset.open(folder)
    for items in dataset.items.values():
        for item in items:
            dataset.samples(item), dataset.mel(item)


def test_a_folder_of_the_older_format_says_so(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(json.dumps({"source": "x", "audio": {}, "counts": {"train": 1}}))
    (tmp_path / "train.jsonl").write_text("{}\n")
    refused(tmp_path, "was prepared by an older version of fastglow: run `fastglow prepare` again")
    (tmp_path / "dataset.json").write_text(json.dumps({"version": 3}))
    refused(tmp_path, "was prepared by a newer version of fastglow: update fastglow")
    assert main(["verify", str(tmp_path)]) == 2
    assert "newer version" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pcm", "mel"])
def test_a_damaged_byte_is_named_with_its_file_and_clip(copy, kind, capsys):
    file = the(copy, kind)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    dataset = PreparedDataset.open(copy)
    read, damaged = {"pcm": dataset.samples, "mel": dataset.mel}[kind], []
    for item in (item for items in dataset.items.values() for item in items):
        try:
            read(item)
        except FastglowError as error:
            damaged.append(item.id)
            assert str(error) == (
                f"{file} is damaged in the clip {item.id}: run `fastglow prepare` again, which makes it anew"
            )
    assert len(damaged) == 1
    assert find_damage(copy, progress=False) == [(file, f"is damaged in 1 clip: {damaged[0]}")]
    assert main(["verify", str(copy)]) == 1
    assert f"{file} is damaged in 1 clip: {damaged[0]}\n" in capsys.readouterr().out
    unverified = PreparedDataset.open(copy, verify=False)
    assert unverified.items["train"][0] and all(
        len(unverified.samples(item)) == item.samples for item in unverified.items["train"]
    )


def test_verify_finds_nothing_in_a_whole_data_set(prepared, capsys):
    assert main(["verify", str(prepared)]) == 0
    assert capsys.readouterr().out == f"{prepared}: all files are whole\n"


@pytest.mark.parametrize("kind", ["pcm", "mel", "clips", "index"])
@pytest.mark.parametrize("part", [0.0, 0.6, None])
def test_a_truncated_or_missing_file_is_named(copy, kind, part, capsys):
    file = the(copy, kind)
    if part is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    if kind in ("pcm", "mel"):
        refused(copy, f"{file.name} (has .* bytes, must have|is missing)")
    elif kind == "index":
        refused(copy, f"{file.name} (has .* bytes, must have|is missing)")
    assert main(["verify", str(copy)]) == 1
    assert file.name in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda description: description["audio"].update(hop_length=257),
        lambda description: description.update(text_cleaners=["basic_cleaners"]),
        lambda description: description["rejected"].append({"item": "a", "reason": "b"}),
        lambda description: description.pop("digest"),
        lambda description: description["shards"][0].update(name="rhard-00000"),
        lambda description: description["shards"][0].update(pcm=64),
        lambda description: description["shards"].clear(),
        lambda description: description.update(index="other.index"),
    ],
)
def test_verify_finds_a_description_that_was_changed(copy, change, capsys):
    path = copy / "dataset.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description, indent=2) + "\n")
    assert main(["verify", str(copy)]) == 1
    assert capsys.readouterr().out == (
        f"{path} is damaged\n{copy}: 1 file is damaged: run `fastglow prepare` again with the same options\n"
    )


def test_verify_finds_a_byte_that_changes_no_value_of_the_description(copy):
    path = copy / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b": ", b":\t", 1))
    assert find_damage(copy, progress=False) == [(path, "is damaged")]


@pytest.mark.parametrize("kind", ["pcm", "mel", "clips", "index"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "changed"])
def test_verify_finds_other_damage_beside_that_of_the_description(copy, kind, damage):
    path, file = copy / "dataset.json", the(copy, kind)
    path.write_text(path.read_text().replace('"name": "shard-', '"name": "rhard-'))
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        changed = {"shorter": content[:-200], "longer": content + bytes(64), "changed": content[:-1] + b"\xff"}
        file.write_bytes(changed[damage])
    (copy / "shard-notes.clips").touch()
    first, *others = find_damage(copy, progress=False)
    assert first == (path, "is damaged")
    assert {damage.file for damage in others} == (set() if (kind, damage) == ("index", "missing") else {file})


def test_verify_finds_damage_of_the_index_beside_that_of_a_shard(copy):
    for kind in ("pcm", "index"):
        data = bytearray(the(copy, kind).read_bytes())
        data[-1] ^= 1
        the(copy, kind).write_bytes(data)
    assert [damage.file for damage in find_damage(copy, progress=False)] == [the(copy, "pcm"), the(copy, "index")]


@pytest.mark.parametrize("kind", ["pcm", "mel"])
def test_verify_tells_a_file_that_cannot_be_read_from_a_damaged_one(copy, kind):
    file = the(copy, kind)
    file.unlink()
    file.mkdir()  # for root, permissions would not do
    (damage,) = find_damage(copy, progress=False)
    assert damage == (file, "cannot be read: Is a directory")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damaged_byte_of_any_file_is_found(prepared, tmp_path_factory, data):
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("any") / "data")
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        assert [damage.file for damage in find_damage(folder, progress=False)] == [file]
    except FastglowError as error:
        assert file.suffix == ".json" and str(folder) in str(error)
    if file.suffix in (".pcm", ".mel", ".index"):  # which training reads
        with pytest.raises(FastglowError, match=file.name):
            read_all(folder)
    shutil.rmtree(folder)


HEADER, ROW = struct.Struct("<8sIIQQQ24x"), struct.Struct("<QIIqqqqIIII")
FIELDS = [
    "strings",
    "id_bytes",
    "text_bytes",
    "samples",
    "frames",
    "pcm",
    "mel",
    "shard",
    "pcm_crc",
    "mel_crc",
    "unused",
]


def forge(folder, header=(), **row):
    """An index whose checksum is right, with other numbers in the header, by position, and in the first row."""
    file = the(folder, "index")
    data = file.read_bytes()
    head, fields = list(HEADER.unpack_from(data)), list(ROW.unpack_from(data, HEADER.size))
    for name, value in row.items():
        fields[FIELDS.index(name)] = value
    body = ROW.pack(*fields) + data[HEADER.size + ROW.size :]
    for position, value in header:
        head[position] = value
    if not any(position == 2 for position, _ in header):
        head[2] = zlib.crc32(HEADER.pack(*head)[16:] + body)
    file.write_bytes(HEADER.pack(*head) + body)


def test_the_forged_index_is_read_if_nothing_is_changed(copy):
    before = the(copy, "index").read_bytes()
    forge(copy)
    assert the(copy, "index").read_bytes() == before
    read_all(copy)


@pytest.mark.parametrize(
    "header",
    [
        [(0, b"fastglov")],
        [(1, 1)],
        [(2, 0)],
        [(3, 2**64 - 1)],
        [(3, 2**64 - 1), (4, 2**64 - 1), (5, 2**64 - 1)],
        [(3, 2**40)],
        [(3, 8)],
        [(5, 0)],
        [(3, 0), (4, 0)],
    ],
)
def test_a_hostile_header_of_the_index(copy, header):
    forge(copy, header)
    refused(copy, r"damaged manifest \(dataset-\w+.index ")


@pytest.mark.parametrize("name", ["samples", "frames"])
@pytest.mark.parametrize("value", [0, -1, 2**40, 2**62, 2**63 - 1, -(2**63)])
def test_hostile_lengths(copy, name, value):
    forge(copy, **{name: value})
    refused(copy, "damaged manifest .* clip outside of the files: number 0")


@pytest.mark.parametrize("name", ["pcm", "mel"])
@pytest.mark.parametrize("value", [-2, -64, -(2**63), 1, 2**63 - 64, 2**62, 10**9 * 64, "end"])
def test_hostile_offsets(copy, name, value):
    if value == "end":
        value = the(copy, name).stat().st_size
    forge(copy, **{name: value})
    refused(copy, "damaged manifest .* clip outside of the files: number 0")


@pytest.mark.parametrize(
    "row",
    [
        {"strings": 2**64 - 1},
        {"strings": 10**6},
        {"id_bytes": 2**32 - 1},
        {"text_bytes": 2**32 - 1},
        {"shard": 1},
        {"shard": 2**32 - 1},
        {"samples": 2**39, "frames": 2**39},
    ],
)
def test_hostile_places(copy, row):
    forge(copy, **row)
    refused(copy, "damaged manifest .* clip outside of the files: number 0")


def test_a_name_of_any_bytes_is_read(copy):
    file = the(copy, "index")
    data, first = bytearray(file.read_bytes()), Index(file).row(0)
    begin = HEADER.size + 8 * ROW.size
    data[begin : begin + first.id_bytes] = b"\xff" * first.id_bytes
    file.write_bytes(data)
    forge(copy)
    assert PreparedDataset.open(copy).items["train"][0].id == "\ufffd" * first.id_bytes


def described(folder, **values):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [
        {"shards": None},
        {"shards": [3]},
        {"shards": [{}]},
        {"shards": []},
        {"shards": [{"name": "../a", "pcm": 0, "mel": 0}]},
        {"shards": [{"name": "a", "pcm": -64, "mel": 0}]},
        {"shards": [{"name": "a", "pcm": 2**200, "mel": 0}]},
        {"shards": [{"name": "a", "pcm": 1.0, "mel": 0}]},
        {"shards": [{"name": "a", "pcm": 63, "mel": 0}]},
        {"index": None},
        {"index": "../dataset.index"},
        {"index": "a\0b"},
        {"mel_dtype": "float64"},
        {"mel_dtype": []},
        {"audio": None},
        {"audio": {"sampling_rate": 0}},
        {"audio": {"hop_length": "256"}},
        {"audio": {"n_mel_channels": 2**31 - 1}},
        {"audio": {"mel_fmax": 1e999}},
        {"text_cleaners": "english_cleaners"},
        {"version": None},
        {"version": "2"},
    ],
    ids=lambda values: json.dumps(values)[:60],
)
def test_hostile_descriptions(copy, values):
    described(copy, **values)
    refused(
        copy, f"^{copy} (holds a damaged manifest|was prepared by an older version).*: run `fastglow prepare` again"
    )
    assert main(["verify", str(copy)]) in (1, 2)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", "null", '"x"', "{", '{"version": ' + "9" * 10_000 + "}"])
def test_damaged_descriptions(copy, text):
    (copy / "dataset.json").write_text(text)
    refused(copy, "damaged manifest|older version")


def test_a_description_that_is_no_text(copy):
    (copy / "dataset.json").write_bytes(b"\xff\xfe{")
    refused(copy, "damaged manifest")


ITEM = {"id": "a", "text": "b", "samples": 2000, "frames": 5}


@pytest.mark.parametrize(
    "change",
    [{"samples": "2000"}, {"samples": 2000.0}, {"frames": True}, {"frames": 0}, {"frames": 2001}, {"samples": 10**30},
     {"id": None}, {"text": ["b"]}],
)  # fmt: skip
def test_an_item_is_checked(change):
    assert Item(**ITEM).as_dict() == ITEM
    with pytest.raises((TypeError, ValueError)):
        Item(**ITEM | change)


def test_items_are_a_sequence_of_what_the_index_has(prepared):
    items = PreparedDataset.open(prepared).items["train"]
    every = [items[i] for i in range(len(items))]
    assert list(items) == every and items[-1] == every[-1] and list(items[1::2]) == every[1::2]
    assert list(reversed(items[2:5])) == every[4:1:-1]
    np.testing.assert_array_equal(items.samples, [item.samples for item in every])
    np.testing.assert_array_equal(items[::-2].frames, [item.frames for item in every[::-2]])
    with pytest.raises(IndexError):
        items[len(items)]


def test_a_clip_is_found_without_its_row_and_another_is_refused(prepared):
    dataset = PreparedDataset.open(prepared)
    item = dataset.items["train"][3]
    for row in (-1, 0, 10**6):
        known = Item(item.id, "another text", item.samples, item.frames, row)
        np.testing.assert_array_equal(dataset.samples(known), dataset.samples(item))
    for other in (Item("absent", "", item.samples, item.frames), Item(item.id, "", item.samples + 1, item.frames)):
        with pytest.raises(FastglowError, match=f"has no clip {other.id} of {other.samples} samples"):
            dataset.mel(other)
