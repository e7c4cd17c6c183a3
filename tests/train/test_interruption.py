"""Signals to a whole process group, as Ctrl-C, `timeout`, SLURM and systemd send them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.interruption import batches_of, begin_loading

from .conftest import ENVIRONMENT, command_line
from .conftest import run as run_here

# On a machine with fewer cores than a test has workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

ROOT = Path(__file__).parents[2]

# Runs the cases in their own process group, and signals the group at the moment that the case names.
SIGNALLED_RUNS = """
import json, multiprocessing, os, signal, subprocess, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from fastglow.train import data, loop
from fastglow.train.step import TrainStep
from tests.train.conftest import configs

original_step, original_save = TrainStep.__call__, torch.save
original_item, original_sample = data.SegmentDataset.__getitem__, loop.TASKS["waveglow"].sample
original_losses = loop.TASKS["waveglow"].losses
original_set_num_threads, trainer_pid = torch.set_num_threads, os.getpid()

def signal_group():
    # From another process: PyTorch's loader processes treat signals from their parent differently.
    subprocess.run(["sh", "-c", f"kill -{int(number)} -{trainer_pid}"], check=True, start_new_session=True)

def strike(times=1):
    if not sent.exists():
        sent.touch()
        for _ in range(times):
            signal_group()

def step(self, *args, **options):
    if moment == "batch" and self.state.iteration == 2:
        strike()
    return original_step(self, *args, **options)

def save(*args):
    if moment == "saving" and args[0]["iteration"] == 3:
        strike(3)
    if moment == "saving again" and sent.exists():
        signal_group()
    return original_save(*args)

def item(self, index):
    if moment == "first item":
        strike()
    return original_item(self, index)

def losses(self, model, batch):
    if moment == "validation" and not model.training:
        strike()
    if moment == "saving again" and model.training and not sent.exists():
        strike()
    return original_losses(self, model, batch)

def sample(self, model, valset):
    if moment == "sample":
        strike()
    return original_sample(self, model, valset)

def set_num_threads(n):
    # A loader process calls this before the loader's worker_init_fn, with PyTorch's handlers set.
    if moment == "birth" and os.getpid() != trainer_pid:
        subprocess.run(["sh", "-c", f"kill -{int(number)} {os.getpid()}"], check=True, start_new_session=True)
    original_set_num_threads(n)

TrainStep.__call__, torch.save = step, save
data.SegmentDataset.__getitem__, loop.TASKS["waveglow"].sample = item, sample
loop.TASKS["waveglow"].losses = losses
torch.set_num_threads = set_num_threads

folder, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for index, (moment, name, workers) in enumerate(cases):
    number, sent = getattr(signal, name), out / f"{index}.sent"
    validates = moment in ("validation", "sample")
    config, model_config = configs("waveglow", folder, out / str(index), num_workers=workers, max_iterations=6,
                                   batch_size=3 if validates else 1, epochs_per_validation=1 if validates else 1000,
                                   iters_per_checkpoint=3)
    outcome = {}
    try:
        trainer = loop.Trainer("waveglow", config, model_config, progress=False)
        outcome["saved"] = trainer.run().name
        outcome["stopped by"] = trainer.stop_requested and trainer.stop_requested.name
    except BaseException:
        outcome["error"] = traceback.format_exc()
    outcome["left"] = len(multiprocessing.active_children())
    print(json.dumps(outcome), flush=True)
"""

# (moment, signal, loader processes) -> the iteration after which the run must end.
CASES = {
    ("batch", "SIGTERM", 0): 3,
    ("batch", "SIGTERM", 1): 3,
    ("batch", "SIGINT", 1): 3,
    ("batch", "SIGTERM", 2): 3,
    ("batch", "SIGINT", 2): 3,
    ("first item", "SIGINT", 0): 1,
    ("first item", "SIGTERM", 1): 1,
    ("first item", "SIGINT", 2): 1,
    ("validation", "SIGTERM", 0): 3,
    ("validation", "SIGINT", 1): 3,
    ("validation", "SIGTERM", 2): 3,
    ("sample", "SIGTERM", 1): 3,
    ("saving", "SIGTERM", 0): 3,
    ("saving", "SIGINT", 2): 3,
    ("saving again", "SIGTERM", 1): 1,
    ("saving again", "SIGINT", 2): 1,
    # Signals each loader process as it starts, not the group: without effect.
    ("birth", "SIGTERM", 1): 6,
    ("birth", "SIGINT", 2): 6,
}


@pytest.fixture(scope="module")
def signalled(prepared, tmp_path_factory):
    """(folder of the runs' outputs, outcome of every case, standard error)."""
    out = tmp_path_factory.mktemp("signalled")
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_RUNS, str(prepared), str(out), json.dumps(list(CASES))],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return out, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_signalled_run_saves_and_ends(signalled, case):
    out, outcomes, _ = signalled
    index = list(CASES).index(case)
    moment, name, _ = case
    iteration = CASES[case]
    expected = {"saved": f"checkpoint_{iteration}.pt", "stopped by": None if moment == "birth" else name, "left": 0}
    assert outcomes[index] == expected
    folder = out / str(index)
    assert load_training_checkpoint(folder / f"checkpoint_{iteration}.pt", "waveglow")["iteration"] == iteration
    assert not list(folder.rglob("*.tmp"))


