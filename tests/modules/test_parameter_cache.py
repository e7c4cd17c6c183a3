"""A cached value is recomputed whenever the parameters have changed, and never copied."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastglow.modules import WN, parameter_cache
from fastglow.modules.parameter_cache import ParameterCache, parameters_of


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.cache: ParameterCache[torch.Tensor] = ParameterCache()
        self.builds = 0

    @torch.no_grad()
    def doubled(self, *settings) -> torch.Tensor:
        return self.cache.get(parameters_of(self), self.build, *settings)

    def build(self) -> torch.Tensor:
        self.builds += 1
        return 2 * self.linear.weight

    def is_fresh(self) -> bool:
        return torch.equal(self.doubled(), 2 * self.linear.weight.detach())


@pytest.fixture
def module():
    module = Doubling()
    assert module.is_fresh()
    return module


def step(module: Doubling) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module.linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def fused_step(module: Doubling) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0, fused=True)
    module.linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def step_of_a_custom_optimizer(module: Doubling) -> None:
    class Optimizer(torch.optim.Optimizer):
        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(1)

    Optimizer(module.parameters(), {}).step()


def write_to_data(module: Doubling) -> None:
    module.linear.weight.data.add_(1)
    WN(2, 3, 1, 2, 3).refresh()  # of any module


CHANGES = {
    "training step": step,
    "step of a fused optimizer": fused_step,
    "step of another maker's optimizer": step_of_a_custom_optimizer,
    "written to as data, and refreshed": write_to_data,
    "load_state_dict": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "cast": lambda m: m.double(),
    "replaced": lambda m: setattr(m.linear, "weight", nn.Parameter(torch.ones(2, 2))),
    "written to under inference_mode": lambda m: _in_inference_mode(m),
}


def _in_inference_mode(module: Doubling) -> None:
    with torch.inference_mode():
        module.linear.weight.add_(1)


@pytest.mark.parametrize("change", CHANGES)
def test_is_recomputed_after_a_change(module, change):
    before = module.doubled().clone()
    CHANGES[change](module)
    after = module.doubled()
    assert after.dtype != before.dtype or not torch.equal(after, before)
    assert module.is_fresh()


def test_is_computed_once_while_nothing_changes(module):
    for _ in range(3):
        module.doubled()
    assert module.builds == 1
    value = module.doubled("other settings")
    assert module.builds == 2
    module.doubled()
    assert module.doubled("other settings") is value  # a recorded graph may read it
    assert module.builds == 2


@pytest.mark.parametrize("inside", [True, False], ids=["in inference mode", "outside"])
def test_parameters_without_a_version_are_cached_until_a_refresh(inside):
    with torch.inference_mode():
        module = Doubling()
    with torch.inference_mode(inside):
        for builds, change in enumerate((write_to_data, CHANGES["replaced"], CHANGES["cast"]), 1):
            assert module.is_fresh() and module.is_fresh()
            assert module.builds == builds
            with torch.inference_mode():
                change(module)
        assert module.is_fresh()
        assert module.builds == builds + 1


@pytest.mark.parametrize("mode", [FakeTensorMode, FlopCounterMode])
def test_nothing_that_is_computed_in_a_mode_stays(mode):
    module = Doubling()
    with mode(**({"allow_non_fake_inputs": True} if mode is FakeTensorMode else {"display": False})):
        module.doubled()
        module.doubled()
    assert module.builds == 2
    assert type(module.doubled()) is torch.Tensor and module.is_fresh()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_start_empty(module, copied):
    twin = copied(module)
    with torch.no_grad():
        twin.linear.weight.add_(1)
    assert twin.is_fresh()
    assert module.is_fresh()


def test_is_not_in_the_state_dict(module):
    assert module.state_dict().keys() == {"linear.weight", "linear.bias"}


def test_rounded_weights_at_possibly_the_same_address(module):
    with torch.no_grad():
        module.linear.weight.fill_(1 / 3)
    assert module.is_fresh()
    module.half().float()
    assert module.is_fresh()


def test_streams_wait_for_a_value_and_for_each_other(module, monkeypatch):
    """A value is complete before another stream reads it, and read before its memory is free."""
    log = []
    monkeypatch.setattr(parameter_cache, "_finish", lambda stream: log.append(stream))
    current = ["a", "b", "b", None, "a"]  # None: while the caller records
    monkeypatch.setattr(parameter_cache, "_stream_of", lambda _: current.pop(0) if len(current) > 1 else current[0])
    for _ in range(5):
        module.doubled("settings")
    assert log == ["a"]
    with torch.no_grad():
        module.linear.weight.add_(1)
    module.build = lambda: log.append("build")
    module.doubled("settings")
    assert sorted(log[1:3]) == ["a", "b"] and log[3:] == ["build", "a"]
    module.doubled("other settings")
    assert log[5:] == ["build", "a"]


def test_every_parameter_is_found():
    module = nn.Sequential(WN(2, 3, 2, 4, 3), nn.Linear(3, 3, bias=False), nn.LSTM(2, 3))
    module.append(nn.Linear(3, 3))[-1].weight = module[1].weight  # shared
    module.register_module("absent", None)
    module.register_parameter("scale", nn.Parameter(torch.ones(())))
    found = parameters_of(module)
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in module.parameters()}
    assert len(found) == len(list(module.parameters())) + 1


def test_without_parameters_nothing_is_kept():
    """They could not be seen to change: a replica of DataParallel has its weights elsewhere."""
    cache, built = ParameterCache(), iter(range(3))
    assert [cache.get([], lambda: next(built)) for _ in range(3)] == [0, 1, 2]
