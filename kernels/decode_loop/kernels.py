"""The phases of a frame, and the kernels that run them: one phase, or all phases of all frames.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any

import triton
import triton.language as tl

from .. import backend
from .prefetch import last_blocks, last_gate_blocks
from .structs import Product
from .tiles import (
    context_tile,
    energies_tile,
    load_frame,
    lstm_tile,
    next_items_tile,
    output_tile,
    partial_gates_tile,
    partial_query,
    prenet_tile,
    write_items,
)

ATTENTION_RNN, ENERGIES, CONTEXT, DECODER_RNN, OUTPUT, PRENET = (tl.constexpr(i) for i in range(6))
N_PHASES = tl.constexpr(6)


def _same_condition(condition: Any, disable_licm: bool) -> Any:
    return condition


# tl.condition exists from Triton 3.5 on, and the interpreter does not understand it.
HAS_CONDITION = hasattr(tl, "condition")
_condition = tl.condition if HAS_CONDITION and not backend.interprets() else _same_condition


@triton.jit
def _held_weights(PHASE: tl.constexpr, i, n_items, decoder, blocks):
    """The last blocks of weights of a phase's tile i, with n_items items in one block.

    If tile i is not an LSTM's or the output's, or does not exist, they are unused.
    """
    lstm_a, lstm_d, sizes = decoder.attention_rnn, decoder.decoder_rnn, decoder.sizes
    N, n, D, P = lstm_a.n, lstm_d.n, sizes.D, sizes.P
    if blocks.PREFETCH == 0:
        return ()
    elif PHASE == ATTENTION_RNN:
        return last_gate_blocks(i, lstm_a.weight_ih, P + D, N, P, blocks.EVEN_P, blocks)
    elif PHASE == ENERGIES:
        i_d = i - tl.cdiv(sizes.T, blocks.BT) * n_items
        return last_gate_blocks(i_d, lstm_d.weight_ih, N + D, n, N, blocks.EVEN_NA, blocks)
    elif PHASE == CONTEXT:
        i_d = i - tl.cdiv(D, blocks.BD) * n_items
        d_tiles = tl.cdiv(n, blocks.BU)
        if i_d < d_tiles:
            held = last_gate_blocks(i_d, lstm_d.weight_hh, n, n, n, blocks.EVEN_ND, blocks)
        else:
            held = last_gate_blocks(i_d - d_tiles, lstm_a.weight_hh, N, N, N, blocks.EVEN_NA, blocks)
        return held
    elif PHASE == DECODER_RNN:
        return last_gate_blocks(i, lstm_d.weight_ih + N, N + D, n, D, blocks.EVEN_D, blocks)
    elif PHASE == OUTPUT:
        o_row = i * blocks.BR + tl.arange(0, blocks.BR)
        p_w = decoder.output.weight + o_row * (n + D) + n
        return last_blocks(p_w, o_row < sizes.n_frame + 1 + sizes.P1, D, blocks.EVEN_D, blocks)
    else:
        i_a = i - 1 - tl.cdiv(P, blocks.BR)
        return last_gate_blocks(i_a, lstm_a.weight_ih + P, P + D, N, D, blocks.EVEN_D, blocks)


@triton.jit
def _n_tiles(PHASE: tl.constexpr, n_items, decoder, blocks):
    """Tiles of a phase in which n_items run."""
    sizes = decoder.sizes
    n_blocks = tl.cdiv(n_items, blocks.BB)
    a_tiles = tl.cdiv(decoder.attention_rnn.n, blocks.BU) * n_blocks
    d_tiles = tl.cdiv(decoder.decoder_rnn.n, blocks.BU) * n_blocks
    if PHASE == ATTENTION_RNN:
        return a_tiles
    elif PHASE == ENERGIES:
        return tl.cdiv(sizes.T, blocks.BT) * n_items + d_tiles
    elif PHASE == CONTEXT:
        return tl.cdiv(sizes.D, blocks.BD) * n_items + d_tiles + a_tiles
    elif PHASE == DECODER_RNN:
        return d_tiles
    elif PHASE == OUTPUT:
        return tl.cdiv(sizes.n_frame + 1 + sizes.P1, blocks.BR) * n_blocks
    else:
        return 1 + tl.cdiv(sizes.P, blocks.BR) * n_blocks + a_tiles


@triton.jit
def _tile(PHASE: tl.constexpr, i, frame, decoder, held, blocks):
    """Tile i of a phase. held: its `_held_weights`."""
    lstm_a = decoder.attention_rnn
    lstm_d = decoder.decoder_rnn
    attention = decoder.attention
    output = decoder.output
    sizes = decoder.sizes
    N, n, D, P = lstm_a.n, lstm_d.n, sizes.D, sizes.P
    n_blocks = tl.cdiv(frame.n_items, blocks.BB)
    # Product(...) is built inside the calls: assigned to a name, its constant EVEN_K would become a tensor.
    if PHASE == ATTENTION_RNN:
        b_h, i_u, o_b, m_b = lstm_tile(
            i, frame, lstm_a, Product(lstm_a.weight_ih, P + D, output.x2, P, blocks.EVEN_P), held, blocks
        )
        partial_query(b_h, i_u, o_b, m_b, attention, N, sizes.A, blocks.BU)
    elif PHASE == ENERGIES:
        n_energies = tl.cdiv(sizes.T, blocks.BT) * frame.n_items
        if i < n_energies:
            item, i_t = tl.load(frame.p_items + i % frame.n_items).to(tl.int64), i // frame.n_items
            length = tl.load(attention.lengths + item)
            if i_t * blocks.BT < length:
                energies_tile(item, i_t, length, frame.t, attention, tl.cdiv(N, blocks.BU), sizes, blocks)
        else:
            partial_gates_tile(
                i - n_energies,
                frame,
                lstm_d,
                Product(lstm_d.weight_ih, N + D, lstm_a.h, N, blocks.EVEN_NA),
                held,
                blocks,
                FIRST=True,
            )
    elif PHASE == CONTEXT:
        n_contexts = tl.cdiv(D, blocks.BD) * frame.n_items
        d_tiles = tl.cdiv(n, blocks.BU) * n_blocks
        if i < n_contexts:
            item, i_d = tl.load(frame.p_items + i % frame.n_items).to(tl.int64), i // frame.n_items
            context_tile(item, i_d, tl.load(attention.lengths + item), frame.t, attention, sizes, blocks)
        elif i < n_contexts + d_tiles:
            partial_gates_tile(
                i - n_contexts,
                frame,
                lstm_d,
                Product(lstm_d.weight_hh, n, lstm_d.h, n, blocks.EVEN_ND),
                held,
                blocks,
                FIRST=False,
            )
        else:
            partial_gates_tile(
                i - n_contexts - d_tiles,
                frame,
                lstm_a,
                Product(lstm_a.weight_hh, N, lstm_a.h, N, blocks.EVEN_NA),
                held,
                blocks,
                FIRST=True,
            )
    elif PHASE == DECODER_RNN:
        p_w = lstm_d.weight_ih + N
        lstm_tile(i, frame, lstm_d, Product(p_w, N + D, attention.context, D, blocks.EVEN_D), held, blocks)
    elif PHASE == OUTPUT:
        output_tile(i, frame, output, lstm_d.h, n, attention.context, sizes, held, blocks)
    else:
        n_units = tl.cdiv(P, blocks.BR) * n_blocks
        if i == 0:
            # Also when no item runs: the next frame's buffer still holds the list of frame t - 1.
            next_items_tile(frame, decoder.running, output.fired, sizes.max_steps, blocks.BATCH)
        elif i <= n_units:
            prenet_tile(i - 1, frame, output, sizes, blocks)
        else:
            partial_gates_tile(
                i - 1 - n_units,
                frame,
                lstm_a,
                Product(lstm_a.weight_ih + P, P + D, attention.context, D, blocks.EVEN_D),
                held,
                blocks,
                FIRST=False,
            )


@triton.jit(do_not_specialize=["B"])
def decode_begin_kernel(p_lengths, running, B, BATCH: tl.constexpr):
    """The first frame's list: every item that has a length."""
    o_i = tl.arange(0, BATCH)
    b_length = tl.load(p_lengths + o_i, mask=o_i < B, other=0)
    write_items(o_i, b_length > 0, running.items, running.n)


