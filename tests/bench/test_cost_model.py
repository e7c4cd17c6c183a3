"""The predicted work of published sizes against predicted.json, and the model against theory and planted faults."""

import copy

import pytest
import torch
import triton
import triton.language as tl

from bench.cost_model.chips import CHIPS, launch_times, occupancy, predict
from bench.cost_model.counting import counting
from bench.cost_model.prediction import ROOT, committed, compare, predict_all
from fastglow.kernels.launch import launch
from tests.ahead_of_time.reports import KERNELS, defined_kernels

# One or two sizes of every kernel, to save minutes; the command counts all.
CHECKED = (
    ("decode_loop graph-1x128-float16", "teacher_forced_loop 64"),
    (
        "affine_coupling large", "affine_coupling inverse", "affine_coupling flow-step",
        "gated_activation train-512-float16", "gated_activation vits", "invertible_conv1x1 factors",
        "invertible_conv1x1 train", "location_attention tacotron2-16x128", "lstm_cell decoder-rnn-16",
        "prenet train-64x800-float16", "wavenet_layer train-512-float16", "wavenet_layer inference-256",
        "weight_norm wn-256",
    ),
)  # fmt: skip

NOT_COUNTED = {
    "decode_loop_kernel": "waits for its other programs; decode_phase_kernel runs the same tiles",
    "teacher_forced_advance_kernel": "only a graph launches it: one program adds to a clock",
    "weight_norm_fwd_kernel": "models use weight_norm_packed",
    "weight_norm_bwd_kernel": "models use weight_norm_packed",
    "wavenet_layer_fwd_kernel": "for at most 128 channels; no published model has so few",
    "decode_begin_kernel": "one program writes a list, once per utterance",
}


@triton.jit
def once_kernel(p_x, p_y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_y + o, tl.load(p_x + o))


@triton.jit
def twice_kernel(p_x, p_y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_y + o, tl.load(p_x + o) + tl.load(p_x + o))


@triton.jit
def rows_kernel(p_x, n_columns, BLOCK: tl.constexpr):
    """A flat grid of blocks of rows; the last block of a row is not full."""
    n_blocks = tl.cdiv(n_columns, BLOCK)
    i_row, i_block = tl.program_id(0) // n_blocks, tl.program_id(0) % n_blocks
    o = i_block * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_x + i_row * n_columns + o, 1.0, mask=o < n_columns)


@triton.jit
def product_kernel(p_x, p_y, p_z, K, BLOCK: tl.constexpr):
    """[BLOCK programs, K] times [K, BLOCK]."""
    o, o_k = tl.arange(0, BLOCK), tl.arange(0, 32)
    i = tl.program_id(0) * BLOCK
    b_z = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, 32):
        b_x = tl.load(p_x + (i + o)[:, None] * K + (k + o_k)[None, :])
        b_y = tl.load(p_y + (k + o_k)[:, None] * BLOCK + o[None, :])
        b_z = tl.dot(b_x, b_y, b_z)
    tl.store(p_z + (i + o)[:, None] * BLOCK + o[None, :], b_z)


def count(kernel, programs: int, *arguments, launches: int = 1):
    with counting() as recorder, recorder.recording() as call:
        for _ in range(launches):
            launch("made_up", kernel, (programs,), *arguments, device=torch.device("cpu"), BLOCK=64)
    (found,) = call.launches.values()
    return found


def as_call(found) -> dict:
    work = {"bytes": found.work.bytes, "flops": found.work.flops, "scalar": found.work.scalar}
    return {"name": "made up", "launches": [{"kernel": found.kernel, "count": found.count, "work": work}]}


def test_published_work_is_as_committed():
    pinned = f"triton=={triton.__version__}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    calls = predict_all(CHECKED, with_binaries=pinned)
    assert len(calls) >= sum(map(len, CHECKED))
    found = compare(calls)
    assert not found, "\n".join((*found, "if meant, run `python -m bench.cost_model`"))


def checked_calls() -> list[dict]:
    return [call for call in committed() if any(part in call["name"] for part in sum(CHECKED, ()))]


def test_every_kernel_is_checked():
    counted = {x["kernel"] for call in checked_calls() for x in call["launches"] if x["work"]}
    assert defined_kernels(KERNELS.rglob("*.py")) - NOT_COUNTED.keys() <= counted


def test_bytes_are_those_of_the_machine_code():
    """Of kernels without loops, whose tiles are full: one execution of each load and store in the PTX."""
    names = ("gated_activation train-512", "affine_coupling large", "affine_coupling inverse-large")
    launches = [x for call in committed() if call["name"].startswith(names) for x in call["launches"]]
    assert len(launches) == 7
    for x in launches:
        assert x["work"]["requested"] == x["work"]["programs"] * x["binary"]["bytes_of_code"]


def test_products_are_those_of_the_machine_code():
    """A product's tensor core instructions multiply its tile, at each place in the code where it stands."""
    found = [x for call in checked_calls() for x in call["launches"] if x["work"] and x["work"]["products"]]
    with_wgmma = [x for x in found if x["binary"]["product"] == "wgmma"]
    assert with_wgmma
    for x in with_wgmma:
        of_one = x["work"]["largest"][1] / x["work"]["products"]
        assert x["binary"]["flops_of_code"] >= of_one
        assert x["binary"]["flops_of_code"] % of_one == 0


def test_every_launch_has_a_binary():
    assert all(x["binary"]["registers"] > 0 for call in committed() for x in call["launches"])


