"""Operations whose results on the Triton backend are wrong; on the reference they are right."""

import os
import signal
import time
from collections.abc import Callable
from unittest import mock

import torch

from fastglow.diagnosis.findings import Finding
from fastglow.diagnosis.operations import OPERATIONS, Call, Draw
from fastglow.diagnosis.self_test import self_test
from fastglow.kernels import backend

LSTM = OPERATIONS["lstm_cell"][0]


def _crash(h: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return h


def _raise(h: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _hang(h: torch.Tensor) -> torch.Tensor:
    time.sleep(600)
    return h


FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "off by 1 in 1000": lambda h: h * 1.001,
    "one element": lambda h: h + 0.01 * torch.nn.functional.one_hot(torch.tensor([4]), h.shape[1]),
    "not finite": lambda h: h / (h != h[0, 0]),
    "another shape": lambda h: h[:, 1:],
    "gradient off by 1 in 100": lambda h: h + 0.01 * (h - h.detach()),
    "raises": _raise,
    "crashes": _crash,
    "hangs": _hang,
}


def faulty_lstm_cell(fault: str, dtype: str = "float32") -> list[Finding]:
    """The self-test of an lstm_cell with one of `FAULTS` on the Triton backend."""

    def case(draw: Draw) -> Call:
        function, arguments = LSTM(draw)

        def faulty(**arguments: object) -> list[torch.Tensor]:
            h, c = function(**arguments)
            return [h if backend.backend_name() == backend.REFERENCE else FAULTS[fault](h), c]

        return Call(faulty, arguments)

    with mock.patch.dict(OPERATIONS, {"lstm_cell": (case,)}):
        return self_test("lstm_cell", dtype)