@triton.jit(do_not_specialize=["B", "offset"])
def decode_phase_kernel(decoder, B, blocks, p_t, offset, PHASE: tl.constexpr):
    """One phase of frame *p_t + offset: the frame index is in device memory, so that one graph works for all frames."""
    t = tl.load(p_t) + offset
    frame = load_frame(t, tl.load(decoder.running.n + t % 2), decoder.running, B, blocks)
    if tl.program_id(0) < _n_tiles(PHASE, frame.n_items, decoder, blocks):
        _tile(PHASE, tl.program_id(0), frame, decoder, (), blocks)


@triton.jit
def _wait_for_all(p_barrier, target, max_polls, alive):
    """Waits until `target` arrivals were counted. Returns 1, or 0 if they were not in time or `alive` is 0."""
    tl.debug_barrier()  # every thread's writes come before this program's arrival
    arrived = tl.atomic_add(p_barrier, 1, sem="acq_rel") + 1
    polls = 0
    while (arrived < target) & (polls < max_polls * alive):
        arrived = tl.atomic_add(p_barrier, 0, sem="acquire")
        polls += 1
    tl.debug_barrier()
    return alive * (arrived >= target).to(tl.int32)


@triton.jit
def _arrive(p_barrier):
    """The first half of `_wait_for_all`. Its fence waits for earlier loads, so the weights are loaded after it."""
    tl.debug_barrier()
    tl.atomic_add(p_barrier, 1, sem="release")


