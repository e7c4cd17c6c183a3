"""The training loop of both models on a handful of clips."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastglow
from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config, WaveGlowConfig
from fastglow.text import Lexicon, sequence_to_text
from fastglow.train.checkpointing import find_newest_checkpoint, load_training_checkpoint
from fastglow.train.config import Tacotron2TrainConfig, TrainConfig, WaveGlowTrainConfig
from fastglow.train.loop import Trainer, train
from fastglow.train.manifest import PreparedDataset
from fastglow.train.reporting import Reporter

from .conftest import SMALL_TACOTRON2, SMALL_WAVEGLOW

MODELS = ["tacotron2", "waveglow"]


def configs(model, data, out, **options):
    options = {
        "device": "cpu",
        "num_workers": 0,
        "batch_size": 3,
        "tensorboard": False,
        "epochs_per_validation": 1000,
        "learning_rate": 5e-3,
        **options,
    }
    if model == "tacotron2":
        return (
            Tacotron2TrainConfig(data=str(data), out=str(out), guided_attention_weight=1.0, **options),
            Tacotron2Config(**SMALL_TACOTRON2),
        )
    return (
        WaveGlowTrainConfig(data=str(data), out=str(out), segment_length=1024, **options),
        WaveGlowConfig(**SMALL_WAVEGLOW),
    )


def run(model, data, out, **options):
    return train(model, *configs(model, data, out, **options), progress=False)


def validation_loss(model, data, out, **options):
    config, model_config = configs(model, data, out, **options)
    trainer = Trainer(model, config, model_config, progress=False)
    losses = [
        trainer.task.losses(trainer.model.eval(), trainer.task.collate([item]))["loss"] for item in trainer.trainset
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
from fastglow.train import loop
from fastglow.cli import main
step = loop.Trainer._step
def step_or_die(self, batch):
    if self.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
loop.Trainer._step = step_or_die
sys.exit(main(sys.argv[1:]))
"""


def options_of(config):
    """Command-line options of a model's config."""
    for name, value in config.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "WN_config":
            yield from ("--wn-layers", str(value["n_layers"]), "--wn-channels", str(value["n_channels"]))
        elif value is True:
            yield flag
        else:
            yield from (flag, str(value))


def command_line(model, data, out, *extra):
    own = ["--guided-attention-weight", "1"] if model == "tacotron2" else ["--segment-length", "1024"]
    small = SMALL_TACOTRON2 if model == "tacotron2" else SMALL_WAVEGLOW
    return [
        *("train", model, "--data", str(data), "--out", str(out), "--batch-size", "3", "--learning-rate", "5e-3"),
        *(
            "--device",
            "cpu",
            "--num-workers",
            "0",
            "--no-tensorboard",
            "--quiet",
            "--iters-per-checkpoint",
            "3",
            "--max-iterations",
            "8",
        ),
        *("--epochs-per-validation", "3"),
        *own,
        *options_of(small),
        *extra,
    ]


@pytest.mark.parametrize("model", MODELS)
def test_killed_and_resumed_equals_uninterrupted(model, prepared, lexicon_file, tmp_path):
    """Killed in the middle of an epoch, two iterations after a checkpoint; one validation lies before and one after."""
    random_input = ("--cmudict-path", str(lexicon_file), "--p-arpabet", "0.5", "--p-frame-dropout", "0.3")
    extra = random_input if model == "tacotron2" else ()
    assert main(command_line(model, prepared, tmp_path / "whole", *extra)) == 0
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *command_line(model, prepared, tmp_path / "killed", *extra)],
        env={**os.environ, "PYTHONPATH": str(root)},
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
    assert (whole["epoch"], whole["batch"]) == (resumed["epoch"], resumed["batch"]) == (4, 0)


def tacotron2_trainer(prepared, out, **options):
    config, model_config = configs("tacotron2", prepared, out, **options)
    return Trainer("tacotron2", config, model_config, progress=False)


def prenet_input_and_target(trainer, batch):
    """What the losses of a batch show the prenet, [steps, B, n_frames_per_step * n_mel_channels], and their target."""
    seen = []
    handles = [
        trainer.model.decoder.prenet.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        trainer.task.criterion.register_forward_pre_hook(lambda module, args: seen.append(args[1][0])),
    ]
    trainer.task.losses(trainer.model, batch)
    for handle in handles:
        handle.remove()
    prenet_input, target = seen
    return prenet_input, target


