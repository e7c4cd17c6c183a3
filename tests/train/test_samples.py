"""Validation samples: their length, how often, how many are kept; the warning about short clips."""

import logging
import shutil
import wave

import numpy as np
import pytest

from fastglow.errors import FastglowError
from fastglow.train import tasks
from fastglow.train.config import TrainConfig
from fastglow.train.loop import Trainer
from fastglow.train.manifest import PreparedDataset
from fastglow.train.reporting import Reporter
from fastglow.train.step import TrainStep
from fastglow.train.tasks import Sample

from .conftest import configs, run

RATE, HOP = 22050, 256


def trainer_of(model, prepared, out, **options):
    config, model_config = configs(model, prepared, out, **options)
    if model == "tacotron2":
        model_config.max_decoder_steps = 2000
    return Trainer(model, config, model_config, progress=False)


def never_stop(trainer):
    """Makes a gate that never fires, as at the start of a training."""
    gate = trainer.state.model.decoder.gate_layer.linear_layer
    gate.weight.data.zero_()
    gate.bias.data.fill_(-20)
    trainer.state.model.eval()


@pytest.mark.parametrize("n_frames_per_step", [1, 3, 4])
def test_a_model_that_never_stops_is_stopped_at_one_and_a_half_times_the_recording(
    prepared, tmp_path, n_frames_per_step
):
    config, model_config = configs("tacotron2", prepared, tmp_path)
    model_config.max_decoder_steps, model_config.n_frames_per_step = 2000, n_frames_per_step
    trainer = Trainer("tacotron2", config, model_config, progress=False)
    never_stop(trainer)
    sample = trainer.task.sample(trainer.state.model, trainer.valset)
    recorded = trainer.task.dataset.items["validation"][0].frames
    assert sample.mels["recorded"].shape[1] == recorded
    for n_frames in (sample.mels["predicted"].shape[1], len(sample.alignment) * n_frames_per_step):
        assert 0 <= n_frames - 1.5 * recorded < n_frames_per_step + 1
    assert len(sample.audio) <= sample.mels["predicted"].shape[1] * HOP
    assert trainer.state.model.decoder.max_decoder_steps == 2000


def test_a_lower_step_limit_of_the_model_holds(prepared, tmp_path):
    trainer = trainer_of("tacotron2", prepared, tmp_path)
    trainer.state.model.decoder.max_decoder_steps = 7
    never_stop(trainer)
    assert trainer.task.sample(trainer.state.model, trainer.valset).mels["predicted"].shape[1] == 7 * 4
    assert trainer.state.model.decoder.max_decoder_steps == 7


