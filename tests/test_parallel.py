"""Parts that threads of one core each work on."""

import subprocess
import sys
import threading

import pytest
import torch

from fastglow.parallel import core_for_each


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", range(10))
def test_results_in_order_from_as_many_threads_as_there_are_parts(four_threads, n):
    together = threading.Barrier(max(1, min(n, 4)))
    seen = {}

    def square(i):
        if threading.get_ident() not in seen:
            together.wait(60)  # all threads have a part
            seen[threading.get_ident()] = torch.is_inference_mode_enabled(), torch.get_num_threads()
        return i * i

    with core_for_each() as each:
        for _ in range(2):
            assert each(square, list(range(n))) == [i * i for i in range(n)]
    assert len(seen) == min(n, 4) and set(seen.values()) <= {(True, 1)}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("bad", range(4))
def test_an_error_of_any_part_is_raised(four_threads, bad):
    def divide(i):
        return 1 / (i - bad)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), core_for_each() as each:
        each(divide, list(range(4)))
    assert threading.active_count() == before
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("most", range(3))
def test_where_no_more_threads_are_to_be_had_the_caller_does_more(four_threads, most, monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    seen = set()
    with core_for_each() as each:
        for _ in range(2):
            assert each(lambda i: seen.add(threading.get_ident()) or -i, range(9)) == [-i for i in range(9)]
    assert len(seen) == 1 + most == 1 + len(started)


@pytest.mark.parametrize("when", ["thread", "atexit"])
def test_speech_while_python_exits(when):
    code = f"""
import atexit, threading, torch
from fastglow.audio import griffin_lim
torch.set_num_threads(2)
def speak():
    print(tuple(griffin_lim(torch.zeros(80, 300), n_iter=2, seed=0).shape), flush=True)
def later():
    threading.main_thread().join()
    speak()
if {when!r} == "atexit":
    atexit.register(speak)
else:
    threading.Thread(target=later).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "(76800,)\n", done.stderr
