"""The race detector on small kernels with and without races."""

import pytest
import torch
import triton
import triton.language as tl

from .programs import every_program, run_programs
from .races import Launch, Recorder, find_races, find_thread_races


@triton.jit
def rows_kernel(p_x, p_y, n, OVERLAP: tl.constexpr, SHARED: tl.constexpr):
    """Each program writes its part of y; with OVERLAP, one element too many; with SHARED it reads its neighbour's."""
    o = tl.program_id(0) * n + tl.arange(0, 8)
    m = tl.arange(0, 8) < n + OVERLAP
    b_x = tl.load(p_x + o, mask=m, other=0.0)
    if SHARED:
        b_x += tl.load(p_y + o + n, mask=m, other=0.0)
    tl.store(p_y + o, b_x, mask=m)


@triton.jit
def message_kernel(
    p_x, p_flag, RELEASE: tl.constexpr, ACQUIRE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    SCOPE: tl.constexpr,
):  # fmt: skip
    """Program 0 writes x and raises a flag; program 1 waits for it and reads x."""
    o = tl.arange(0, 4)
    if tl.program_id(0) == 0:
        tl.store(p_x + o, o)
        if BEFORE:
            tl.debug_barrier()
        tl.atomic_add(p_flag, 1, sem=RELEASE, scope=SCOPE)
    else:
        flag = 0
        while flag == 0:
            flag = tl.atomic_add(p_flag, 0, sem=ACQUIRE, scope=SCOPE)
        if AFTER:
            tl.debug_barrier()
        tl.store(p_x + 4 + o, tl.load(p_x + o))


@triton.jit
def relay_kernel(p_x, p_flag, SECOND: tl.constexpr):
    """Program 1 waits for program 0 and passes it on; program 2 waits for program 1 and reads what program 0 wrote."""
    i = tl.program_id(0)
    if i == 0:
        tl.store(p_x, 1)
        tl.debug_barrier()
        tl.atomic_add(p_flag, 1, sem="release")
    elif i == 1:
        while tl.atomic_add(p_flag, 0, sem="acquire") < 1:
            pass
        tl.debug_barrier()
        tl.atomic_add(p_flag + 1, 1, sem=SECOND)
    else:
        while tl.atomic_add(p_flag + 1, 0, sem="acquire") < 1:
            pass
        tl.debug_barrier()
        tl.store(p_x + 1, tl.load(p_x))


@triton.jit
def shift_kernel(p_x, BARRIER: tl.constexpr):
    o = tl.arange(0, 8)
    b_x = tl.load(p_x + o)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_x + (o + 1) % 8, b_x)


def record(kernel, programs: int, *arguments) -> Launch:
    recorder = Recorder()
    with run_programs(every_program, recorder):
        kernel[(programs,)](*arguments)
    (launch,) = recorder.launches
    assert len(launch.programs) == programs
    return launch


@pytest.mark.parametrize(
    "overlap, shared, kinds", [(0, 0, set()), (1, 0, {"write and write"}), (0, 1, {"read and write"})]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_of_a_tensor(overlap, shared, kinds, dtype):
    x, y = torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    launch = record(rows_kernel, 5, x, y, 5, overlap, shared)
    names = {"x": (x.data_ptr(), x.data_ptr() + x.nbytes), "y": (y.data_ptr(), y.data_ptr() + y.nbytes)}
    races = find_races(launch, names)
    assert {race.kinds for race in races} == kinds
    neighbours = {((i, 0, 0), (i + 1, 0, 0)) for i in range(4)}
    assert {(race.first, race.second) for race in races} == (neighbours if kinds else set())
    size = dtype.itemsize
    assert {race.where for race in races} == ({f"y + {i * 5 * size}" for i in range(1, 5)} if kinds else set())


SOUND = {"RELEASE": "release", "ACQUIRE": "acquire", "BEFORE": True, "AFTER": True, "SCOPE": "gpu"}


@pytest.mark.parametrize("changed, sound", [
    ({}, True),
    ({"RELEASE": "acq_rel"}, True),
    ({"ACQUIRE": "acq_rel", "SCOPE": "sys"}, True),
    ({"RELEASE": "relaxed"}, False),
    ({"RELEASE": "acquire"}, False),
    ({"ACQUIRE": "relaxed"}, False),
    ({"ACQUIRE": "release"}, False),
    ({"BEFORE": False}, False),
    ({"AFTER": False}, False),
    ({"SCOPE": "cta"}, False),
])  # fmt: skip
def test_messages(changed, sound):
    """What orders a write in one program and a read in another; nothing may be missing."""
    x, flag = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    races = find_races(record(message_kernel, 2, x, flag, *{**SOUND, **changed}.values()))
    on_x = [race for race in races if race.address == x.data_ptr()]
    assert [race.kinds for race in on_x] == ([] if sound else ["write and read"])
    assert (races == on_x) is (changed.get("SCOPE") != "cta")


@pytest.mark.parametrize(
    "second, sound", [("release", True), ("acq_rel", True), ("acquire", False), ("relaxed", False)]
)
def test_order_passes_through_a_third_program(second, sound):
    x, flag = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    races = find_races(record(relay_kernel, 3, x, flag, second))
    assert [(race.first[0], race.second[0], race.kinds) for race in races] == (
        [] if sound else [(0, 2, "write and read")]
    )


@pytest.mark.parametrize("barrier", [True, False])
def test_threads_of_one_program(barrier):
    launch = record(shift_kernel, 1, torch.zeros(8), barrier)
    assert not find_races(launch)
    assert len(find_thread_races(launch)) == (0 if barrier else 1)


def test_a_lost_update_is_found():
    """Two programs that find the same value of a counter."""
    counter = torch.zeros(1, dtype=torch.int32)
    launch = record(message_kernel, 1, torch.zeros(8, dtype=torch.int32), counter, *SOUND.values())
    launch.programs[1, 0, 0] = launch.programs[0, 0, 0]
    with pytest.raises(AssertionError, match="not atomic"):
        find_races(launch)
