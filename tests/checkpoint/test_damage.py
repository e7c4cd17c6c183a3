"""Damaged files of every kind either load or raise a one-line FastglowError."""

import io
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError, load_checkpoint, save_checkpoint
from fastglow.checkpoint import inspect_checkpoint
from fastglow.checkpoint.unpickling import read_pickle
from fastglow.checkpoint.zip_directory import Entry, read_directory

KINDS = ("zip", "legacy", "pickled zip", "pickled legacy", "safetensors", "coqui")


class Files(dict[str, bytes]):
    """Files by kind, with a short repr, since Hypothesis prints its tests' arguments."""

    def __repr__(self) -> str:
        return f"<files: {', '.join(self)}>"


@pytest.fixture(scope="session")
def files(build, tmp_path_factory):
    """The bytes of a small valid file of every kind."""
    folder = tmp_path_factory.mktemp("valid")
    torch.manual_seed(0)
    tacotron2, waveglow = build.tacotron2(), build.waveglow(n_flows=2)
    content = {"state_dict": tacotron2.state_dict(), "config": {"max_decoder_steps": 5}, "epoch": 1}
    torch.save(content, folder / "zip")
    torch.save(content, folder / "legacy", _use_new_zipfile_serialization=False)
    state = build.separate_residual(waveglow.state_dict())
    build.save_pickled_waveglow(folder / "pickled zip", state, module="glow_old")
    build.save_pickled_waveglow(folder / "pickled legacy", state, legacy=True)
    save_checkpoint(waveglow, folder / "safetensors")
    coqui = build.coqui_names(tacotron2.state_dict(), generator=torch.Generator().manual_seed(0))
    torch.save({"model": coqui}, folder / "coqui")
    return Files((kind, (folder / kind).read_bytes()) for kind in KINDS)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def assert_loads_or_explains(folder, data):
    path = folder / "checkpoint"
    path.write_bytes(data)
    for function in (load_checkpoint, inspect_checkpoint):
        try:
            function(path)
        except FastglowError as e:
            message = str(e)
            assert message.startswith(f"{path}: ")
            assert len(message.splitlines()) == 1 and message.isprintable()
            assert len(message) < len(str(path)) + 700
    assert os.listdir(folder) == ["checkpoint"]