def test_dropped_frames_are_zeros_for_whole_steps_of_the_prenet(prepared, tmp_path):
    trainer = tacotron2_trainer(prepared, tmp_path, p_frame_dropout=0.4)
    batch = trainer.task.collate([trainer.trainset[i] for i in range(5)])
    n_channels, r = 80, SMALL_TACOTRON2["n_frames_per_step"]
    before = batch.mel.clone()
    frames, target = prenet_input_and_target(trainer, batch)
    assert torch.equal(target, before)
    assert torch.equal(batch.mel, before)
    go_frame, steps = frames[0], frames[1:]
    assert not go_frame.any()
    assert steps.shape == (before.shape[2] // r, 5, r * n_channels)
    told, dropped = 0, 0
    for t, step in enumerate(steps):
        for b, row in enumerate(step):
            shown = before[b, :, t * r : (t + 1) * r].T.flatten()
            if shown.any():  # the rest is padding
                told += 1
                dropped += not row.any()
                assert not row.any() or torch.equal(row, shown)
    assert 0.3 < dropped / told < 0.5


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_share_of_dropped_steps(prepared, tmp_path, p):
    task = tacotron2_trainer(prepared, tmp_path, p_frame_dropout=p).task
    kept = task.drop_frames(torch.ones(100, 80, 4 * 100))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    by_step = kept.unflatten(2, (100, 4)).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(by_step.amin(dim=2), by_step.amax(dim=2))  # all channels and frames of a step alike
    assert by_step.amin(dim=2).mean().item() == pytest.approx(1 - p, abs=0.02)  # standard deviation 0.005 at most


def test_no_frame_is_dropped_without_the_option_or_in_validation(prepared, tmp_path, monkeypatch):
    def no_sample(self, model):
        raise FastglowError("not wanted here")

    monkeypatch.setattr("fastglow.train.tasks.Tacotron2Task.sample", no_sample)
    means = {}
    for p in (0.0, 0.9):
        trainer = tacotron2_trainer(prepared, tmp_path / str(p), p_frame_dropout=p)
        batch = trainer.task.collate([trainer.trainset[i] for i in range(3)])
        steps = batch.mel.transpose(1, 2).unflatten(1, (-1, 4)).flatten(2).transpose(0, 1)
        with Reporter(trainer.out, tensorboard=False) as trainer.reporter:
            means[p] = trainer.validate()["loss"]
        assert torch.equal(prenet_input_and_target(trainer, batch)[0][1:], steps)
        trainer.model.train()
        assert torch.equal(prenet_input_and_target(trainer, batch)[0][1:], steps) == (p == 0)
    assert means[0.0] == means[0.9]


@pytest.mark.parametrize(("p_arpabet", "validation"), [(0.0, "You were engaged."), (0.5, None), (1.0, None)])
def test_validation_reads_phones_wherever_training_may(prepared, lexicon_file, tmp_path, p_arpabet, validation):
    trainer = tacotron2_trainer(prepared, tmp_path, lexicon=str(lexicon_file), p_arpabet=p_arpabet)
    read = [sequence_to_text(symbols) for _, symbols, _ in trainer.valset]
    words = [item.text.lower() for item in trainer.valset.items]
    lexicon = Lexicon(lexicon_file)
    if p_arpabet:
        words = ["".join(f"{{{lexicon(w)}}}" if lexicon(w) else w for w in re.split(r"(\W+)", text)) for text in words]
    assert read == words


def test_workers_and_validation_change_nothing(prepared, tmp_path):
    plain = run("waveglow", prepared, tmp_path / "a", max_iterations=4)
    busy = run("waveglow", prepared, tmp_path / "b", max_iterations=4, num_workers=1, epochs_per_validation=1)
    plain, busy = (load_training_checkpoint(path, "waveglow")["state_dict"] for path in (plain, busy))
    assert all(torch.equal(plain[name], busy[name]) for name in plain)


def test_tensorboard_pictures_and_sound(prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("tacotron2", prepared, tmp_path, max_iterations=2, tensorboard=True, epochs_per_validation=1)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/guided_attention_loss", "train/grad_norm", "validation/loss"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert tags["images"] == ["validation/mel"]
    assert tags["audio"] == ["validation/audio"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["00000002.png", "00000002.wav"]


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


def test_loss_that_is_not_finite_stops_with_the_batch_named(prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    dataset = PreparedDataset.open(folder)
    bad = dataset.items["train"][4]
    np.save(dataset.path("mels", bad.id), np.full_like(dataset.mel(bad), np.nan))
    with pytest.raises(FastglowError, match=rf"loss is nan at iteration \d+, .*{bad.id}"):
        run("tacotron2", folder, tmp_path / "run", max_iterations=10)


def test_newest_valid_checkpoint_is_found(prepared, tmp_path, caplog):
    run("waveglow", prepared, tmp_path, max_iterations=3, iters_per_checkpoint=1)
    newest = tmp_path / "checkpoint_3.pt"
    newest.write_bytes(newest.read_bytes()[:-500])
    (tmp_path / "checkpoint_10.tmp").write_bytes(b"left by a crash")
    with caplog.at_level(logging.WARNING):
        assert find_newest_checkpoint(tmp_path, "waveglow")["iteration"] == 2
    assert "passing over " in caplog.text and "checkpoint_3.pt: damaged or truncated file" in caplog.text
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


def test_options_that_differ_are_told_on_resuming(prepared, tmp_path, caplog):
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
    # The square root's slope at 0 is infinite, its value is not.
    monkeypatch.setattr(
        trainer.task, "losses", lambda m, b: {"loss": losses(m, b)["loss"] + (0 * m.upsample.bias[0]).abs().sqrt()}
    )
    before = trainer.model.upsample.bias.detach().clone()
    with pytest.raises(FastglowError, match="the gradient's norm is nan at iteration 0, .*arctic"):
        trainer._step(trainer.task.collate([trainer.trainset[0]]))
    assert torch.equal(trainer.model.upsample.bias, before)


def test_a_sample_that_is_no_sound_does_not_end_the_training(prepared, tmp_path, monkeypatch, caplog):
    def fail(self, model):
        raise FastglowError("it is silent")

    monkeypatch.setattr("fastglow.train.tasks.WaveGlowTask.sample", fail)
    with caplog.at_level(logging.WARNING):
        run("waveglow", prepared, tmp_path, max_iterations=2, epochs_per_validation=1)
    assert "no validation sample at iteration 2: it is silent" in caplog.text


def test_an_error_in_a_loader_process_is_one_line(prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    for path in (folder / "mels").iterdir():
        path.unlink()
    with pytest.raises(FastglowError, match=r"\.npy cannot be read .*: run `fastglow prepare` again$") as raised:
        run("tacotron2", folder, tmp_path / "run", num_workers=1)
    assert "\n" not in str(raised.value)


def test_old_checkpoints_are_removed_when_asked(prepared, tmp_path):
    run("waveglow", prepared, tmp_path, max_iterations=5, iters_per_checkpoint=1, keep_checkpoints=2)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint_4.pt", "checkpoint_5.pt"]


def test_a_signal_ends_the_run_with_a_checkpoint(prepared, tmp_path, monkeypatch):
    step = Trainer._step

    def step_and_signal(self, batch):
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    path = run("waveglow", prepared, tmp_path, max_iterations=100)
    assert path.name == "checkpoint_3.pt"
    assert signal.getsignal(signal.SIGTERM) is before


def test_existing_run_is_not_overwritten(prepared, tmp_path):
    run("waveglow", prepared, tmp_path, max_iterations=1)
    with pytest.raises(FastglowError, match="holds checkpoints already: pass --resume"):
        run("waveglow", prepared, tmp_path, max_iterations=1)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"checkpoint_path": "absent.pt"}, "absent.pt does not exist"),
        ({"init_from": "absent.pt"}, "absent.pt"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
        ({"batch_size": 0}, "batch_size 0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate nan must be positive"),
        ({"num_workers": -1}, "num_workers -1 must not be negative"),
        ({"seed": 2**63}, "does not fit 64 bits"),
        ({"data": "nowhere"}, "run `fastglow prepare"),
    ],
)
def test_bad_options_are_one_line(prepared, tmp_path, options, pattern):
    options = {"data": prepared, **options}
    with pytest.raises(FastglowError, match=pattern) as raised:
        run("waveglow", options.pop("data"), tmp_path, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        *(({"p_arpabet": p}, rf"p_arpabet {p} must be from 0 to 1$") for p in (-0.01, 1.01, float("nan"))),
        *(
            ({"p_frame_dropout": p}, rf"p_frame_dropout {p} must be at least 0 and less than 1$")
            for p in (-0.01, 1.0, 1.5, float("nan"))
        ),
        ({"lexicon": "absent.txt"}, "cannot read the lexicon absent.txt: No such file or directory$"),
    ],
)
def test_bad_options_of_tacotron2_are_one_line(prepared, tmp_path, options, pattern):
    with pytest.raises(FastglowError, match=pattern) as raised:
        run("tacotron2", prepared, tmp_path, max_iterations=1, **options)
    assert "\n" not in str(raised.value)


def test_a_model_without_phones_takes_no_lexicon(prepared, lexicon_file, tmp_path):
    config, _ = configs("tacotron2", prepared, tmp_path, lexicon=str(lexicon_file), max_iterations=1)
    letters_only = Tacotron2Config(**SMALL_TACOTRON2, n_symbols=64)
    with pytest.raises(FastglowError, match="can have symbol 147, the model n_symbols 64: use --n-symbols 148"):
        train("tacotron2", config, letters_only, progress=False)
    config.p_arpabet = 0.0
    assert train("tacotron2", config, letters_only, progress=False).exists()


def test_models_that_do_not_fit_the_data(prepared, tmp_path):
    config, _ = configs("tacotron2", prepared, tmp_path)
    with pytest.raises(FastglowError, match="40 mel channels"):
        train("tacotron2", config, Tacotron2Config(n_mel_channels=40), progress=False)
    config, _ = configs("waveglow", prepared, tmp_path)
    with pytest.raises(FastglowError, match="upsample_stride 200 must equal"):
        train("waveglow", config, WaveGlowConfig(upsample_stride=200), progress=False)


def test_fine_tuning_from_another_shape_names_the_option_and_the_layers(prepared, tmp_path):
    path = run("waveglow", prepared, tmp_path / "run", max_iterations=1)
    config, _ = configs("waveglow", prepared, tmp_path / "tuned", init_from=str(path))
    other = WaveGlowConfig(**{**SMALL_WAVEGLOW, "WN_config": {"n_layers": 2, "n_channels": 12, "kernel_size": 3}})
    with pytest.raises(
        FastglowError, match=r"n_channels 8 \(this run 12\): pass --wn-channels 8, or .* --ignore-layers WN.3$"
    ):
        train("waveglow", config, other, progress=False)


def test_learning_rate_schedule():
    def rates(**options):
        config = TrainConfig("", "", learning_rate=1.0, anneal_steps=[2, 4, 6], **options)
        return [config.learning_rate_at(epoch) for epoch in range(8)]

    assert rates(anneal_factor=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rates(anneal_factor=0.3) == pytest.approx([1, 1, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03])


def test_initial_mel_bias_is_the_mean_mel(prepared, tmp_path):
    config, model_config = configs("tacotron2", prepared, tmp_path, init_mel_bias=True)
    trainer = Trainer("tacotron2", config, model_config, progress=False)
    mels = [trainer.task.dataset.mel(item).astype(np.float64) for item in trainer.task.dataset.items["train"]]
    expected = np.mean([mel.mean(axis=1) for mel in mels], axis=0)
    bias = trainer.model.decoder.linear_projection.linear_layer.bias.detach().numpy()
    np.testing.assert_allclose(bias.reshape(4, 80), np.tile(expected, (4, 1)), atol=1e-5)


def test_commands_print_one_line_and_exit_2(prepared, tmp_path, capsys):
    assert main(["train", "waveglow", "--data", "nowhere", "--out", str(tmp_path)]) == 2
    assert main(["prepare", "nowhere", "--out", str(tmp_path)]) == 2
    tacotron2 = ["train", "tacotron2", "--data", str(prepared), "--out", str(tmp_path)]
    assert main([*tacotron2, "--p-frame-dropout", "1"]) == 2
    assert main([*tacotron2, "--lexicon", str(tmp_path / "absent.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "run `fastglow prepare" in lines[0]
    assert "nowhere does not exist" in lines[1]
    assert "p_frame_dropout 1.0 must be" in lines[2]
    assert "cannot read the lexicon" in lines[3]


def test_prepare_command_lists_what_it_left_out(clips, tmp_path, capsys):
    filelist = tmp_path / "list.txt"
    good = clips / "wavs" / "arctic_a0158_1592713801.ogg"
    filelist.write_text(f"{good}|Does that look good.\nmissing.wav|Words.\n")
    assert main(["prepare", str(filelist), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    output = capsys.readouterr()
    assert "1 items to train on, 0 to validate" in output.out
    assert "left out missing: " in output.err
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"] == {"train": 1, "validation": 0}


def test_options_from_a_config_file(prepared, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"optimization": {"learning-rate": 0.25, "batch_size": 2}, "max-iterations": 1}))
    arguments = command_line("waveglow", prepared, tmp_path / "run")
    for flag in ("--learning-rate", "--max-iterations"):
        i = arguments.index(flag)
        del arguments[i : i + 2]
    assert main([*arguments, "--config-file", str(file), "--disable-uniform-initialize-bn-weight"]) == 0
    training = load_training_checkpoint(tmp_path / "run" / "checkpoint_1.pt", "waveglow")["training"]
    assert (training["learning_rate"], training["batch_size"]) == (0.25, 3)  # the command line goes first
    assert not training["uniform_initialize_bn_weight"]
    cases = ('{"no-such": 1}', "sets no_such"), ("[1]", "no JSON object"), ("[" * 100_000, "no JSON object")
    for content, pattern in (*cases, ('{"a": ' + "9" * 10_000 + "}", "no JSON object")):
        file.write_text(content)
        capsys.readouterr()
        assert main([*arguments, "--config-file", str(file)]) == 2
        assert pattern in capsys.readouterr().err