def test_bytes_of_a_copy():
    x, y = torch.empty(640), torch.empty(640)
    work = count(once_kernel, 10, x, y).work
    assert (work.programs, work.bytes, work.requested, work.unique) == (10, 5120, 5120, 5120)
    assert work.largest[0] == 512


def test_bytes_of_runs_of_equal_programs():
    """Exact: only the last of the 1000 programs differs."""
    x = torch.empty(64 * 1000 - 8)
    assert count(rows_kernel, 1000, x, len(x)).work.requested == x.nbytes


@pytest.mark.parametrize("n_columns", [72, 800, 1000, 6408])
def test_bytes_of_a_flat_grid(n_columns):
    """Programs that differ periodically are sampled in their proportion."""
    x = torch.empty(640, n_columns)
    found = count(rows_kernel, 640 * triton.cdiv(n_columns, 64), x, n_columns)
    assert found.work.requested == pytest.approx(x.nbytes, rel=0.05)


def test_work_of_a_product():
    """The left operand is read once, the right one by every program."""
    x, y, z = torch.empty(320, 96), torch.empty(96, 64), torch.empty(320, 64)
    work = count(product_kernel, 5, x, y, z, 96).work
    assert work.flops == 2 * 320 * 96 * 64
    assert work.bytes == 4 * (320 * 96 + 5 * 96 * 64 + 320 * 64)
    assert work.unique == 4 * (320 * 96 + 96 * 64 + 320 * 64)
    assert work.products == 3


@pytest.mark.parametrize(
    "name, formula",
    [
        ("lstm_cell decoder-rnn-128-float16 forward", 128 * 8 * 1024 * (1536 + 1024)),
        ("lstm_cell attention-rnn-128-float16 forward", 128 * 8 * 1024 * (768 + 1024)),
        ("prenet train-64x800-float16 forward", 64 * 800 * 2 * 256 * (80 + 256)),
    ],
)
def test_flops_are_those_of_the_formula(name, formula):
    """Formulas of kernels/README.md; the prenet's 80 inputs are rounded up to whole tiles."""
    (call,) = [x for x in committed() if x["name"] == name]
    flops = sum(x["work"]["flops"] * x["count"] for x in call["launches"])
    assert formula <= flops <= 1.15 * formula


def test_weights_of_a_decoder_frame_are_read_once():
    (call,) = [x for x in committed() if x["name"] == "decode_loop graph-1x128-float16 frame"]
    weights = 2 * (4 * 1024 * (256 + 512 + 1024) + 4 * 1024 * (1024 + 512 + 1024) + 128 * 1024)
    weights += 2 * ((80 + 1 + 256) * (1024 + 512) + 256 * 256)
    moved = sum(x["work"]["bytes"] for x in call["launches"])
    assert weights <= moved <= 1.2 * weights


def test_a_tile_that_is_loaded_twice_is_found():
    x, y = torch.empty(640), torch.empty(640)
    before, after = (as_call(count(kernel, 10, x, y)) for kernel in (once_kernel, twice_kernel))
    after["launches"][0]["kernel"] = "once_kernel"
    assert compare([before], [before]) == []
    found = compare([after], [before])
    assert found[0] == "made up: once_kernel: L2 bytes 5120 -> 7680"


def test_more_launches_are_found():
    x, y = torch.empty(640), torch.empty(640)
    before, after = (as_call(count(once_kernel, 10, x, y, launches=n)) for n in (1, 2))
    assert any("once_kernel: launches 1 -> 2" in line for line in compare([after], [before]))


def test_half_the_occupancy_is_found():
    (call,) = [x for x in committed() if x["name"] == "gated_activation train-512-float16 forward"]
    worse = copy.deepcopy(call)
    binary = worse["launches"][0]["binary"]
    full = occupancy(binary)
    while occupancy(binary) > full // 2:
        binary["registers"] += 8
    assert any(f"blocks a multiprocessor {full} -> " in line for line in compare([worse], [call]))
    assert compare([call], [call]) == []


@pytest.mark.parametrize(
    "registers, shared, warps, blocks",
    [(255, 0, 8, 1), (168, 0, 4, 3), (32, 0, 4, 16), (32, 100 * 1024, 4, 2), (64, 227 * 1024, 8, 1)],
)
def test_occupancy_is_that_of_the_occupancy_calculator(registers, shared, warps, blocks):
    assert occupancy({"registers": registers, "shared": shared, "warps": warps}) == blocks


def test_the_bound_of_a_large_copy_is_memory():
    work = {
        "programs": 10**5, "bytes": 10**9, "unique": 10**9, "flops": 0, "scalar": 10**8, "accesses": 2, "products": 0,
        "largest": (10**4, 0, 10**3),
    }  # fmt: skip
    binary = {"registers": 32, "shared": 0, "warps": 4, "stages": 1, "product": ""}
    parts = launch_times(CHIPS[0], work, binary, 1.0)
    assert max(parts, key=parts.get) == "memory"
    assert parts["memory"] == pytest.approx(1e9 / 3.0e12)
    call = {
        "name": "made up", "op": "made_up", "repeats": 3, "operators": {"count": 0, "bytes": 0, "flops": 0},
        "launches": [{"kernel": "k", "count": 2, "work": work, "binary": binary}],
    }  # fmt: skip
    assert predict(CHIPS[0], call).seconds == pytest.approx(6 * (1e9 / 3.0e12 + 1.5e-6))