@triton.jit
def _wait(p_barrier, target, max_polls, alive):
    """The second half of `_wait_for_all`."""
    arrived = 0
    polls = 0
    while (arrived < target) & (polls < max_polls * alive):
        arrived = tl.atomic_add(p_barrier, 0, sem="acquire")
        polls += 1
    tl.debug_barrier()
    return alive * (arrived >= target).to(tl.int32)


@triton.jit(do_not_specialize=["B"])
def decode_loop_kernel(decoder, B, blocks, p_barrier, p_lost, max_polls):
    """All frames. p_barrier counts arrivals, from 0; *p_lost becomes 1 if a program did not arrive."""
    n_programs = tl.num_programs(0)
    t = 0
    target = 0
    alive = 1
    n_items = tl.load(decoder.running.n)
    held = _held_weights(ATTENTION_RNN, tl.program_id(0), n_items, decoder, blocks)
    # LICM is off: hoisting every phase's addresses would exceed the register file.
    while _condition(n_items * alive > 0, disable_licm=True):
        # Adds 0 (1 only when the results are lost anyway), which keeps addresses from being computed before the loop.
        i_program = tl.program_id(0) + tl.load(p_lost)
        frame = load_frame(t, n_items, decoder.running, B, blocks)
        for phase in tl.static_range(N_PHASES):
            for i in tl.range(i_program, _n_tiles(phase, n_items, decoder, blocks), n_programs, disable_licm=True):
                _tile(phase, i, frame, decoder, held, blocks)
                held = _held_weights(phase, i + n_programs, n_items, decoder, blocks)
            target += n_programs
            if blocks.PREFETCH > 0:
                _arrive(p_barrier)
                held = _held_weights(
                    ATTENTION_RNN if phase == PRENET else phase + 1, i_program, n_items, decoder, blocks
                )
                alive = _wait(p_barrier, target, max_polls, alive)
            else:
                alive = _wait_for_all(p_barrier, target, max_polls, alive)
        t += 1
        n_items = tl.load(decoder.running.n + t % 2)
    if alive == 0:
        tl.store(p_lost, 1)
