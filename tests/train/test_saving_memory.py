"""The options that store fewer activations: the same training, also when they change."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.loop import Trainer

from .conftest import MODELS, configs, run

OPTIONS = {"tacotron2": "gradient_checkpointing", "waveglow": "memory_saving"}


def losses_of(out):
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["group"] == "train"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_the_same_and_keeps_the_option(model, amp, prepared, tmp_path, caplog):
    option, ends, losses = OPTIONS[model], [], []
    for saving in (False, True):
        out = tmp_path / str(saving)
        run(model, prepared, out, max_iterations=1, amp=amp, **{option: saving})
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            path = run(model, prepared, out, max_iterations=4, resume=True)
            assert option not in caplog.text
        ends.append(load_training_checkpoint(path, model))
        losses.append(losses_of(out))
    assert [end["training"][option] for end in ends] == [False, True]
    assert ends[0]["config"] == ends[1]["config"]
    assert len(losses[0]) == 4
    if model == "tacotron2":  # it computes the same again
        torch.testing.assert_close(ends[1]["state_dict"], ends[0]["state_dict"], rtol=0, atol=0)
    else:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4 if amp == "off" else 1e-2)


@pytest.mark.parametrize("model", MODELS)
def test_the_option_may_change_when_resuming(model, prepared, tmp_path, caplog):
    option = OPTIONS[model]
    run(model, prepared, tmp_path, max_iterations=1)
    config, model_config = configs(model, prepared, tmp_path, resume=True)
    for saving in (True, False):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            trainer = Trainer(model, replace(config, **{option: saving}), model_config, progress=False, given={option})
        assert getattr(trainer.state.model, option) is saving
        assert (f"{option} False -> True" in caplog.text) == saving
        assert trainer.state.iteration == 1
