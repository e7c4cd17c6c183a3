"""Frames of the teacher-forced loop so late that their rows are beyond 2^31 elements."""

import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastglow.kernels import backend

from .address_calls import CALLS
from .arithmetic import WrapError, checked_integers
from .programs import run_programs

LATE = 2**27
"""Frames before the first one that runs; a frame has 3 items of 28 gates."""

replay = sys.modules["fastglow.kernels.teacher_forced_loop.replay"]


@pytest.fixture
def late_frames(monkeypatch):
    """Moves the clock, and leaves float memory alone: loads give zeros. Yields the addresses, in bytes."""
    builder, write = interpreter.interpreter_builder, replay.write_integers
    load = builder.create_masked_load
    seen: list[int] = []

    def write_later(tensor, values):
        if tuple(values[:1]) == (0,) and len(values) == 3:  # the clock: frames done, T, T_in
            values = (LATE * write_later.done, LATE + values[1], values[2])
        write(tensor, values)

    def masked_load(ptrs, mask, other, *rest):
        if ptrs.get_element_ty() == tl.int64:
            return load(ptrs, mask, other, *rest)
        seen.extend((int(ptrs.data.min()), int(ptrs.data.max())))
        element = ptrs.get_element_ty()
        return interpreter.TensorHandle(np.zeros(ptrs.data.shape, interpreter._get_np_dtype(element)), element)

    write_later.done = 1
    monkeypatch.setattr(replay, "write_integers", write_later)
    monkeypatch.setitem(vars(builder), "create_masked_load", masked_load)
    monkeypatch.setitem(vars(builder), "create_masked_store", lambda *arguments: None)
    with backend.use_backend("triton"), run_programs(), checked_integers():
        yield write_later, seen


def loop():
    call = next(call for call in CALLS if call.name == "teacher_forced_loop")
    return call, call.tensors(torch.float32)


def test_forward(late_frames):
    _, seen = late_frames
    call, tensors = loop()
    with torch.no_grad():
        call.run(**tensors)
    assert max(seen) - min(seen) > 2**33  # of the gates: 2^27 frames, 3 items, 28 gates, 4 bytes each


def test_backward(late_frames):
    """Its first frame is the last one."""
    clock, seen = late_frames
    call, tensors = loop()
    tensors = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in tensors.items()}
    outputs = call.run(**tensors)
    seen.clear()
    clock.done = 0
    torch.autograd.grad(
        outputs, [x for x in tensors.values() if x.requires_grad], [torch.zeros_like(x) for x in outputs]
    )
    assert max(seen) - min(seen) > 2**33


@triton.jit
def _narrow_factor(p_addresses, seed, dropout, t, o_b, o_u):
    return (t.to(tl.int32) * 28) * 3 * dropout.scale


def test_a_planted_row_of_32_bits_is_found(late_frames, monkeypatch):
    monkeypatch.setattr(sys.modules["fastglow.kernels.teacher_forced_loop.forward"], "dropout_factor", _narrow_factor)
    call, tensors = loop()
    with torch.no_grad(), pytest.raises((WrapError, interpreter.InterpreterError), match="mul of"):
        call.run(**tensors)
