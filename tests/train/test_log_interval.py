"""`--log-interval` changes when a run looks at the device, and nothing else."""

import os
import signal

import numpy as np
import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.config import TrainConfig
from fastglow.train.data import SegmentDataset
from fastglow.train.history import read_history
from fastglow.train.loop import Trainer
from fastglow.train.step import TrainStep
from fastglow.train.tasks import WaveGlowTask

from .conftest import MODELS, configs, run

MEASURED = ("items_per_second", "flop_utilisation", "seconds_data", "seconds_model", "seconds_optimizer")


def records(out):
    """(iteration, epoch, what was computed) of each update."""
    found = [record for record in read_history(out) if record.group == "train"]
    assert all(record.values[name] > 0 for record in found for name in MEASURED)
    assert [record.time for record in found] == sorted(record.time for record in found)
    computed = [{k: repr(v) for k, v in record.values.items() if k not in MEASURED} for record in found]
    return [(record.iteration, record.epoch, values) for record, values in zip(found, computed, strict=True)]


def tensors_of(checkpoint):
    optimizer = {f"{i}.{k}": v for i, m in checkpoint["optimizer"]["state"].items() for k, v in m.items()}
    return {**checkpoint["state_dict"], **checkpoint.get("trained_state_dict", {}), **optimizer}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tacotron2", {"ema": 0.9, "accumulate": 2, "batch_size": 2}),
        ("waveglow", {"amp": "fp16", "init_loss_scale": 2.0**24, "ema": 0.9, "warmup": 5}),
    ],
)
def test_no_interval_changes_a_value(model, options, prepared, tmp_path):
    """Five updates are no whole number of epochs, checkpoints or intervals."""
    found = []
    for interval in (1, 2, 5, 100):
        out = tmp_path / str(interval)
        run(model, prepared, out, max_iterations=5, iters_per_checkpoint=3, log_interval=interval, **options)
        found.append((records(out), load_training_checkpoint(out / "checkpoint_5.pt", model)))
    first, whole = found[0]
    assert [iteration for iteration, _, _ in first] == [1, 2, 3, 4, 5]
    assert len({epoch for _, epoch, _ in first}) == 2 + (model == "tacotron2")
    for others, checkpoint in found[1:]:
        assert others == first
        for key in ("loss_scale", "ema_updates", "iteration", "done"):
            assert checkpoint[key] == whole[key], key
        theirs = tensors_of(checkpoint)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors_of(whole).items())
        assert checkpoint["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]


def test_the_default_is_ten_on_a_gpu_and_one_on_a_cpu(prepared, tmp_path):
    trainer = Trainer("waveglow", *configs("waveglow", prepared, tmp_path), progress=False)
    assert trainer.step.interval == 1
    trainer.state.device = torch.device("cuda")
    step = TrainStep.__new__(TrainStep)
    with pytest.raises((AssertionError, RuntimeError)):  # without a GPU it comes no further
        step.__init__(trainer.state, trainer.task, trainer.config, trainer.ranks, trainer.meter.watch)
        raise AssertionError
    assert step.interval == 10
    with pytest.raises(FastglowError, match="log_interval=-1 must not be negative"):
        TrainConfig("data", "out", log_interval=-1)


def test_a_loss_that_is_not_finite_is_told_as_if_seen_at_once(poisoned, tmp_path):
    """In the second update of an epoch of three: what follows in the interval writes no record and no checkpoint."""
    folder, bad = poisoned
    errors = []
    for interval in (1, 2, 3, 100):
        out = tmp_path / str(interval)
        with pytest.raises(FastglowError, match=rf"loss is nan at iteration \d+, .*{bad.id}") as raised:
            run("tacotron2", folder, out, max_iterations=10, log_interval=interval)
        errors.append((str(raised.value), records(out)))
        assert not list(out.glob("*.pt"))
    assert errors == [errors[0]] * 4


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("model", MODELS)
def test_an_update_that_is_not_finite_changes_nothing(model, ema, amp, prepared, tmp_path):
    """Nor does it keep the next one from being what it would have been without it."""
    trainer = Trainer(
        model, *configs(model, prepared, tmp_path, amp=amp, ema=ema, log_interval=5, init_loss_scale=8.0), False
    )
    state = trainer.state
    state.model.train()
    good = trainer.task.collate([trainer.trainset[0], trainer.trainset[1]])
    bad = trainer.task.collate([trainer.trainset[0], trainer.trainset[1]])
    (bad.mel if model == "tacotron2" else bad.audio)[1, ..., 3] = float("inf")

    def snapshot():
        tensors = tensors_of({"state_dict": state.model.state_dict(), "optimizer": state.optimizer.state_dict()})
        averaged = (
            [] if state.ema is None else [*state.ema.model.state_dict().values(), torch.tensor(state.ema.updates)]
        )
        return [tensor.clone() for tensor in [*tensors.values(), *averaged]]

    trainer.step([good], [1.0])
    before = snapshot()
    trainer.step([bad], [1.0])
    assert all(map(torch.equal, before, snapshot()))
    trainer.step([good], [1.0])
    assert not any(torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True) if a.dim() > 1)
    assert all(tensor.isfinite().all() for tensor in snapshot())
    results = trainer.step.results()
    assert next(results).scalars["skipped"] == 0
    if amp == "fp16":
        assert [result.scalars["skipped"] for result in results] == [1, 0]
        assert state.scaler.scale == 4.0
    else:
        with pytest.raises(FastglowError, match="at iteration 0, batch 0 of epoch 0, items "):
            next(results)


