"""Pickles that ask for code to run, and pickles that describe more than they hold."""

import builtins
import collections
import functools
import io
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from fastglow import FastglowError, load_checkpoint
from fastglow.checkpoint import convert_checkpoint, inspect_checkpoint
from fastglow.checkpoint.records import Inert
from fastglow.checkpoint.unpickling import read_pickle


class Call:
    """Pickled as a function call."""

    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


class CallWithState(Call):
    """The same, followed by a BUILD, whose state pickle would pass to `__setstate__`."""

    def __reduce__(self):
        return (*self.parts, {"state": 1})


def attacks(canary):
    """Title -> (name that the error must mention, object to pickle)."""
    command = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": (f"{os.system.__module__}.system", Call(os.system, command)),
        "exec": ("builtins.exec", Call(builtins.exec, write)),
        "eval": ("builtins.eval", Call(builtins.eval, write)),
        "open": ("io.open", Call(builtins.open, str(canary), "w")),
        "subprocess": (".Popen", Call(subprocess.Popen, ["touch", str(canary)])),
        "with state": (f"{os.system.__module__}.system", CallWithState(os.system, command)),
        "getattr": ("builtins.getattr", Call(getattr, "x", "join")),
        "partial": ("functools.partial", functools.partial(os.system, command)),
        "attrgetter": ("operator.attrgetter", Call(operator.attrgetter, "system")),
        "import": ("builtins.__import__", Call(builtins.__import__, "os")),
        "nested torch.load": ("torch.storage._load_from_bytes", Call(torch.storage._load_from_bytes, b"x")),
        "torch.load": ("torch.serialization.load", Call(torch.load, "x")),
        "torch.hub": ("torch.hub.load", Call(torch.hub.load, "x")),
        "pickle.loads": ("pickle.loads", Call(pickle.loads, b"x")),
        "third-party function": ("hypothesis.core.given", Call(pytest.importorskip("hypothesis").given, "x")),
        "inside a set item": ("builtins.eval", {"a": [1, {"b": Call(builtins.eval, write)}]}),
        "bound method": ("builtins.getattr", "text".join),
        "default factory": ("builtins.eval", collections.defaultdict(eval)),
        "numpy.load": ("numpy", Call(__import__("numpy").load, str(canary))),
    }


ATTACKS = list(attacks("canary"))


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_files_that_ask_for_code_are_refused_by_name(tmp_path, attack, protocol, container):
    canary = tmp_path / "canary"
    name, payload = attacks(canary)[attack]
    content = {"state_dict": {"embedding.weight": torch.zeros(2, 2)}, "payload": payload}
    path = tmp_path / "evil.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    functions = (load_checkpoint, inspect_checkpoint, lambda p: convert_checkpoint(p, tmp_path / "out"))
    for function in functions:
        with pytest.raises(FastglowError, match="refused: the file asks Python for ") as caught:
            function(path)
        assert name in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["evil.pt"]


