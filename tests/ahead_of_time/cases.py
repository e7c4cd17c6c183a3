"""The calls of all operations that are compiled ahead of time."""

from . import (
    calls_decode_loop,
    calls_location_attention,
    calls_lstm_cell,
    calls_prenet,
    calls_teacher_forced_loop,
    calls_waveglow,
)

CASES = (
    *calls_decode_loop.CASES,
    *calls_location_attention.CASES,
    *calls_lstm_cell.CASES,
    *calls_prenet.CASES,
    *calls_teacher_forced_loop.CASES,
    *calls_waveglow.CASES,
)