def test_too_many_skipped_updates_are_counted_as_if_seen_at_once(prepared, tmp_path):
    errors = []
    for interval in (1, 4, 100):
        out = tmp_path / str(interval)
        with pytest.raises(FastglowError, match="3 updates in a row .* max_skipped=2 is the limit") as raised:
            run("waveglow", prepared, out, amp="fp16", loss_scale=str(2.0**100), max_skipped=2, log_interval=interval)
        errors.append((str(raised.value), records(out)))
        assert len(errors[-1][1]) == 2
    assert errors == [errors[0]] * 3


def test_a_scale_that_collapses_is_told_as_if_seen_at_once(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("fastglow.train.losses.WaveGlowLoss.forward", lambda self, output: output[0].sum() * np.inf)
    errors = []
    for interval in (1, 100):
        with pytest.raises(FastglowError, match="the loss scale fell to 0.5 after 3 updates") as raised:
            run(
                "waveglow", prepared, tmp_path / str(interval), amp="fp16", init_loss_scale=4.0, log_interval=interval,
                max_iterations=4,
            )  # fmt: skip
        errors.append(str(raised.value))
    assert errors[0] == errors[1] and "the last: loss is" in errors[0]


def test_a_signal_in_an_interval_ends_the_run_after_the_batch(prepared, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def step_and_signal(self, *args):
        if self.state.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", step_and_signal)
    assert run("waveglow", prepared, tmp_path, log_interval=100).name == "checkpoint_2.pt"
    assert [iteration for iteration, _, _ in records(tmp_path)] == [1, 2]


def test_the_log_is_complete_when_a_checkpoint_is_written(prepared, tmp_path, monkeypatch):
    save, logged = Trainer.save, []
    monkeypatch.setattr(Trainer, "save", lambda self: (logged.append(len(records(tmp_path))), save(self))[1])
    run("waveglow", prepared, tmp_path, max_iterations=4, iters_per_checkpoint=2, log_interval=100)
    assert logged == [2, 4]


def test_an_error_in_an_interval_leaves_the_records_before_it(prepared, tmp_path, monkeypatch):
    read, n_read = SegmentDataset.__getitem__, []

    def failing(self, index):
        n_read.append(index)
        if len(n_read) == 7:
            raise FastglowError("this clip is gone")
        return read(self, index)

    monkeypatch.setattr(SegmentDataset, "__getitem__", failing)
    with pytest.raises(FastglowError, match="this clip is gone"):
        run("waveglow", prepared, tmp_path, batch_size=1, log_interval=100)
    assert [iteration for iteration, _, _ in records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_was_not_finite_is_told_before_a_later_error(prepared, tmp_path, monkeypatch):
    losses, n_read = WaveGlowTask.losses, []

    def failing(self, model, batch):
        n_read.append(batch.ids)
        if len(n_read) == 4:
            raise FastglowError("this clip is gone")
        return {name: loss * (np.nan if len(n_read) == 2 else 1.0) for name, loss in losses(self, model, batch).items()}

    monkeypatch.setattr(WaveGlowTask, "losses", failing)
    with pytest.raises(FastglowError, match="loss is nan at iteration 1, batch 1 of epoch 0") as raised:
        run("waveglow", prepared, tmp_path, batch_size=1, log_interval=100)
    assert f"items {n_read[1][0]}:" in str(raised.value)
    assert [iteration for iteration, _, _ in records(tmp_path)] == [1]