def test_the_attacks_are_real(tmp_path):
    """Run by pickle, the payload does create the file, so the tests above refuse a real attack."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(attacks(canary)["eval"][1]))
    assert canary.exists()


def protocol_4(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


RAW = {
    "dotted STACK_GLOBAL": (
        protocol_4(text("torch.serialization"), text("os.system"), b"\x93", text("true"), b"\x85R"),
        "torch.serialization.os.system",
    ),
    "dotted name in an allowed module": (
        protocol_4(text("torch.nn.modules"), text("torch.os.system"), b"\x93", text("true"), b"\x85R"),
        "torch.nn.modules.torch.os.system",
    ),
    "function of an allowed module": (
        protocol_4(text("torch.nn.utils"), text("parametrize"), b"\x93", b")R"),
        "torch.nn.utils.parametrize",
    ),
    "function of a model's module": (b"cglow\nrun\n(S'x'\ntR.", "glow.run"),
    "GLOBAL with a space": (b"ctorch.serialization os\nsystem\n(S'x'\ntR.", "torch.serialization.os system"),
    "INST": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "INST of a model's class": (b"(S'true'\niglow\nWaveGlow\n.", "glow.WaveGlow"),
    "OBJ": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "Python 2's builtins": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
    "text persistent id": (b"Pos.system\n.", "PERSID"),
    "out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "newobj of os.system": (b"\x80\x02cos\nsystem\n(S'x'\nt\x81.", "os.system"),
    "newobj_ex": (protocol_4(text("os"), text("system"), b"\x93", b")}\x92"), "os.system"),
    "tensor of a type": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ccopyreg\n__newobj__\nctorch\nTensor\n(t}tR.",
        "copyreg.__newobj__",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_hand_made_pickles_are_refused_by_name(tmp_path, case):
    data, name = RAW[case]
    with pytest.raises(FastglowError, match="refused") as caught:
        read_pickle(io.BytesIO(data))
    assert name in str(caught.value)
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(path)
    assert name in str(caught.value)


def test_objects_are_records_without_behaviour():
    class Loud:
        def __init__(self):
            raise AssertionError("constructed")

        def __setstate__(self, state):
            raise AssertionError("told its state")

    Loud.__module__, Loud.__qualname__ = "glow", "Loud"
    fake = type(sys)("glow")
    fake.Loud = Loud
    sys.modules["glow"] = fake
    try:
        loud = Loud.__new__(Loud)
        loud.__dict__["weights"] = [1, 2]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            found = read_pickle(io.BytesIO(pickle.dumps({"model": loud}, protocol)))["model"]
            assert isinstance(found, Inert)
            assert (found.class_name, found.state) == ("glow.Loud", {"weights": [1, 2]})
    finally:
        del sys.modules["glow"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_pickle_reads_it(protocol):
    ordered = collections.OrderedDict(b=1, a=[2.5, None])
    data = {
        "ints": [0, 1, -1, 255, 256, -70000, 2**40, 2**100, -(2**100)],
        "floats": (1.5, float("inf")),
        "text": "naïve ☃",
        "bytes": b"\x00\xff" * 200,
        "sets": [set("abc"), frozenset({1, 2})],
        "ordered": ordered,
        "shared": [ordered, ordered],
        ("tuple", 3): True,
        5: {"nested": {False: ()}},
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"k": [1]}),
        "long": "x" * 1000,
    }
    assert read_pickle(io.BytesIO(pickle.dumps(data, protocol))) == pickle.loads(pickle.dumps(data, protocol))


def test_python_2_strings_are_read():
    # {"key": set(["a"]), u"n": 3L} of a Python 2 pickle, protocol 2
    data = b"\x80\x02}(U\x03keyc__builtin__\nset\n]U\x01aa\x85RX\x01\x00\x00\x00n\x8a\x01\x03u."
    assert read_pickle(io.BytesIO(data)) == {"key": {"a"}, "n": 3}


def test_tensors_of_old_torch_are_read(tmp_path):
    """`Parameter(tensor, requires_grad)` and `_rebuild_tensor` of torch 0.4, with the class's source code."""

    def tensor(key):
        return (
            b"ctorch._utils\n_rebuild_tensor\n((S'storage'\nctorch\nFloatStorage\nS'"
            + key
            + b"'\nS'cuda:0'\nI4\nNtQI0\n(I2\nI2\nt(I2\nI1\nttR"
        )

    backend = b"ctorch.nn.backends.thnn\n_get_thnn_function_backend\n)R"
    module = (
        b"((S'module'\nctorch.nn.modules.linear\nLinear\nS'/linear.py'\nS'import os'\ntQ)\x81}("
        b"S'_backend'\n" + backend + b"S'_modules'\n}S'_buffers'\n}S'_parameters'\n}("
        b"S'weight'\nctorch.nn.parameter\nParameter\n(" + tensor(b"1") + b"\x88tRuub"
    ).removeprefix(b"(")
    numbers = struct.pack("<q4f", 4, 1.0, 2.0, 3.0, 4.0)
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path = tmp_path / "old.pt"
    path.write_bytes(head + b"\x80\x02" + module + b"." + pickle.dumps(["1"], 2) + numbers)
    with pytest.raises(FastglowError, match="neither a Tacotron 2 nor a WaveGlow: 1 tensors such as 'weight'"):
        load_checkpoint(path)


def test_negative_views_and_new_dtypes(tmp_path):
    """A lazily negated tensor keeps the sign in its metadata; uint16 has no storage class."""
    view = torch.tensor([1 + 2j]).conj().imag
    assert view.is_neg()
    torch.save({"embedding.weight": view}, tmp_path / "m.pt")
    with pytest.raises(FastglowError, match="a tensor is a negative or conjugate view"):
        load_checkpoint(tmp_path / "m.pt")
    torch.save({"decoder.attention": torch.zeros(2, 3, dtype=torch.uint16)}, tmp_path / "m.pt")
    with pytest.raises(FastglowError, match="key 'decoder.attention' has dtype torch.uint16"):
        load_checkpoint(tmp_path / "m.pt")


