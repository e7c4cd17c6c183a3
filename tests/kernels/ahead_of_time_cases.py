"""The calls of all operations that are compiled ahead of time."""

from . import (
    ahead_of_time_decode_loop,
    ahead_of_time_location_attention,
    ahead_of_time_lstm_cell,
    ahead_of_time_prenet,
    ahead_of_time_teacher_forced_loop,
    ahead_of_time_waveglow,
)

CASES = (
    *ahead_of_time_decode_loop.CASES,
    *ahead_of_time_location_attention.CASES,
    *ahead_of_time_lstm_cell.CASES,
    *ahead_of_time_prenet.CASES,
    *ahead_of_time_teacher_forced_loop.CASES,
    *ahead_of_time_waveglow.CASES,
)
