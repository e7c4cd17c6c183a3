"""Autocast, the scale of the loss, TF32, warm-up, and what the command makes of the options."""

import logging
import math

import pytest
import torch

from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.config import TrainConfig
from fastglow.train.device_step import DeviceStep
from fastglow.train.history import read_history
from fastglow.train.loop import Trainer
from fastglow.train.precision import LossScaler, pick_amp, tf32

from .conftest import MODELS, command_line, configs, run

CPU = torch.device("cpu")


class Line(torch.nn.Module):
    """With a buffer that a forward pass spoils."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.mean.add_(x)
        return (self.weight * x).sum()


def new_scaler(amp="fp16", loss_scale="dynamic", init_scale=8.0, max_skipped=100):
    model = Line()
    scaler = LossScaler(CPU, amp, loss_scale, init_scale, max_skipped)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=True)
    return scaler, model.weight, DeviceStep(model, optimizer, scaler, None, max_norm=1e6)


def update(scaler, parameter, step, gradient, beside=0.0):
    """An update with d loss / d parameter = `gradient`, and `beside` in the loss; whether it was made."""
    step.begin()
    step.backward({"loss": step.model(torch.tensor(gradient)) + beside}, 1.0)
    step.update()
    ((*_, skipped, scale),) = step.read(1).tolist()
    scaler.judge(bool(skipped), scale)
    return not skipped


def test_the_scale_leaves_no_trace_in_the_update():
    for amp in ("off", "bf16", "fp16"):
        scaler, parameter, step = new_scaler(amp)
        assert scaler.enabled is (amp == "fp16")
        assert update(scaler, parameter, step, [3.0, -4.0])
        assert parameter.tolist() == [1 - 1.5, 2 + 2.0]
        assert parameter.grad.tolist() == [3.0, -4.0]


def test_small_gradients_survive_float16_by_the_scale():
    """The product's gradient, 1e-4 * 1e-4, is below float16's smallest number."""

    def gradient(scale):
        scaler, parameter, _ = new_scaler(init_scale=scale)
        with torch.autocast("cpu", torch.float16):
            loss = torch.mm(parameter[None], torch.full((2, 1), 1e-4)).float().sum() * 1e-4
        scaler.scaled(loss).backward()
        scaler.unscale([parameter.grad])
        return parameter.grad

    assert not gradient(1.0).any()
    torch.testing.assert_close(gradient(65536.0), torch.full((2,), 1e-8), rtol=2e-3, atol=0)


def test_an_update_that_is_not_finite_is_skipped_and_halves_the_scale():
    scaler, parameter, step = new_scaler()
    for n, gradient in enumerate(([math.inf, 1.0], [1.0, math.nan]), 1):
        assert not update(scaler, parameter, step, gradient)
        assert (scaler.scale, scaler.skipped) == (8.0 / 2**n, n)
    assert parameter.tolist() == [1.0, 2.0] and step.model.mean.tolist() == [0.0, 0.0]
    assert update(scaler, parameter, step, [2.0, 2.0])
    assert (scaler.scale, scaler.skipped) == (2.0, 0)
    assert parameter.tolist() == [0.0, 1.0] and step.model.mean.tolist() == [2.0, 2.0]


def test_a_scale_that_collapses_is_explained():
    scaler, *others = new_scaler(init_scale=4.0)
    for _ in range(2):
        update(scaler, *others, [math.nan, 1.0])
    with pytest.raises(
        FastglowError, match=r"loss scale fell to 0.5 after 3 updates in a row .* use --amp bf16"
    ) as error:
        update(scaler, *others, [math.nan, 1.0])
    assert "\n" not in str(error.value)


def test_a_fixed_scale_stays_and_the_number_of_skipped_updates_is_bounded():
    scaler, *others = new_scaler(loss_scale="128", max_skipped=3)
    for _ in range(2):
        for _ in range(3):
            update(scaler, *others, [math.inf, 1.0])
        assert scaler.scale == 128.0
        update(scaler, *others, [1.0, 1.0])
    for _ in range(3):
        update(scaler, *others, [math.inf, 1.0])
    with pytest.raises(FastglowError, match="4 updates in a row .* loss scale of 128, max_skipped=3 is the limit"):
        update(scaler, *others, [math.inf, 1.0])


def test_the_scale_doubles_after_2000_updates_also_across_a_checkpoint():
    scaler, *others = new_scaler()
    for n in range(1, 2001):
        assert scaler.scale == 8.0
        update(scaler, *others, [0.0, 0.0])
        if n == 1500:
            state = scaler.state_dict()
            scaler, *others = new_scaler(init_scale=1024.0)
            scaler.load_state_dict(state)
    assert scaler.scale == 16.0


@pytest.mark.parametrize("on", [False, True])
def test_tf32_is_set_inside_and_restored_outside(on):
    """Through the setting that PyTorch has now; the older one must not be touched beside it."""

    def settings():
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            cudnn = torch.backends.cudnn
            return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = settings()
    with pytest.raises(ZeroDivisionError), tf32(on):
        assert set(settings()) <= {"tf32" if on else "ieee", on}
        raise ZeroDivisionError
    assert settings() == before


def test_amp_alone_means_what_the_device_is_good_at(monkeypatch, caplog):
    monkeypatch.setattr("fastglow.train.precision._processor", lambda: "flags: avx512_bf16")
    assert pick_amp("auto", CPU) == "bf16"
    assert pick_amp("auto", torch.device("cuda")) == "fp16"
    assert not caplog.text
    assert pick_amp("fp16", CPU) == "fp16"
    assert "--amp fp16 is slow on a CPU" in caplog.text
    monkeypatch.setattr("fastglow.train.precision._processor", lambda: "flags: avx2")
    assert pick_amp("bf16", CPU) == "bf16"
    assert "no bfloat16 instructions" in caplog.text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_matrix_products_are_in_the_chosen_type_and_weights_in_float32(prepared, tmp_path, model, amp):
    config, model_config = configs(model, prepared, tmp_path, amp=amp)
    trainer = Trainer(model, config, model_config, progress=False)
    part = trainer.state.model.postnet.convolutions[0][0] if model == "tacotron2" else trainer.state.model.upsample
    seen = []
    part.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer.state.model.train()
    trainer.step([trainer.task.collate([trainer.trainset[0]])], [1.0])
    assert seen == [{"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]]
    assert {p.dtype for p in trainer.state.model.parameters()} == {torch.float32}
    moments = [m for state in trainer.state.optimizer.state.values() for m in state.values()]
    assert {m.dtype for m in moments} == {torch.float32}


def test_the_command_takes_amp_alone_and_resumes_with_its_scale(prepared, tmp_path):
    """After --amp alone, another option follows; the checkpoint says what it came to mean."""
    arguments = command_line("waveglow", prepared, tmp_path / "a", "--max-iterations", "2")
    assert main([*arguments, "--amp", "--accumulate", "2"]) == 0
    assert load_training_checkpoint(tmp_path / "a" / "checkpoint_2.pt", "waveglow")["training"]["amp"] == "bf16"
    arguments = command_line("waveglow", prepared, tmp_path / "b", "--max-iterations", "2")
    assert main([*arguments, "--amp", "fp16", "--init-loss-scale", "512"]) == 0
    assert load_training_checkpoint(tmp_path / "b" / "checkpoint_2.pt", "waveglow")["loss_scale"] == {
        "scaler": {
            "scale": 512.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 2,
        },
        "skipped": 0,
    }  # fmt: skip
    run("waveglow", prepared, tmp_path / "b", resume=True, max_iterations=3)
    assert [r.values.get("loss_scale") for r in read_history(tmp_path / "b") if r.group == "train"] == [512.0] * 3


def test_a_run_skips_an_update_and_goes_on(prepared, tmp_path, caplog):
    """At 2^24 the scaled gradients overflow float16."""
    with caplog.at_level(logging.INFO):
        run("waveglow", prepared, tmp_path, amp="fp16", init_loss_scale=2.0**24, max_iterations=12, ema=0.9)
    records = [r.values for r in read_history(tmp_path) if r.group == "train"]
    skipped = [values["skipped"] for values in records]
    n = int(sum(skipped))
    assert skipped[0] == 1.0 and 0 < n < 12
    exponents = [24 - sum(skipped[: i + 1]) for i in range(12)]
    assert [values["loss_scale"] for values in records] == [2.0**exponent for exponent in exponents]
    checkpoint = load_training_checkpoint(tmp_path / "checkpoint_12.pt", "waveglow")
    assert checkpoint["ema_updates"] == 12 - n
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {12 - n}
    assert f"epoch 1: 3 updates ({sum(skipped[:3]):.0f} skipped), mean loss unknown" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": "fp8"}, "amp=fp8 must be one of off, bf16, fp16, auto"),
        ({"loss_scale": "static"}, "loss_scale=static must be dynamic or a positive number"),
        *(({"loss_scale": s}, f"loss_scale={s} must be dynamic or") for s in ("0", "-1", "nan", "inf")),
        ({"init_loss_scale": 0.0}, "init_loss_scale=0.0 must be positive"),
        ({"init_loss_scale": math.inf}, "init_loss_scale=inf must be finite"),
        ({"max_skipped": -1}, "max_skipped=-1 must not be negative"),
        ({"accumulate": 0}, "accumulate=0 must be positive"),
        ({"warmup": -1}, "warmup=-1 must not be negative"),
        ({"profile": -1}, "profile=-1 must not be negative"),
        *(({"ema": e}, f"ema={e} must be at least 0 and below 1") for e in (-0.1, 1.0, math.nan)),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(FastglowError, match=message):
        TrainConfig("data", "out", **options)


def test_the_learning_rate_warms_up(prepared, tmp_path):
    config = TrainConfig("", "", learning_rate=2.0, warmup=4, anneal_steps=[1])
    assert [config.learning_rate_at(0, i) for i in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert config.learning_rate_at(1, 1) == pytest.approx(0.1)
    run("waveglow", prepared, tmp_path, warmup=4, max_iterations=5, learning_rate=8e-5)
    rates = [r.values["learning_rate"] for r in read_history(tmp_path) if r.group == "train"]
    assert rates == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 8e-5], rel=1e-12)


def test_an_update_is_skipped_for_its_loss_alone():
    """With finite gradients; the scaler's count of good updates begins again too."""
    scaler, parameter, step = new_scaler()
    for _ in range(1999):
        update(scaler, parameter, step, [0.0, 0.0])
    assert not update(scaler, parameter, step, [1.0, 1.0], beside=math.inf)
    assert parameter.grad.tolist() == [1.0, 1.0]
    assert (scaler.scale, scaler.skipped, parameter.tolist()) == (4.0, 1, [1.0, 2.0])
    for _ in range(1999):
        update(scaler, parameter, step, [0.0, 0.0])
    assert scaler.scale == 4.0
    update(scaler, parameter, step, [0.0, 0.0])
    assert scaler.scale == 8.0