def zip_bytes(pickled, records=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in dict(records).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def tensor_pickle(numel, shape, stride, offset=0, names=("embedding.weight",)):
    """A pickle of {name: tensor of this shape} whose storage "0" declares `numel` floats."""
    integers = [b"L%dL\n" % n for n in (numel, offset)]
    sizes = [b"(" + b"".join(b"L%dL\n" % n for n in values) + b"t" for values in (shape, stride)]
    entries = b"".join(
        b"S'%s'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n%stQ%s%s%sI00\n}tR"
        % (name.encode(), integers[0], integers[1], sizes[0], sizes[1])
        for name in names
    )
    return b"\x80\x02}(" + entries + b"u."


KEYS = [f"decoder.attention_rnn.{i}" for i in range(3000)]
BOMBS = {
    "huge storage": (tensor_pickle(2**40, (2**20, 2**20), (2**20, 1)), {"0": b"1234"}),
    "huge shape": (tensor_pickle(1, (2**20, 2**20), (2**20, 1)), {"0": b"1234"}),
    "expanded": (tensor_pickle(1, (2**20, 2**20), (0, 0)), {"0": b"1234"}),
    "beyond 64 bits": (tensor_pickle(1, (2**70, 2**70), (1, 1)), {"0": b"1234"}),
    "empty but huge": (tensor_pickle(1, (0, 2**62, 2**62), (1, 1, 1)), {"0": b"1234"}),
    "negative": (tensor_pickle(1, (-1, 1), (1, 1)), {"0": b"1234"}),
    "negative stride": (tensor_pickle(4, (2, 2), (-1, 1)), {"0": bytes(16)}),
    "offset": (tensor_pickle(4, (1,), (1,), offset=2**62), {"0": bytes(16)}),
    "many dimensions": (tensor_pickle(1, (1,) * 1000, (1,) * 1000), {"0": b"1234"}),
    "record too short": (tensor_pickle(4, (4,), (1,)), {"0": b"1234"}),
    "record missing": (tensor_pickle(1, (1,), (1,)), {}),
    "shared by thousands": (tensor_pickle(10**5, (10**5,), (1,), names=KEYS), {"0": bytes(4 * 10**5)}),
    "memo index": (b"\x80\x02Nr\xff\xff\xff\xff.", {}),
    "byte string length": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", {}),
    "bytearray length": (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", {}),
    "frame length": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", {}),
    "long integer": (b"\x80\x02\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000 + b".", {}),
    "deep tuple as key": (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", {}),
    "laughing lists": (b"\x80\x02]" + b"]q\x00h\x00h\x00\x86" * 50 + b".", {}),
    "copied lists": (
        b"\x80\x02](" + b"N" * 50_000 + b"eq\x00" + b"cbuiltins\nlist\nh\x00\x85R0" * 20_000 + b".",
        {},
    ),
    "encoded strings": (
        b"\x80\x02X\x00\x00\x10\x00" + b"x" * 2**20 + b"q\x00" + b"c_codecs\nencode\nh\x00\x85R" * 20_000 + b".",
        {},
    ),
    "copied state": (
        b"\x80\x02}("
        + b"".join(b"I%d\nN" % i for i in range(50_000))
        + b"uq\x00"
        + b"cglow\nWN\n)\x81h\x00b" * 20_000
        + b".",
        {},
    ),
    "objects of objects": (
        b"\x80\x02ccopyreg\n__newobj__\nq\x00(" + b"h\x00" * 50_000 + b"tR.",
        {},
    ),
    "list in itself": (b"\x80\x02]q\x00h\x00a.", {}),
    "dictionary in itself": (b"\x80\x02}q\x00S'model'\nh\x00s.", {}),
}


@pytest.mark.parametrize("case", BOMBS)
def test_small_files_that_describe_huge_contents_are_refused(tmp_path, case):
    pickled, records = BOMBS[case]
    path = tmp_path / "bomb.pt"
    path.write_bytes(zip_bytes(pickled, records))
    for function in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError) as caught:
            function(path)
        assert len(str(caught.value).splitlines()) == 1
        assert "MemoryError" not in str(caught.value)


def test_the_number_of_operations_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("fastglow.checkpoint.unpickling.MAX_OPERATIONS", 1000)
    assert read_pickle(io.BytesIO(b"\x80\x02" + b"]" * 998 + b".")) == []
    with pytest.raises(FastglowError, match="more than 1,000 pickle operations"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"]" * 999 + b"."))


def module_bomb(depth):
    """A module whose two children are one module, whose two children are one module, ..."""
    data = b"\x80\x02cglow\nWaveGlow\n)\x81}S'_modules'\n}sb"
    for _ in range(depth):
        data += b"q\x010cglow\nWaveGlow\n)\x81}S'_modules'\n}(S'a'\nh\x01S'b'\nh\x01usb"
    return data + b"."


def endless_module():
    return b"\x80\x02cglow\nWaveGlow\n)\x81q\x01}S'_modules'\n}(S'a'\nh\x01usb."


@pytest.mark.parametrize("pickled", [module_bomb(60), endless_module()], ids=["shared", "circular"])
def test_endless_trees_of_modules_are_refused(tmp_path, pickled):
    path = tmp_path / "bomb.pt"
    path.write_bytes(zip_bytes(pickled))
    with pytest.raises(FastglowError, match="a pickled model whose parts have no end"):
        load_checkpoint(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_bombs_cost_no_memory(tmp_path):
    """A process that may allocate only 300 MB more still refuses every bomb by name."""
    for name, (pickled, records) in BOMBS.items():
        (tmp_path / f"{name.replace(' ', '_')}.pt").write_bytes(zip_bytes(pickled, records))
    script = (
        "import glob, os, resource, sys\n"
        "from fastglow import FastglowError, load_checkpoint\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 300 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for path in sorted(glob.glob(sys.argv[1] + '/*.pt')):\n"
        "    try:\n"
        "        load_checkpoint(path)\n"
        "    except FastglowError as e:\n"
        "        assert 'Memory' not in str(e), e\n"
        "        print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * len(BOMBS)
