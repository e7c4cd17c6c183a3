"""accelerate under other defaults, beside other threads, in models of odd modules."""

import threading
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from fastglow import accelerate

from .rebuilt import InvConvNear, InvertibleOfWaveGlow, TupleWN, VitsStyleWN
from .rebuilt_tacotron2 import CoquiAttention, Decoder, EspnetAttention


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "nothing": nullcontext,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_known_module_is_recognised(name, made_inside):
    kinds = (
        VitsStyleWN, TupleWN, InvConvNear, InvertibleOfWaveGlow, Decoder, CoquiAttention, EspnetAttention,
    )  # fmt: skip

    def make():
        return nn.ModuleList([nn.LSTMCell(3, 5), *(kind() for kind in kinds)])

    made_inside = made_inside and name not in ("bfloat16", "meta device")  # some of them cannot be made there
    model = None if made_inside else make()
    with SURROUNDINGS[name]():
        model = make() if model is None else model
        report = accelerate(model, strict=True)
    assert len(report.swapped) == 1 + len(kinds) + 3  # the decoder's attention and cells
    report.undo()
    assert [type(module) for module in model] == [nn.LSTMCell, *kinds]


def test_the_generators_of_gpus_are_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds GPUs"))
    accelerate(nn.ModuleList([nn.LSTMCell(2, 2), VitsStyleWN(), Decoder()]), strict=True)


def test_many_threads():
    models = [nn.ModuleList([nn.LSTMCell(4, 4), VitsStyleWN(4), InvConvNear(4, 2)]) for _ in range(8)]
    state, errors = torch.get_rng_state(), []

    def run(model):
        try:
            accelerate(model, strict=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.equal(torch.get_rng_state(), state)


def test_properties_that_raise():
    class Unready(nn.Module):
        @property
        def weight(self):
            raise RuntimeError("not loaded")

    report = accelerate(nn.ModuleList([Unready(), nn.LSTMCell(2, 2)]))
    assert [entry.module for entry in report] == ["1"]


def test_what_the_named_operations_do_not_cover_is_not_called_unknown():
    (entry,) = accelerate(VitsStyleWN(), ["lstm_cell"]).left
    assert "can swap to lstm_cell" in entry.text
