"""A training step makes the host wait for nothing that a GPU computes, until its results are read."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

from fastglow.train.loop import Trainer

from ..kernels.checks import host_syncs
from .conftest import MODELS, configs
from .host_waits import HostWait, no_host_waits

EVERY_TERM = {"l1_weight": 0.5, "upper_band_weight": 3.0, "delta_weight": 0.5, "ssim_weight": 0.1}
OPTIONS = {
    "float32": {},
    "bf16": {"amp": "bf16", "weight_decay": 0.0},
    "fp16": {"amp": "fp16", "init_loss_scale": 2.0**24, "ema": 0.9},
    "fixed scale": {"amp": "fp16", "loss_scale": "64", "accumulate": 2},
    "accumulate": {"accumulate": 2, "ema": 0.9, "warmup": 3},
}


def new_trainer(model, data, out, **options):
    if model == "tacotron2":
        options |= EVERY_TERM | {"p_frame_dropout": 0.3, "gate_positive_weight": 5.0}
    else:
        options |= {"stft_weight": 0.5}
    config, model_config = configs(model, data, out, batch_size=2, log_interval=4, **options)
    trainer = Trainer(model, config, model_config, progress=False)
    trainer.state.model.train()
    return trainer


def batches_of(trainer, step):
    accumulate = trainer.config.accumulate
    items = [trainer.trainset[(2 * step + i) % len(trainer.trainset)] for i in range(2 * accumulate)]
    return [trainer.task.collate(items[2 * i : 2 * i + 2]) for i in range(accumulate)], [1 / accumulate] * accumulate


def state_of(trainer):
    state = trainer.state
    tensors = [*state.model.parameters(), *state.model.buffers(), state.scaler.scale]
    if state.ema is not None:
        tensors += state.ema.model.state_dict().values()
    return tensors


@contextmanager
def to_a_device(trainer, put, monkeypatch):
    """`batch.to(device)` makes copies that count as the device's."""
    kind = type(trainer.task.collate([trainer.trainset[0]]))
    to = kind.to

    def moved(batch, device):
        batch = to(batch, device)
        values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        copies = {name: value.clone() for name, value in values.items() if isinstance(value, torch.Tensor)}
        put(copies.values())
        return dataclasses.replace(batch, **copies)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "to", moved)
        yield


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_reads_nothing_that_the_device_computes(model, options, prepared, tmp_path, monkeypatch):
    trainer = new_trainer(model, prepared, tmp_path, **options)
    steps = [batches_of(trainer, step) for step in range(4)]
    with no_host_waits(*state_of(trainer)) as put, to_a_device(trainer, put, monkeypatch):
        for batches, weights in steps:
            trainer.step(batches, weights)
            trainer.meter.finish_step(batches)
        with pytest.raises(HostWait):
            next(trainer.step.results())


@pytest.mark.parametrize(
    "read",
    [
        lambda loss, mask: loss.item(),
        lambda loss, mask: float(loss),
        lambda loss, mask: loss if loss > 0 else 2 * loss,
        lambda loss, mask: loss + mask.tolist()[0],
        lambda loss, mask: loss + mask.cpu()[0],
        lambda loss, mask: loss + mask[mask > 0].sum(),
        lambda loss, mask: loss + (mask > 0).nonzero().sum(),
        lambda loss, mask: loss + torch.masked_select(mask, mask > 0).sum(),
    ],
)
def test_what_waits_is_found(read, prepared, tmp_path, monkeypatch):
    trainer = new_trainer("waveglow", prepared, tmp_path)
    losses = trainer.task.losses_of

    def waiting(output, batch):
        loss = losses(output, batch)["loss"]
        read(loss, batch.audio[:, 0])
        return {"loss": loss}

    monkeypatch.setattr(trainer.task, "losses_of", waiting)
    batches, weights = batches_of(trainer, 0)
    with no_host_waits(*state_of(trainer)) as put, to_a_device(trainer, put, monkeypatch), pytest.raises(HostWait):
        trainer.step(batches, weights)


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_no_step_synchronises_with_a_gpu(model, options, noise, tmp_path):
    """After a first one, which compiles kernels, records the decoder's graphs and fills tables."""
    trainer = new_trainer(model, noise, tmp_path, device="cuda", **options)
    batches, weights = batches_of(trainer, 0)
    for _ in range(3):
        trainer.step(batches, weights)
    list(trainer.step.results())
    with host_syncs("error"):
        for _ in range(4):
            trainer.step(batches, weights)
            trainer.meter.finish_step(batches)
    assert len(list(trainer.step.results())) == 4