def test_no_traceback_is_printed(signalled):
    assert "Traceback" not in signalled[2]


@pytest.mark.parametrize("case", [("batch", "SIGTERM", 1), ("first item", "SIGINT", 2), ("validation", "SIGTERM", 2)])
def test_a_signalled_run_resumes_bit_for_bit(signalled, prepared, tmp_path, case):
    options = {"max_iterations": 8, "batch_size": 3 if case[0] == "validation" else 1}
    folder = signalled[0] / str(list(CASES).index(case))
    whole = run_here("waveglow", prepared, tmp_path, **options)
    again = run_here("waveglow", prepared, folder, **options, resume=True)
    whole, again = (load_training_checkpoint(path, "waveglow") for path in (whole, again))
    assert (whole["epoch"], whole["batch"]) == (again["epoch"], again["batch"])
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in whole["state_dict"].items())


@pytest.fixture
def endless(prepared, tmp_path):
    """Starts the command in its own session, practically without end, with a checkpoint per batch."""
    started = []

    def start(model, workers):
        arguments = command_line(model, prepared, tmp_path / "run", "--epochs-per-validation", "1000000")
        for flag, value in {"--num-workers": workers, "--iters-per-checkpoint": 1, "--max-iterations": 0}.items():
            arguments[arguments.index(flag) + 1] = str(value)
        arguments += ["--epochs", "1000000", "--keep-checkpoints", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "fastglow", *arguments],
            env=ENVIRONMENT,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        wait_for(lambda: list((tmp_path / "run").glob("checkpoint_*.pt")) or process.poll() is not None)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition):
    """Returns once the condition holds; there is no timeout."""
    while not condition():
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("model", "workers", "number"), [("waveglow", 2, signal.SIGTERM), ("tacotron2", 1, signal.SIGINT)]
)
def test_the_command_ends_with_exit_code_0(endless, tmp_path, model, workers, number):
    process = endless(model, workers)
    os.killpg(process.pid, number)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert f"stopped by {signal.Signals(number).name} after iteration" in errors
    saved = Path(output.removeprefix("saved ").strip())
    iteration = load_training_checkpoint(saved, model)["iteration"]
    assert saved.name == f"checkpoint_{iteration}.pt"
    newest = max(int(path.stem.removeprefix("checkpoint_")) for path in (tmp_path / "run").glob("checkpoint_*.pt"))
    assert newest == iteration


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_loader_process_outlives_a_killed_run(endless):
    process = endless("waveglow", 2)
    children = children_of(process.pid)
    assert len(children) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(is_running, children)))


def test_the_death_of_a_loader_process_is_one_line(endless):
    process = endless("waveglow", 2)
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert "a process that loads data has died, perhaps for want of memory (DataLoader worker (pid" in last
    assert last.endswith("pass fewer --num-workers, and --resume to continue from the last checkpoint")


# Its loader processes wait, before PyTorch checks who their parent is, until the parent is dead.
ORPHANING_RUN = """
import os, sys, time
import torch
from torch.utils.data import DataLoader
from fastglow.train.interruption import batches_of, begin_loading

set_num_threads, trainer_pid = torch.set_num_threads, os.getpid()

def wait_for_the_end(n):
    if os.getpid() != trainer_pid:
        os.write(1, b"%d\\n" % os.getpid())
        while os.getppid() == trainer_pid:
            time.sleep(0.01)
    set_num_threads(n)

torch.set_num_threads = wait_for_the_end
with batches_of(DataLoader([1, 2, 3], num_workers=int(sys.argv[1]), worker_init_fn=begin_loading)) as batches:
    next(batches)
"""


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_loader_process_that_just_started_outlives_a_killed_run(workers):
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANING_RUN, str(workers)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        children = [int(process.stdout.readline()) for _ in range(workers)]
        process.kill()
    wait_for(lambda: not any(map(is_running, children)))


class Numbers(torch.utils.data.Dataset):
    """0, 1, 2, ...; one of them raises an error."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError(f"{index} is bad")
        return index


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_are_the_loader_s(workers, persistent):
    loader = DataLoader(
        Numbers(),
        batch_size=3,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=begin_loading,
    )
    with batches_of(loader) as batches:
        assert len(multiprocessing.active_children()) == workers
        assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert not multiprocessing.active_children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_no_process_stays_while_an_error_is_handled(bad):
    loader = DataLoader(Numbers(bad), batch_size=2, num_workers=2, worker_init_fn=begin_loading)
    with pytest.raises(ValueError, match=f"{bad} is bad"), batches_of(loader) as batches:
        list(batches)
    assert not multiprocessing.active_children()


# Deleting PyTorch's half-built iterator raises an error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_process_stays_if_one_cannot_start(monkeypatch):
    start, started = multiprocessing.Process.start, []

    def fail_second(self):
        if started:
            raise OSError("no more processes")
        started.append(self)
        start(self)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fail_second)
    loader = DataLoader(Numbers(), num_workers=2, worker_init_fn=begin_loading)
    with pytest.raises(OSError, match="no more processes"), batches_of(loader):
        pass
    assert not started[0].is_alive()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_other_child_processes_are_left_alone():
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    other.start()
    try:
        with batches_of(DataLoader(Numbers(), num_workers=1, worker_init_fn=begin_loading)) as batches:
            next(batches)
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()