def test_an_error_leaves_the_step_limit_alone(prepared, tmp_path, monkeypatch):
    trainer = trainer_of("tacotron2", prepared, tmp_path)
    monkeypatch.setattr(trainer.state.model, "infer", lambda *args, **kw: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.task.sample(trainer.state.model, trainer.valset)
    assert trainer.state.model.decoder.max_decoder_steps == 2000


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_long_recordings_are_cut(prepared, tmp_path, monkeypatch, model, seconds):
    """All clips are longer than a sample may be: the shortest is used, and cut."""
    monkeypatch.setattr(tasks, "SAMPLE_SECONDS", seconds)
    trainer = trainer_of(model, prepared, tmp_path)
    if model == "tacotron2":
        never_stop(trainer)
    trainer.state.model.eval()
    sample = trainer.task.sample(trainer.state.model, trainer.valset)
    assert sample.mels["recorded"].shape[1] == int(seconds * RATE / HOP)
    longest = 1.5 * seconds if model == "tacotron2" else seconds
    assert longest * RATE - 6 * HOP < len(sample.audio) <= longest * RATE + 6 * HOP


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
def test_the_first_item_that_is_short_enough_is_sampled(prepared, tmp_path, monkeypatch, model):
    trainer = trainer_of(model, prepared, tmp_path)
    frames = [item.frames for item in trainer.trainset.items]
    for limit in (min(frames), sorted(frames)[2], max(frames)):
        monkeypatch.setattr(tasks, "SAMPLE_SECONDS", limit * HOP / RATE)
        index = trainer.task.sample_index(trainer.trainset)
        assert frames[index] <= limit and all(n > limit for n in frames[:index])
    monkeypatch.setattr(tasks, "SAMPLE_SECONDS", 0.001)
    assert trainer.task.sample_index(trainer.trainset) == frames.index(min(frames))


@pytest.mark.parametrize(
    ("options", "epochs_with_samples"),
    [
        ({"epochs_per_validation": 1, "validations_per_sample": 3}, [1, 4, 7]),
        ({"epochs_per_validation": 1, "validations_per_sample": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"epochs_per_validation": 2, "validations_per_sample": 2}, [2, 6]),
        ({"epochs_per_validation": 3, "validations_per_sample": 1}, [3, 6]),
        ({"epochs_per_validation": 1}, [1]),
        ({"epochs_per_validation": 9}, []),
    ],
)
def test_how_often_samples_are_written(prepared, tmp_path, monkeypatch, options, epochs_with_samples):
    written = []
    launched = []
    monkeypatch.setattr(TrainStep, "__call__", lambda self, batches, weights: launched.append(1))
    monkeypatch.setattr(
        TrainStep, "results", lambda self: [(launched.pop(), {"loss": 0.0, "items": 1.0}) for _ in list(launched)]
    )
    monkeypatch.setattr(tasks.WaveGlowTask, "losses", lambda self, model, batch: {"loss": batch.audio.sum()})
    monkeypatch.setattr(tasks.WaveGlowTask, "sample", lambda self, model, valset: None)
    monkeypatch.setattr(Reporter, "sample", lambda self, sample, rate, iteration: written.append(iteration))
    run("waveglow", prepared, tmp_path, epochs=8, **options)
    assert written == [3 * epoch for epoch in epochs_with_samples]  # three batches per epoch


def a_sample(seconds):
    mel = np.zeros((80, 10), np.float32)
    return Sample(np.zeros(int(seconds * RATE), np.float32), {"generated": mel, "recorded": mel}, None, "words")


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_only_the_newest_samples_are_kept(tmp_path, keep):
    iterations = [7, 20, 100, 99_999_999, 100_000_000]
    (tmp_path / "samples").mkdir()
    for name in ("notes.txt", "00000001.txt", "mine.wav"):
        (tmp_path / "samples" / name).touch()
    with Reporter(tmp_path, False, keep) as reporter:
        for iteration in iterations:
            reporter.sample(a_sample(0.01), RATE, iteration)
    kept = iterations[-keep:]
    expected = {f"{i:08d}{suffix}" for i in kept for suffix in (".png", ".wav")}
    assert {path.name for path in (tmp_path / "samples").iterdir()} == expected | {
        "notes.txt",
        "00000001.txt",
        "mine.wav",
    }


def test_samples_of_later_iterations_are_kept(tmp_path):
    """As are their checkpoints, if a run is resumed from an earlier one."""
    with Reporter(tmp_path, False, 2) as reporter:
        for iteration in (50, 60, 5, 6, 7):
            reporter.sample(a_sample(0.01), RATE, iteration)
    assert {path.stem for path in (tmp_path / "samples").iterdir()} == {"00000006", "00000007", "00000050", "00000060"}


def test_the_size_of_samples_early_in_a_run(prepared, tmp_path):
    """Six validations of a model that never stops: one sample, as long as the recording allows."""
    config, model_config = configs("tacotron2", prepared, tmp_path, epochs=6, epochs_per_validation=1, tensorboard=True)
    config.learning_rate = 1e-9
    model_config.max_decoder_steps = 2000
    trainer = Trainer("tacotron2", config, model_config, progress=False)
    never_stop(trainer)
    trainer.run()
    (path,) = (tmp_path / "samples").glob("*.wav")
    with wave.open(str(path)) as file:
        seconds = file.getnframes() / file.getframerate()
    recorded = trainer.task.dataset.items["validation"][0].samples / RATE
    assert recorded < seconds < 1.5 * recorded + 0.1
    logs = sum(file.stat().st_size for file in (tmp_path / "logs").iterdir())
    assert path.stat().st_size < logs < path.stat().st_size + 300_000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("validations_per_sample", 0, "validations_per_sample=0 must be positive"),
        ("validations_per_sample", -3, "validations_per_sample=-3 must be positive"),
        ("keep_samples", -1, "keep_samples=-1 must not be negative"),
    ],
)
def test_bad_options_are_named(name, value, message):
    with pytest.raises(FastglowError, match=message):
        TrainConfig("data", "out", **{name: value})


@pytest.mark.parametrize("rank", [0, 1, 4, 7])
def test_clips_shorter_than_a_segment_are_counted(prepared, tmp_path, caplog, rank):
    dataset = PreparedDataset.open(prepared)
    lengths = sorted(item.samples for item in dataset.items["train"])
    segment_length = [*lengths, lengths[-1] + 1][rank]
    n_short = sum(n < segment_length for n in lengths)
    n_held_out = sum(item.samples < segment_length for item in dataset.items["validation"])
    config, model_config = configs("waveglow", prepared, tmp_path)
    config.segment_length = segment_length
    with caplog.at_level(logging.WARNING):
        trainer = Trainer("waveglow", config, model_config, progress=False)
        trainer.task.build_dataset("validation")
    lines = [record.getMessage() for record in caplog.records]
    said = f"clips are shorter than --segment-length {segment_length}: their segments are padded with zeros"
    expected = [f"{n_short} of 7 train {said}"] * (n_short > 0)
    expected += [f"{n_held_out} of 1 validation {said}"] * (n_held_out > 0)
    assert lines == expected


def test_tacotron2_has_no_segments(prepared, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    with caplog.at_level(logging.WARNING):
        trainer_of("tacotron2", folder, tmp_path / "run")
    assert not caplog.records
