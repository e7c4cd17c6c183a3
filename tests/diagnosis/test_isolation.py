"""A check that raises, hangs or ends its process fails, and spoils no other."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from fastglow.diagnosis import isolation
from fastglow.diagnosis.isolation import run

from . import planted
from .planted import check


@pytest.fixture(autouse=True)
def _short_start(monkeypatch):
    monkeypatch.setattr(isolation, "START_SECONDS", 20.0)


def findings(*checks):
    """The findings of each check; every check is answered, in order."""
    results = list(run(checks))
    assert [c for c, _ in results] == list(checks)
    return [found for _, found in results]


def pid(found) -> int:
    return int(found[0].detail.split()[-1])


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sound_checks_share_a_process_that_is_not_this_one():
    first, none, second = findings(check(planted.fine), check(planted.nothing), check(planted.fine))
    assert none == []
    assert pid(first) == pid(second) != os.getpid()


def test_no_checks():
    assert findings() == []


@pytest.mark.parametrize(
    "faulty, message",
    [
        (check(planted.raises, "it\nbroke"), "RuntimeError: it broke"),
        (check(planted.refuses), "x=3 must be 4: pass 4"),
        (check(planted.exits), "SystemExit: leaving"),
    ],
)
def test_a_check_that_raises_fails_and_its_process_goes_on(faulty, message):
    before, (failure,), after = findings(check(planted.fine), faulty, check(planted.fine))
    assert (failure.status, failure.name, failure.detail) == ("failed", faulty.name, message)
    assert failure.remedy == "pull it out"
    assert pid(before) == pid(after)


@pytest.mark.parametrize(
    "faulty, message",
    [
        (check(planted.dies, signal.SIGKILL), "its process was ended by SIGKILL"),
        (check(planted.dies, signal.SIGSEGV), "its process was ended by SIGSEGV"),
        (check(planted.ends, 7, "first\nno such device\n\n"), "its process ended with code 7: no such device"),
        (check(planted.ends, 0), "its process ended with code 0"),
        (check(planted.hangs, seconds=0.5), "its process did not end within 0.5 seconds"),
    ],
)
def test_a_check_that_ends_its_process_or_hangs_fails_and_another_process_goes_on(faulty, message):
    before, (failure,), after = findings(check(planted.fine), faulty, check(planted.fine))
    assert (failure.status, failure.detail, failure.remedy) == ("failed", message, "pull it out")
    assert before[0].status == after[0].status == "ok"
    assert pid(before) != pid(after)


def test_every_check_may_fail():
    faulty = [check(planted.dies, signal.SIGKILL), check(planted.ends, 0), check(planted.ends, 3)]
    assert [found[0].status for found in findings(*faulty)] == ["failed"] * 3


def test_known_messages_have_their_own_remedy():
    ((failure,),) = findings(check(planted.raises, "Failed to find C compiler. Please specify"))
    assert failure.remedy == "apt install gcc"


def test_a_process_whose_gpu_is_lost_is_replaced():
    lost, after = findings(check(planted.loses_the_gpu), check(planted.fine))
    assert lost[0].status == after[0].status == "ok"
    assert pid(lost) != pid(after)


def test_what_checks_print_reaches_neither_stream(capfd):
    assert [found[0].status for found in findings(check(planted.prints))] == ["ok"]
    assert capfd.readouterr() == ("", "")


def test_what_a_hanging_check_started_is_ended(tmp_path):
    pid_file = tmp_path / "pid"
    ((failure,),) = findings(check(planted.hangs_with_a_child, str(pid_file), seconds=-15.0))
    assert "did not end" in failure.detail
    grandchild = int(pid_file.read_text())
    until = time.monotonic() + 30
    while is_running(grandchild) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(grandchild)


def test_closing_the_results_early_ends_the_process():
    with closing(run([check(planted.fine), check(planted.hangs)])) as results:
        _, found = next(results)
        assert is_running(pid(found))
    assert not is_running(pid(found))
