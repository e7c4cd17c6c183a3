"""What a run survives: full disks, power cuts, damaged files, losses that are not finite. Nothing is lost."""

import errno
import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.history import read_history
from fastglow.train.loop import train
from fastglow.train.tasks import TASKS

from .conftest import ENVIRONMENT, MODELS, command_line, configs, rewritten, run


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".pt" or path.name.endswith(".tmp"))


def no_space(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("when", ["writing", "syncing"])
def test_a_full_disk_leaves_the_older_checkpoints(prepared, tmp_path, monkeypatch, when):
    run("waveglow", prepared, tmp_path, max_iterations=2, iters_per_checkpoint=1, keep_checkpoints=2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert sorted(before) == ["checkpoint_1.pt", "checkpoint_2.pt"]
    save = torch.save

    def save_half(checkpoint, file):
        save(checkpoint, file)
        file.truncate(1000)
        no_space(file.name)

    with monkeypatch.context() as patch:
        if when == "writing":
            patch.setattr(torch, "save", save_half)
        else:
            patch.setattr(os, "fsync", no_space)
        with pytest.raises(
            FastglowError, match=r"checkpoint_3\.pt cannot be written .*No space.* pass --resume"
        ) as error:
            run("waveglow", prepared, tmp_path, max_iterations=3, keep_checkpoints=2, resume=True)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["checkpoint_1.pt", "checkpoint_2.pt"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert run("waveglow", prepared, tmp_path, max_iterations=3, keep_checkpoints=2, resume=True).exists()
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_3.pt"]


LIMITED_RUN = """
import resource, signal, sys
import torch
torch.set_num_threads(1)
from fastglow.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_a_file_that_the_system_cuts_short_is_an_error_of_one_line(prepared, tmp_path):
    path = run("tacotron2", prepared, tmp_path / "run", max_iterations=1)
    arguments = command_line("tacotron2", prepared, tmp_path / "run", "--resume", "--max-iterations", "2")
    limit = path.stat().st_size // 2
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_RUN, str(limit), *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "checkpoint_2.pt cannot be written ([Errno 27] File too large)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "run") == ["checkpoint_1.pt"]
    assert load_training_checkpoint(path, "tacotron2")["iteration"] == 1


def test_files_reach_the_disk_before_they_replace_others(prepared, tmp_path, monkeypatch):
    """Of every checkpoint, the best one included: its data, then its name, then older files go."""
    calls = []
    fsync, replace, unlink = os.fsync, os.replace, type(tmp_path).unlink

    def note(what, call):
        def noted(*args, **options):
            path = os.readlink(f"/proc/self/fd/{args[0]}") if what == "sync" else str(args[-1])
            if "checkpoint" in path or path == str(tmp_path):
                calls.append((what, os.path.basename(path)))
            return call(*args, **options)

        return noted

    monkeypatch.setattr(os, "fsync", note("sync", fsync))
    monkeypatch.setattr(os, "replace", note("rename", replace))
    monkeypatch.setattr(
        type(tmp_path), "unlink", lambda self, missing_ok=False: note("delete", unlink)(self, missing_ok=missing_ok)
    )
    run("waveglow", prepared, tmp_path, epochs=2, epochs_per_validation=1, epochs_per_checkpoint=1, keep_checkpoints=1)
    calls = [(what, name) for what, name in calls if (what, name.endswith(".tmp")) != ("delete", True)]
    written = ["checkpoint_best.pt", "checkpoint_3.pt", "checkpoint_best.pt", "checkpoint_6.pt"]
    for path in written:
        (sync, temporary), *rest = calls[:3]
        assert sync == "sync" and temporary.startswith(f".{path}")
        assert rest == [("rename", path), ("sync", tmp_path.name)]
        calls = calls[3:]
        if path == "checkpoint_6.pt":
            assert calls == [("delete", "checkpoint_3.pt")]
    assert names(tmp_path) == ["checkpoint_6.pt", "checkpoint_best.pt"]


@pytest.mark.parametrize("model", MODELS)
def test_a_truncated_newest_checkpoint_is_skipped(model, prepared, tmp_path, caplog):
    whole = run(model, prepared, tmp_path / "whole", max_iterations=6)
    run(model, prepared, tmp_path / "cut", max_iterations=4, iters_per_checkpoint=2)
    newest = tmp_path / "cut" / "checkpoint_4.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with caplog.at_level(logging.INFO):
        again = run(model, prepared, tmp_path / "cut", max_iterations=6, resume=True)
    assert "skipping " in caplog.text and "checkpoint_4.pt: damaged or truncated" in caplog.text
    assert "resumed at epoch 0, iteration 2" in caplog.text
    whole, again = (load_training_checkpoint(path, model)["state_dict"] for path in (whole, again))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_loss_that_is_not_finite_names_the_items_of_the_pass(poisoned, tmp_path, amp):
    folder, bad = poisoned
    with pytest.raises(
        FastglowError, match=r"loss is nan at iteration \d, batch \d of epoch 0, items .*: look at"
    ) as error:
        run("tacotron2", folder, tmp_path / "run", amp=amp, batch_size=1, accumulate=2, epochs=1)
    assert bad.id in str(error.value)
    assert not names(tmp_path / "run")


def test_float16_skips_the_item_and_stops_only_if_it_is_all(poisoned, tmp_path):
    folder, _ = poisoned
    options = {"amp": "fp16", "batch_size": 1, "epochs": 1}
    run("tacotron2", folder, tmp_path / "run", **options)
    skipped = [record.values["skipped"] for record in read_history(tmp_path / "run") if record.group == "train"]
    assert sum(skipped) >= 1 and len(skipped) == 7
    weights = load_training_checkpoint(tmp_path / "run" / "checkpoint_7.pt", "tacotron2")["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values()), "batch statistics too"
    folder = rewritten(folder, tmp_path / "all", change=lambda item, mel: np.full_like(mel, np.nan))
    with pytest.raises(FastglowError, match="3 updates in a row .* max_skipped=2 is the limit"):
        run("tacotron2", folder, tmp_path / "limited", **options, max_skipped=2)
    with pytest.raises(
        FastglowError, match="loss scale fell to 0.5 after 3 updates .*; the last: loss is nan .*, items"
    ):
        run("tacotron2", folder, tmp_path / "floor", **options, init_loss_scale=4.0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(model, amp, prepared, tmp_path):
    """With everything that has a state: scale, average, warm-up, accumulation, best loss, random draws."""
    options = {
        "amp": amp,
        "init_loss_scale": 2.0**18,
        "ema": 0.9,
        "warmup": 5,
        "accumulate": 2,
        "batch_size": 1,
        "bucket_batches": 2,
        "epochs_per_validation": 1,
    }
    if model == "tacotron2":
        options |= {"p_frame_dropout": 0.2}
    whole = run(model, prepared, tmp_path / "whole", max_iterations=6, **options)
    run(model, prepared, tmp_path / "parts", max_iterations=3, **options)
    parts = run(model, prepared, tmp_path / "parts", max_iterations=6, resume=True, **options)
    whole, parts = (load_training_checkpoint(path, model) for path in (whole, parts))
    for key in ("state_dict", "trained_state_dict"):
        assert all(torch.equal(tensor, parts[key][name]) for name, tensor in whole[key].items()), key
    for key in ("loss_scale", "ema_updates", "best_loss", "done", "epoch", "iteration"):
        assert whole[key] == parts[key], key
    assert any(
        not torch.equal(whole["state_dict"][name], tensor) for name, tensor in whole["trained_state_dict"].items()
    )


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(prepared, tmp_path, monkeypatch):
    """Also across a resumption; a loss that is NaN is not the lowest."""
    values = iter([3.0, 2.0, float("nan"), 2.5, 1.0, 4.0])
    losses = TASKS["waveglow"].losses

    def planned(self, model, batch):
        return losses(self, model, batch) if model.training else {"loss": torch.tensor(next(values))}

    monkeypatch.setattr(TASKS["waveglow"], "losses", planned)
    options = {"epochs_per_validation": 1, "batch_size": 7}
    best = []
    for epochs in range(1, 7):
        run("waveglow", prepared, tmp_path, epochs=epochs, resume=epochs > 1, **options)
        checkpoint = load_training_checkpoint(tmp_path / "checkpoint_best.pt", "waveglow")
        best.append((checkpoint["epoch"], checkpoint["best_loss"]))
    assert best == [(1, 3.0), (2, 2.0), (2, 2.0), (2, 2.0), (5, 1.0), (5, 1.0)]


def test_no_best_checkpoint_if_it_is_not_wanted(prepared, tmp_path):
    run("waveglow", prepared, tmp_path, epochs=1, epochs_per_validation=1, keep_best=False)
    assert names(tmp_path) == ["checkpoint_3.pt"]


@pytest.mark.parametrize("model", MODELS)
def test_validation_and_checkpoints_have_the_averaged_weights(model, prepared, tmp_path, monkeypatch):
    validated = []
    losses = TASKS[model].losses

    def noted(self, network, batch):
        if not network.training:
            validated.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return losses(self, network, batch)

    monkeypatch.setattr(TASKS[model], "losses", noted)
    path = run(model, prepared, tmp_path, epochs=1, epochs_per_validation=1, ema=0.5)
    checkpoint = load_training_checkpoint(path, model)
    (averaged,) = validated
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in checkpoint["state_dict"].items())


def test_an_average_may_begin_and_end_in_a_run(prepared, tmp_path):
    """It begins with the weights; without it, the run goes on with the trained ones."""
    options = {"max_iterations": 4, "resume": True}
    run("waveglow", prepared, tmp_path / "a", max_iterations=2, ema=0.9)
    trained = load_training_checkpoint(tmp_path / "a" / "checkpoint_2.pt", "waveglow")["trained_state_dict"]
    plain = run("waveglow", prepared, tmp_path / "b", max_iterations=2)
    plain = load_training_checkpoint(plain, "waveglow")["state_dict"]
    assert all(torch.equal(tensor, plain[name]) for name, tensor in trained.items())
    config, model_config = configs("waveglow", prepared, tmp_path / "a", ema=0.0, **options)
    without = train("waveglow", config, model_config, progress=False, given={"ema"})
    config, model_config = configs("waveglow", prepared, tmp_path / "b", ema=0.9, **options)
    begun = train("waveglow", config, model_config, progress=False, given={"ema"})
    without, begun = (load_training_checkpoint(path, "waveglow") for path in (without, begun))
    assert "trained_state_dict" not in without and begun["ema_updates"] == 2
    for name, tensor in without["state_dict"].items():
        assert torch.equal(tensor, begun["trained_state_dict"][name]), name


def test_the_profile_and_the_history_are_written(prepared, tmp_path, capfd):
    arguments = command_line("waveglow", prepared, tmp_path / "run", "--profile", "2")
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["trace_6-7.json.gz"]
    first, *_ = read_history(tmp_path / "run")
    assert first.group == "run" and "global batch 3" in first.values["description"]
    for record in read_history(tmp_path / "run"):
        if record.group == "train":
            assert {
                "loss",
                "grad_norm",
                "items_per_second",
                "seconds_data",
                "seconds_model",
                "seconds_optimizer",
            } <= set(record.values)
            assert 0 < record.values["flop_utilisation"] < math.inf