POSITIONS = st.integers(0, 2**20 - 1)  # modulo the length of the damaged bytes
CUTS = st.builds(lambda position: lambda data: data[: position % (len(data) + 1)], POSITIONS)
CHANGES = st.builds(
    lambda changes: lambda data: changed(data, changes),
    st.lists(
        st.tuples(st.sampled_from(["bit", "byte", "delete", "insert"]), POSITIONS, st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=6,
    ),
)
DAMAGES = CUTS | CHANGES
"""Functions of bytes that truncate them, or change, remove or insert some. The drawn values do not depend on the
damaged bytes."""


def changed(data, changes):
    data = bytearray(data)
    for kind, position, noise in changes:
        position %= max(len(data), 1)
        if kind == "insert" or not data:
            data[position:position] = noise
        elif kind == "delete":
            del data[position : position + len(noise)]
        elif kind == "byte":
            data[position] = noise[0]
        else:
            data[position] ^= 1 << noise[0] % 8
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(damage=DAMAGES)
def test_damage_anywhere(files, scratch, kind, damage):
    assert_loads_or_explains(scratch, damage(files[kind]))


@pytest.mark.parametrize("kind", ["legacy", "pickled legacy", "safetensors"])
@settings(max_examples=30)
@given(damage=DAMAGES)
def test_damage_in_the_description(files, scratch, kind, damage):
    """Files without checksums: the damage changes names, shapes, offsets and opcodes."""
    content = files[kind]
    n_bytes = content.find(b"}") + 1 if kind == "safetensors" else content.rfind(b"]q\x00(X")
    n_bytes = max(n_bytes, 2000)
    assert_loads_or_explains(scratch, damage(content[:n_bytes]) + content[n_bytes:])


@pytest.mark.parametrize("kind", ["zip", "pickled zip", "coqui"])
@settings(max_examples=30)
@given(damage=DAMAGES)
def test_damage_in_the_pickle_under_a_right_checksum(files, scratch, kind, damage):
    data = rewritten(
        files[kind], lambda name, content: [(name, damage(content) if name.endswith("/data.pkl") else content, 0)]
    )
    assert_loads_or_explains(scratch, data)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
@settings(max_examples=25)
@given(damage=DAMAGES)
def test_damage_in_the_directory(files, scratch, kind, damage):
    content = files[kind]
    if kind == "zip":
        directory = content.find(b"PK\x01\x02")
        assert_loads_or_explains(scratch, content[:directory] + damage(content[directory:]))
    else:
        assert_loads_or_explains(scratch, damage(content[:12]) + content[12:])


def test_the_repr_that_hypothesis_prints_is_short(files):
    assert max(map(len, files.values())) > 2**16
    assert len(repr(files)) < 500


SOURCE = st.text(st.sampled_from("\\'\"dNux014789{}()\u00e9 \t"), max_size=12).map(lambda text: text.encode("latin-1"))


@settings(max_examples=60)
@given(
    SOURCE,
    st.sampled_from([b"S'%s'\n.", b'S"%s"\n.', b"c%s\nx\n.", b"(i%s\nx\n.", b"cglow\n%s\n.", b"P%s\n.", b"V%s\n."]),
)
def test_strings_that_are_not_python_source(files, scratch, source, operation):
    pickled = operation % source
    data = rewritten(files["zip"], lambda name, content: [(name, pickled if name.endswith("data.pkl") else content, 0)])
    assert_loads_or_explains(scratch, data)
    assert_loads_or_explains(scratch, b"\x80\x02" + pickled)


@pytest.mark.parametrize("escape", [rb"\d", rb"\q", rb"\477", rb"\x4", rb"\u12", rb"a\N{x}", rb"\8", "\\é".encode()])
@pytest.mark.parametrize("operation", [b"S'%s'\n.", b'S"%s"\n.'])
def test_unknown_escapes_are_damage(escape, operation):
    with pytest.raises(FastglowError, match="damaged or truncated file: .* unknown escape"):
        read_pickle(io.BytesIO(operation % escape))


@pytest.mark.parametrize(
    "source, text",
    [
        (rb"''", ""),
        (rb"'it\'s'", "it's"),
        (rb'"it' + rb"'s" + rb'"', "it's"),
        (rb"'tab\t, back\\slash, line\n'", "tab\t, back\\slash, line\n"),
        (rb"'\0\1\12\1771'", "\0\1\n\x7f1"),
        (rb"'\x00\x7fF'", "\0\x7fF"),
        (rb"'\78'", "\x078"),
    ],
)
def test_strings_as_python_2_wrote_them(source, text):
    assert read_pickle(io.BytesIO(b"S" + source + b"\n.")) == text
    assert pickle.loads(b"S" + source + b"\n.") == text


@pytest.mark.parametrize("name", ["glow\\d.WaveGlow", "gl\\x6fw.WaveGlow", "glow.Wave\\qGlow"])
def test_names_have_no_escapes(name):
    module, _, cls = name.rpartition(".")
    with pytest.raises(FastglowError, match="refused: the file asks Python for"):
        read_pickle(io.BytesIO(f"c{module}\n{cls}\n.".encode()))


@settings(max_examples=30)
@given(st.binary(max_size=600))
def test_any_bytes(scratch, data):
    assert_loads_or_explains(scratch, data)


@settings(max_examples=30)
@given(st.sampled_from([b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{"]), st.binary(max_size=300))
def test_any_bytes_after_a_known_beginning(scratch, start, data):
    assert_loads_or_explains(scratch, start + data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_reported_as_truncated(files, tmp_path, kind, fraction):
    data = files[kind]
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * fraction)])
    for function in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError, match="damaged or truncated file: .*; download or copy it again"):
            function(path)


def test_a_flipped_bit_in_a_checksummed_record_is_found(files, tmp_path):
    data = bytearray(files["zip"])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo("zip/data/0")
    data[entry.header_offset + 400] ^= 4
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(FastglowError, match=r"damaged or truncated file: the checksum of record data/0 is wrong"):
        load_checkpoint(tmp_path / "m.pt")


def test_files_without_checksums_are_read(build, same_weights, tmp_path):
    model = build.tacotron2()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    same_weights(load_checkpoint(tmp_path / "m.pt"), model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 112", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "gzip-compressed: unpack it first"),
        (b"x" * 257 + b"ustar\x0000" + bytes(300), "damaged or truncated file: a tar archive in which"),
        (b"hello, world", "neither a torch.save nor a safetensors file"),
        (b"\x80\x04]\x94.", "a pickle, but not from torch.save"),
    ],
)
def test_files_that_are_not_checkpoints(tmp_path, content, message):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_paths_that_are_not_files(tmp_path):
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "none.pt", "No such file or directory")):
        with pytest.raises(FastglowError) as caught:
            load_checkpoint(path)
        assert str(caught.value) == f"{path}: {message}"
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_RDWR)  # keeps a reader of the pipe from waiting forever
    try:
        with pytest.raises(FastglowError, match="not a regular file"):
            load_checkpoint(tmp_path / "fifo")
    finally:
        os.close(descriptor)


