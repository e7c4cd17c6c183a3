"""Mixed precision trains as float32 does, over hundreds of updates on real clips."""

import pytest

from fastglow.train.history import read_history
from fastglow.train.loop import train

from ..train.conftest import MODELS, configs, prepared  # noqa: F401

UPDATES, WINDOW = 300, 50

# How far the mean loss of a window may be from float32's. bfloat16 and float16 round products to 0.4 % and 0.05 %.
BAND = 0.03


def loss_curve(model, data, out, amp):
    """Mean losses of consecutive windows."""
    config, model_config = configs(model, data, out, amp=amp, max_iterations=UPDATES, batch_size=2)
    config.init_loss_scale = 1024.0  # no update is skipped at the beginning, so that the curves have equal lengths
    config.learning_rate = 2e-3
    if model == "waveglow":
        config.learning_rate, config.segment_length = 2e-4, 768
        model_config.upsample_kernel_size = 256
    train(model, config, model_config, progress=False)
    losses = [record.values["loss"] for record in read_history(out) if record.group == "train"]
    assert len(losses) == UPDATES
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, UPDATES, WINDOW)]


@pytest.mark.parametrize("model", MODELS)
def test_loss_curves_agree(model, prepared, tmp_path):  # noqa: F811
    exact = loss_curve(model, prepared, tmp_path / "off", "off")
    assert exact[-1] < exact[0] - 0.5 * abs(exact[0]), "the model learns"
    for amp in ("bf16", "fp16"):
        for step, (mixed, plain) in enumerate(
            zip(loss_curve(model, prepared, tmp_path / amp, amp), exact, strict=True)
        ):
            assert abs(mixed - plain) <= BAND * abs(plain), (amp, step * WINDOW, mixed, plain)
