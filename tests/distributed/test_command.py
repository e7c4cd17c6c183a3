"""`fastglow train --gpus 2 --device cpu`: a run, restarts, errors, signals, other numbers of processes."""

import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.history import read_history

from ..train.conftest import ENVIRONMENT, command_line, run
from .conftest import ROOT

ITERATIONS = 8


def arguments(data, out, *extra):
    return [*command_line("tacotron2", data, out, "--gpus", "2", "--ema", "0.9"), *extra]


def last_checkpoint(out):
    return load_training_checkpoint(out / f"checkpoint_{ITERATIONS}.pt", "tacotron2")


def assert_same_state(checkpoint, other):
    """Everything that determines how a run goes on."""

    def flat(value, path=""):
        if isinstance(value, dict):
            return {k: v for key in value for k, v in flat(value[key], f"{path}.{key}").items()}
        if isinstance(value, list | tuple):
            return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}.{i}").items()}
        return {path: value}

    first, second = (
        flat({k: v for k, v in c.items() if k not in ("training", "launchers")}) for c in (checkpoint, other)
    )
    assert first.keys() == second.keys()
    for path, value in first.items():
        same = torch.equal(value, second[path]) if isinstance(value, torch.Tensor) else value == second[path]
        assert same, path


@pytest.fixture(scope="module")
def undisturbed(fastglow, prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    # A process whose threads are at work while Python ends may crash: here it does for certain, if it comes to that.
    return SimpleNamespace(out=out, done=fastglow(arguments(prepared, out), "finalization 1 0 99"))


def test_the_command_trains_in_two_processes(undisturbed):
    done = undisturbed.done
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"saved {undisturbed.out}/checkpoint_8.pt\n"
    assert "global batch 6: batch size 3 x 2 processes" in done.stderr
    assert done.stderr.count("validation loss") == 1, "one process speaks"
    checkpoint = last_checkpoint(undisturbed.out)
    # Seven items in steps of three and four.
    assert (checkpoint["epoch"], checkpoint["batch"], checkpoint["done"]) == (4, 0, [])
    first, second = checkpoint["random_state"], *checkpoint["random_states"]
    assert not torch.equal(first["torch"], second["torch"]), "processes draw their own dropout"
    records = [record for record in read_history(undisturbed.out) if record.group == "train"]
    assert [record.iteration for record in records] == list(range(1, ITERATIONS + 1))


def test_a_run_is_reproducible_after_a_killed_rank(undisturbed, fastglow, prepared, tmp_path):
    """Rank 1 dies in iteration 6; both continue from the checkpoint of iteration 3."""
    done = fastglow(arguments(prepared, tmp_path / "run", "--max-restarts", "1"), fault="killed 1 0 5")
    assert done.returncode == 0, done.stderr
    assert "resumed at epoch 1, iteration 3" in done.stderr
    assert_same_state(last_checkpoint(undisturbed.out), last_checkpoint(tmp_path / "run"))
    starts = [record.iteration for record in read_history(tmp_path / "run") if record.group == "run"]
    assert starts == [0, 3]


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        ("error 1 0 2", "fastglow: rank 1: this rank is out of order: mend it"),
        ("crash 0 0 2", "fastglow: rank 0: ZeroDivisionError: not foreseen"),
        ("killed 1 0 2", r"fastglow: rank 1: Signal 9 \(SIGKILL\) received by PID \d+"),
    ],
)
def test_a_failing_rank_ends_all_with_its_own_error(fastglow, prepared, tmp_path, fault, last):
    done = fastglow(arguments(prepared, tmp_path / "run"), fault)
    assert done.returncode == 2
    assert re.fullmatch(last, done.stderr.splitlines()[-1]), done.stderr
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("fault", ["SIGINT 1 0 2", "SIGTERM 0 0 2", "signal 1 0 2"])
def test_a_signal_to_the_command_or_to_a_rank_saves_and_ends_all(fastglow, undisturbed, prepared, tmp_path, fault):
    out = tmp_path / "run"
    done = fastglow(arguments(prepared, out), fault)
    assert done.returncode == 0, done.stderr
    assert "pass --resume to continue" in done.stderr and "Traceback" not in done.stderr
    saved = int(re.fullmatch(r"saved .*/checkpoint_(\d+)\.pt\n", done.stdout)[1])
    assert 3 <= saved <= 4, "the step in progress, and one to agree in"
    if fault.startswith("SIGTERM"):
        assert fastglow([*arguments(prepared, out), "--resume"]).returncode == 0
        assert_same_state(last_checkpoint(undisturbed.out), last_checkpoint(out))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_command_while_processes_start_ends_them(fastglow, prepared, tmp_path, name):
    """And torchrun does not start them again."""
    done = fastglow(arguments(prepared, tmp_path / "run", "--max-restarts", "3"), f"starting-{name} 1 0 0")
    last = f"fastglow: stopped by {name} before training began: nothing to save"
    assert (done.returncode, done.stderr.splitlines()[-1], done.stdout) == (2, last, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_before_torchrun_knows_its_processes_ends_them(fastglow, prepared, tmp_path, name, rank):
    """The command's standard error stays open until all have ended."""
    done = fastglow(arguments(prepared, tmp_path / "run"), f"spawning-{name} {rank} 0 0")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_no_process_trains_on_after_the_command_is_killed(fastglow, prepared, tmp_path):
    """The command's standard error stays open until all have ended."""
    options = ["--max-iterations", "2000", "--iters-per-checkpoint", "0", "--epochs-per-validation", "2000"]
    done = fastglow(arguments(prepared, tmp_path / "run", *options), "SIGKILL 0 0 2")
    assert done.returncode == -9
    assert not list((tmp_path / "run").glob("checkpoint_*")), "all iterations were done"


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_waits_for_others_if_the_command_is_killed_while_they_start(fastglow, prepared, tmp_path, rank):
    assert fastglow(arguments(prepared, tmp_path / "run"), f"orphaned {rank} 0 0").returncode == -9
    assert not (tmp_path / "run" / "log.jsonl").exists(), "training began"


def test_a_script_may_stand_between_torchrun_and_a_rank(fastglow, prepared, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n{sys.executable} "$@"\nexit $?\n')
    script.chmod(0o755)
    monkeypatch.setenv("PYTHON_EXEC", str(script))
    done = fastglow(arguments(prepared, tmp_path / "run", "--max-iterations", "1"))
    assert done.returncode == 0, done.stderr


def test_two_machines_continue_after_a_rank_of_one_is_killed(undisturbed, faults, prepared, tmp_path):
    """Only its machine counts that; the run goes on from the checkpoint all the same."""
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-id=run"]
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", *options, f"--rdzv-endpoint=localhost:{port}"]
    training = [*command_line("tacotron2", prepared, tmp_path / "run", "--ema", "0.9")]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{faults}", "FASTGLOW_TEST_FAULT": "killed 1 0 5"}
    machines = [
        subprocess.Popen([*command, "-m", "fastglow", *training], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [machine.communicate()[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert not any("fastglow: " in text for text in errors), "no process refused to go on"
    assert sum("resumed at epoch 1, iteration 3" in text for text in errors) == 1
    assert_same_state(last_checkpoint(undisturbed.out), last_checkpoint(tmp_path / "run"))


def test_one_process_continues_a_run_of_two(undisturbed, prepared, tmp_path, caplog):
    """Four of the epoch's seven items are left: one step of two passes, or four of one item."""
    whole = load_training_checkpoint(undisturbed.out / "checkpoint_3.pt", "tacotron2")
    assert whole["done"] == [[6, 1]]
    path = undisturbed.out / "checkpoint_3.pt"
    for name, options, steps in (("same", {"batch_size": 3, "accumulate": 2}, 1), ("others", {"batch_size": 1}, 4)):
        again = run("tacotron2", prepared, tmp_path / name, checkpoint_path=str(path), epochs=2, ema=0.9, **options)
        assert "1 processes continue a run of 2: their random draws" in caplog.text
        checkpoint = load_training_checkpoint(again, "tacotron2")
        assert (checkpoint["iteration"], checkpoint["epoch"], checkpoint["batch"]) == (3 + steps, 2, 0)


def test_processes_that_cannot_be_are_refused(fastglow, prepared, tmp_path):
    for gpus, device, message in (
        ("3", "cuda", "gpus=3 must be at most this machine's 0 GPUs"),
        ("all", "cpu", "gpus=all asks for none of this machine's 0 GPUs: pass --gpus N --device cpu"),
        ("two", "cpu", "gpus=two asks for none"),
        ("0", "cpu", "gpus=0 asks for none"),
    ):
        extra = ["--gpus", gpus, "--device", device]
        done = fastglow([*command_line("waveglow", prepared, tmp_path / "run"), *extra])
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr
    assert not (tmp_path / "run").exists()
