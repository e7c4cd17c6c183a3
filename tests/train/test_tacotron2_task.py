"""Tacotron 2's training: dropped frames, phones, the initial bias."""

import re

import numpy as np
import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config
from fastglow.text import Lexicon, sequence_to_text
from fastglow.train import data
from fastglow.train.loop import Trainer, train
from fastglow.train.reporting import Reporter

from .conftest import SMALL_TACOTRON2, configs


def tacotron2_trainer(prepared, out, **options):
    config, model_config = configs("tacotron2", prepared, out, **options)
    return Trainer("tacotron2", config, model_config, progress=False)


def prenet_input_and_target(trainer, batch):
    """The prenet's input, [steps, B, n_frames_per_step * n_mel_channels], and the target of a batch's losses."""
    seen = []
    handles = [
        trainer.state.model.decoder.prenet.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        trainer.task.criterion.register_forward_pre_hook(lambda module, args: seen.append(args[1][0])),
    ]
    trainer.task.losses(trainer.state.model, batch)
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
    assert torch.equal(by_step.amin(dim=2), by_step.amax(dim=2))  # all channels and frames of a step are equal
    assert by_step.amin(dim=2).mean().item() == pytest.approx(1 - p, abs=0.02)  # standard deviation 0.005 at most


def test_no_frame_is_dropped_without_the_option_or_in_validation(prepared, tmp_path, monkeypatch):
    def no_sample(self, model, valset):
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
        trainer.state.model.train()
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


def test_a_model_without_phones_takes_no_lexicon(prepared, lexicon_file, tmp_path):
    config, _ = configs("tacotron2", prepared, tmp_path, lexicon=str(lexicon_file), max_iterations=1)
    letters_only = Tacotron2Config(**SMALL_TACOTRON2, n_symbols=64)
    with pytest.raises(FastglowError, match="can have symbol 147, the model has n_symbols=64: use --n-symbols 148"):
        train("tacotron2", config, letters_only, progress=False)
    config.p_arpabet = 0.0
    assert train("tacotron2", config, letters_only, progress=False).exists()


def test_initial_mel_bias_is_the_mean_mel(prepared, tmp_path):
    config, model_config = configs("tacotron2", prepared, tmp_path, init_mel_bias=True)
    trainer = Trainer("tacotron2", config, model_config, progress=False)
    mels = [trainer.task.dataset.mel(item).astype(np.float64) for item in trainer.task.dataset.items["train"]]
    expected = np.mean([mel.mean(axis=1) for mel in mels], axis=0)
    bias = trainer.state.model.decoder.linear_projection.linear_layer.bias.detach().numpy()
    np.testing.assert_allclose(bias.reshape(4, 80), np.tile(expected, (4, 1)), atol=1e-5)


def test_texts_are_cleaned_and_encoded_once(prepared, tmp_path, monkeypatch):
    calls = {"clean": 0, "encode": 0}

    def counted(name):
        function = getattr(data, name)

        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return call

    for name in calls:
        monkeypatch.setattr(data, name, counted(name))
    trainer = tacotron2_trainer(prepared, tmp_path, epochs=2, epochs_per_validation=1, validations_per_sample=1)
    trainer.run()
    assert len(list((tmp_path / "samples").glob("*.wav"))) == 2
    assert calls == {"clean": 8, "encode": 8}
