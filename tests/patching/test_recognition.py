"""Modules that look like known ones and differ in something that few inputs show."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from fastglow import accelerate
from fastglow.patching.probing import TOLERANCE, _difference
from fastglow.patching.report import LEFT

from .comparing import assert_close, results
from .rebuilt import (
    NORMS,
    DiffSingerOrderWN,
    InvConvNear,
    InvertibleOfRadTTS,
    TransformersWN,
    TwoArgumentsWN,
    VitsStyleWN,
)
from .rebuilt_tacotron2 import FamilyAttention


def left(module):
    before = type(module)
    (entry,) = accelerate(module).entries
    assert entry.state == LEFT and type(module) is before
    return entry.text


class StopsX(VitsStyleWN):
    def forward(self, x, x_mask=None, g=None, **kwargs):
        return super().forward(x.detach(), x_mask, g)


class StopsG(VitsStyleWN):
    def forward(self, x, x_mask=None, g=None, **kwargs):
        return super().forward(x, x_mask, None if g is None else g.detach())


class StopsMost(InvertibleOfRadTTS):
    def forward(self, z, inverse=False):
        found = super().forward(z, inverse)
        return found if inverse else (0.9 * found[0].detach() + 0.1 * found[0], found[1])


class StopsWeights(FamilyAttention):
    def forward(self, query, memory, processed_memory, weights_cat, mask):
        return super().forward(query, memory, processed_memory, weights_cat.detach(), mask)


@pytest.mark.parametrize(
    "module", [StopsX(), StopsG(gin_channels=3), StopsMost(), StopsWeights()], ids=lambda module: type(module).__name__
)
def test_gradients_that_a_module_stops(module):
    text = left(module)
    assert "or their gradients do" in text or "what has gradients" in text


def test_results_of_other_types():
    Flow = namedtuple("Flow", "z log_det")

    class Named(InvertibleOfRadTTS):
        def forward(self, z, inverse=False):
            found = super().forward(z, inverse)
            return found if inverse else Flow(*found)

    class Listed(InvertibleOfRadTTS):
        def forward(self, z, inverse=False):
            found = super().forward(z, inverse)
            return found if inverse else [*found]

    class Double(VitsStyleWN):
        def forward(self, x, x_mask=None, g=None):
            return super().forward(x, x_mask, g).double()

    for module in (Named(), Listed(), Double()):
        assert "of other types or sizes than" in left(module)


def test_a_result_that_is_not_a_number_differs():
    assert _difference([torch.ones(2)], [torch.ones(2)]) <= TOLERANCE
    assert _difference([torch.ones(2)], [torch.tensor([1.0, float("nan")])]) > TOLERANCE


class WithInputs(VitsStyleWN):
    def forward(self, x, x_mask=None, g=None, cond=None, **kwargs):
        return super().forward(x + (0 if cond is None else cond) + kwargs.get("shift", 0), x_mask, g)


class TransformersWithInputs(TransformersWN):
    def forward(self, inputs, padding_mask, global_conditioning=None, cond=None, shift=0):
        return super().forward(inputs + (0 if cond is None else cond) + shift, padding_mask, global_conditioning)


class WaveGlowWithInputs(TwoArgumentsWN):
    def forward(self, audio, spect, cond=None, shift=0):
        return self.run(audio + (0 if cond is None else cond) + shift, spect)


class NearWithInputs(InvConvNear):
    def forward(self, x, x_mask=None, reverse=False, cond=None, **kwargs):
        return super().forward(x + (0 if cond is None else cond) + kwargs.get("shift", 0), x_mask, reverse)


@pytest.mark.parametrize("module, args", [
    (WithInputs(), (torch.randn(2, 6, 9), torch.ones(2, 1, 9), None)),
    (TransformersWithInputs(), (torch.randn(2, 6, 9), torch.ones(2, 1, 9), None)),
    (WaveGlowWithInputs(), (torch.randn(2, 2, 9), torch.randn(2, 5, 9))),
    (NearWithInputs(6, 2), (torch.randn(2, 6, 9), torch.ones(2, 1, 9), False)),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_inputs_that_only_another_version_has(module, args):
    x = args[0]
    calls = [
        lambda m: m(*args),
        lambda m: m(*args, x),
        lambda m: m(*args, cond=x),
        lambda m: m(*args, shift=2.0),
    ]
    cases = [(call, training) for call in calls for training in (False, True)]
    expected = [results(module, call, [], training) for call, training in cases]
    accelerate(module, strict=True)
    for (call, training), values in zip(cases, expected, strict=True):
        assert_close(values, results(module, call, [], training))


def test_a_g_that_is_not_ignored():
    class Conditioned(InvConvNear):
        def forward(self, x, x_mask=None, reverse=False, g=None):
            found, log_det = super().forward(x, x_mask, reverse)
            return found + (0 if g is None else g.mean()), log_det

    assert "differ" in left(Conditioned(4, 2))


def test_dropout_of_a_number_that_is_raised_later():
    class Functional(VitsStyleWN):
        def __init__(self):
            super().__init__()
            del self.drop
            self.p_dropout = 0.0

        def drop(self, x):
            return nn.functional.dropout(x, self.p_dropout, self.training)

    assert "differ" in left(Functional())


def test_a_comparison_that_would_compare_the_module_with_itself():
    """Whatever makes a swapped module call its parts would do so in the comparison, too."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    wn = DiffSingerOrderWN()
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert "a hook of all modules" in left(wn)
    finally:
        handle.remove()
    assert "differ" in left(wn)
    wn = DiffSingerOrderWN(norm=NORMS["plain"])
    conv = wn.in_layers[1]
    conv.forward = lambda x: nn.Conv1d.forward(conv, x)
    assert "in_layers.1's forward is replaced" in left(wn)
    del conv.forward
    register_parametrization(conv, "weight", Doubled())
    assert "in_layers.1's parameters are parametrized" in left(wn)