def rewritten(data, change):
    """A zip file's records after `change(name, content)`, with updated checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            for new_name, content, compression in change(name, old.read(name)):
                new.writestr(new_name, content, compression)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["plain", "folder/data.pkl", "zähler/文", "x" * 300])
@pytest.mark.parametrize("force_zip64", [False, True])
@pytest.mark.parametrize("comment", [b"", b"of the archive"])
def test_directories_are_read_as_zipfile_reads_them(name, force_zip64, comment):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = comment
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            entry = zipfile.ZipInfo(f"{name}{kind}")
            entry.compress_type, entry.extra = kind, b"\x75\x70\x05\x00\x01" + bytes(4)  # an empty Unicode path
            with archive.open(entry, "w", force_zip64=force_zip64) as file:
                file.write(b"content" * 9)
    with zipfile.ZipFile(buffer) as archive:
        expected = {
            e.filename: Entry(e.filename, e.header_offset, e.file_size, e.CRC, e.compress_type == zipfile.ZIP_STORED)
            for e in archive.infolist()
        }
    assert read_directory(buffer.getvalue()) == expected
    assert len(expected) == 2


def test_directories_of_more_entries_than_16_bits_count():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(2**16 + 1):
            archive.writestr(f"{i}", b"")
    directory = read_directory(buffer.getvalue())
    assert list(directory) == [f"{i}" for i in range(2**16 + 1)]


@pytest.mark.parametrize("field, value", [("offset", 2**40), ("size", 2**63), ("offset", 2**64 - 1)])
def test_false_64_bit_sizes(files, tmp_path, field, value):
    data = bytearray(files["zip"])
    entry = data.rfind(b"PK\x01\x02")
    where = {"size": 24, "offset": 42}[field]
    extra = struct.pack("<2HQ", 1, 8, value)
    name_size, extra_size = struct.unpack_from("<2H", data, entry + 28)
    data[entry + where : entry + where + 4] = b"\xff" * 4
    struct.pack_into("<H", data, entry + 30, len(extra))
    data[entry + 46 + name_size : entry + 46 + name_size + extra_size] = extra
    (tmp_path / "m.pt").write_bytes(data)
    for function in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError, match="damaged or truncated file"):
            function(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, c: [(n, c, zipfile.ZIP_DEFLATED)], "is compressed or encrypted"),
        (lambda n, c: [(n, c, 0), (n.replace("data.pkl", "constants.pkl"), c, 0)], "a TorchScript archive"),
        (lambda n, c: [] if n.endswith("data.pkl") else [(n, c, 0)], "a zip archive, but not from torch.save"),
        (lambda n, c: [] if "/data/" in n else [(n, c, 0)], "record data/0 is missing"),
        (lambda n, c: [(n, b"big" if n.endswith("byteorder") else c, 0)], "written by a big-endian machine"),
        (lambda n, c: [(n, c[:-1] if "/data/" in n else c, 0)], "storage 0 has 1919 bytes, 1920 expected"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_quite_checkpoints(files, tmp_path, change, message):
    path = tmp_path / "m.pt"
    path.write_bytes(rewritten(files["zip"], change))
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(FastglowError, match="a TorchScript archive, which is a program"):
        load_checkpoint(tmp_path / "m.pt")
