"""The training loop of both models on a handful of clips."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fastglow
from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.train.checkpointing import find_newest_checkpoint, load_training_checkpoint
from fastglow.train.loop import Trainer
from fastglow.train.ranks import Ranks
from fastglow.train.step import TrainStep

from .conftest import ENVIRONMENT, MODELS, command_line, configs, rewritten, run


def validation_loss(model, data, out, **options):
    config, model_config = configs(model, data, out, **options)
    trainer = Trainer(model, config, model_config, progress=False)
    losses = [
        trainer.task.losses(trainer.state.model.eval(), trainer.task.collate([item]))["loss"]
        for item in trainer.trainset
    ]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("model", MODELS)
def test_training_lowers_the_loss(model, prepared, tmp_path):
    before = validation_loss(model, prepared, tmp_path / "new")
    path = run(model, prepared, tmp_path / "run", max_iterations=30)
    after = validation_loss(model, prepared, tmp_path / "run", checkpoint_path=str(path))
    assert after < before - 0.2 * abs(before)


KILLED_RUN = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from fastglow.train.ranks import Ranks
from fastglow.train.step import TrainStep
from fastglow.cli import main
step = TrainStep.__call__
def step_or_die(self, *args, **options):
    if self.state.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **options)
TrainStep.__call__ = step_or_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("model", MODELS)
def test_killed_and_resumed_equals_uninterrupted(model, prepared, lexicon_file, tmp_path):
    """Killed in the middle of an epoch, two iterations after a checkpoint, between two validations."""
    random_input = ("--cmudict-path", str(lexicon_file), "--p-arpabet", "0.5", "--p-frame-dropout", "0.3")
    extra = random_input if model == "tacotron2" else ()
    assert main(command_line(model, prepared, tmp_path / "whole", *extra)) == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *command_line(model, prepared, tmp_path / "killed", *extra)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in (tmp_path / "killed").glob("*.pt")] == ["checkpoint_3.pt"]
    assert main(command_line(model, prepared, tmp_path / "killed", *extra, "--resume")) == 0
    whole, resumed = (load_training_checkpoint(tmp_path / d / "checkpoint_8.pt", model) for d in ("whole", "killed"))
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    assert torch.equal(whole["random_state"]["torch"], resumed["random_state"]["torch"])
    moments = [
        torch.cat([m["exp_avg_sq"].flatten() for m in c["optimizer"]["state"].values()]) for c in (whole, resumed)
    ]
    assert torch.equal(*moments)
    assert (whole["epoch"], whole["batch"]) == (resumed["epoch"], resumed["batch"]) == (2, 2)


def test_workers_and_validation_change_nothing(prepared, tmp_path):
    plain = run("waveglow", prepared, tmp_path / "a", max_iterations=4)
    busy = run("waveglow", prepared, tmp_path / "b", max_iterations=4, num_workers=1, epochs_per_validation=1)
    plain, busy = (load_training_checkpoint(path, "waveglow")["state_dict"] for path in (plain, busy))
    assert all(torch.equal(plain[name], busy[name]) for name in plain)


def test_tensorboard_pictures_and_sound(prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("tacotron2", prepared, tmp_path, max_iterations=3, tensorboard=True, epochs_per_validation=1)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/guided_attention_loss", "train/grad_norm", "validation/loss"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert tags["images"] == ["validation/mel"]
    assert tags["audio"] == ["validation/audio"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["00000003.png", "00000003.wav"]


@pytest.mark.parametrize("model", MODELS)
def test_checkpoint_is_a_published_format(model, prepared, tmp_path):
    path = run(model, prepared, tmp_path / "run", max_iterations=1)
    loaded = fastglow.load_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    fine_tuned = run(model, prepared, tmp_path / "tuned", max_iterations=1, init_from=str(path), learning_rate=1e-12)
    tuned = load_training_checkpoint(fine_tuned, model)["state_dict"]
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(tuned[name], parameter.detach(), atol=1e-9, rtol=0)


def test_loss_that_is_not_finite_stops_with_the_batch_named(poisoned, tmp_path):
    folder, bad = poisoned
    with pytest.raises(FastglowError, match=rf"loss is nan at iteration \d+, .*{bad.id}"):
        run("tacotron2", folder, tmp_path / "run", max_iterations=10)


def test_newest_valid_checkpoint_is_found(prepared, tmp_path, caplog):
    run("waveglow", prepared, tmp_path, max_iterations=3, iters_per_checkpoint=1)
    newest = tmp_path / "checkpoint_3.pt"
    newest.write_bytes(newest.read_bytes()[:-500])
    (tmp_path / "checkpoint_10.tmp").write_bytes(b"left by a crash")
    with caplog.at_level(logging.WARNING):
        assert find_newest_checkpoint(tmp_path, "waveglow").checkpoint["iteration"] == 2
    assert "skipping " in caplog.text and "checkpoint_3.pt: damaged or truncated file" in caplog.text
    with pytest.raises(FastglowError, match="training checkpoint of waveglow, not of tacotron2"):
        find_newest_checkpoint(tmp_path, "tacotron2")
    for path in tmp_path.glob("checkpoint_*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(FastglowError, match="every checkpoint in .* is damaged"):
        find_newest_checkpoint(tmp_path, "waveglow")
    assert find_newest_checkpoint(tmp_path / "samples", "waveglow") is None


def test_a_new_checkpoint_outlives_damaged_later_ones(prepared, tmp_path):
    (tmp_path / "checkpoint_100.pt").write_bytes(b"damaged")
    path = run("waveglow", prepared, tmp_path / "other", max_iterations=2)
    (tmp_path / "checkpoint_2.pt").write_bytes(path.read_bytes())
    saved = run("waveglow", prepared, tmp_path, max_iterations=3, resume=True, keep_checkpoints=1)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint_100.pt", "checkpoint_3.pt"]
    assert load_training_checkpoint(saved, "waveglow")["iteration"] == 3


def test_options_that_differ_are_logged_on_resuming(prepared, tmp_path, caplog):
    run("waveglow", prepared, tmp_path, max_iterations=1)
    with caplog.at_level(logging.WARNING):
        run("waveglow", prepared, tmp_path, max_iterations=2, resume=True)
        assert not caplog.text
        run("waveglow", prepared, tmp_path, max_iterations=3, resume=True, batch_size=2)
    assert "options that differ from the resumed run's: batch_size 3 -> 2" in caplog.text


def test_a_gradient_that_is_not_finite_stops_before_the_step(prepared, tmp_path, monkeypatch):
    config, model_config = configs("waveglow", prepared, tmp_path)
    trainer = Trainer("waveglow", config, model_config, progress=False)
    losses = trainer.task.losses
    # The slope of the square root at 0 is infinite, its value is finite.
    monkeypatch.setattr(
        trainer.task, "losses", lambda m, b: {"loss": losses(m, b)["loss"] + (0 * m.upsample.bias[0]).abs().sqrt()}
    )
    before = trainer.state.model.upsample.bias.detach().clone()
    with pytest.raises(FastglowError, match="the norm of the gradient is nan at iteration 0, .*arctic"):
        trainer.step([trainer.task.collate([trainer.trainset[0]])], [1.0])
        next(trainer.step.results())
    assert torch.equal(trainer.state.model.upsample.bias, before)


def test_a_failing_sample_does_not_end_the_training(prepared, tmp_path, monkeypatch, caplog):
    def fail(self, model, valset):
        raise FastglowError("it is silent")

    monkeypatch.setattr("fastglow.train.tasks.WaveGlowTask.sample", fail)
    with caplog.at_level(logging.WARNING):
        run("waveglow", prepared, tmp_path, max_iterations=3, epochs_per_validation=1)
    assert "no validation sample at iteration 3: it is silent" in caplog.text


def test_an_error_in_a_loader_process_is_one_line(prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    (path,) = folder.glob("*.mel")
    path.write_bytes(bytes(path.stat().st_size))
    message = r"\.mel is damaged in the clip .*: run `fastglow prepare` again, which makes it anew$"
    with pytest.raises(FastglowError, match=message) as raised:
        run("tacotron2", folder, tmp_path / "run", num_workers=1)
    assert "\n" not in str(raised.value)


def test_old_checkpoints_are_removed_when_asked(prepared, tmp_path):
    run("waveglow", prepared, tmp_path, max_iterations=5, iters_per_checkpoint=1, keep_checkpoints=2)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint_4.pt", "checkpoint_5.pt"]


def test_a_signal_ends_the_run_with_a_checkpoint(prepared, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def step_and_signal(self, *args, **options):
        if self.state.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    monkeypatch.setattr(TrainStep, "__call__", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    path = run("waveglow", prepared, tmp_path, max_iterations=100)
    assert path.name == "checkpoint_3.pt"
    assert signal.getsignal(signal.SIGTERM) is before


def test_existing_run_is_not_overwritten(prepared, tmp_path):
    run("waveglow", prepared, tmp_path, max_iterations=1)
    with pytest.raises(FastglowError, match="already holds checkpoints: pass --resume"):
        run("waveglow", prepared, tmp_path, max_iterations=1)


@pytest.mark.parametrize("model", MODELS)
def test_validation_means_do_not_depend_on_the_number_of_processes(model, prepared, tmp_path, monkeypatch):
    """Seven items in batches of two: what three processes add up is what one computes."""

    def shares(world_size):
        gathered = []
        monkeypatch.setattr(Ranks, "gather", lambda self, value: (gathered.append(value), [value])[1])
        monkeypatch.setattr(Ranks, "broadcast_buffers", lambda self, module: None)
        for rank in range(world_size):
            config, model_config = configs(
                model, folder, tmp_path / f"{world_size}-{rank}", batch_size=2, keep_best=False
            )
            trainer = Trainer(model, config, model_config, progress=False)
            trainer.ranks = Ranks(rank, world_size)
            monkeypatch.setattr(type(trainer.task), "sample", no_sample)
            trainer.validate()
        return [value[0] for value in gathered if isinstance(value, tuple)]

    def no_sample(self, network, valset):
        raise FastglowError("not wanted here")

    def validate_all(items):
        items["validation"] = [replace(item, id=f"{item.id}-again") for item in items["train"]]

    folder = rewritten(prepared, tmp_path / "data", validate_all)
    (whole,) = shares(1)
    parts = shares(3)
    assert len(parts) == 3 and all(part.keys() == whole.keys() for part in parts)
    for name, total in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(total, rel=1e-12)
        assert all(0 < abs(part[name]) < abs(total) for part in parts)
