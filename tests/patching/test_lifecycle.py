"""Swapped models are moved, cast, loaded, copied, pickled, wrapped, compiled, traced and hooked like any others."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastglow import FastglowError, accelerate
from fastglow.kernels import backend
from fastglow.patching import restore

from .comparing import assert_close, copied, shown, tensors
from .rebuilt import NORMS, InvConvNear, InvertibleLUS, InvertibleOfWaveGlow, TupleWN, VitsStyleWN


class Model(nn.Module):
    def __init__(self, norm="plain"):
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)
        self.wn = VitsStyleWN(4, norm=NORMS[norm])
        self.coupling = TupleWN(2, 4, norm=NORMS[norm])
        self.conv, self.near = InvertibleOfWaveGlow(4), InvConvNear(4, 2)
        shown(self)

    def forward(self, x):
        h, c = self.cell(x.mean(2), (x[:, :, 0], x[:, :, 1]))
        x = self.wn(x + h.unsqueeze(2) * c.unsqueeze(2), torch.ones_like(x[:, :1]))
        x, log_det = self.conv(x)
        return x + self.coupling((x[:, :2], x)), log_det, self.near(x, torch.ones_like(x[:, :1]))[0]


def call(model, x):
    return model(x)


def is_swapped(model):
    parts = (model.cell, model.wn, model.coupling, model.conv, model.near)
    return all("Swapped" in str(type(part).__mro__) for part in parts)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 4, 6)


@pytest.fixture
def model(x):
    return Model()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("before", [True, False])
def test_cast(model, x, dtype, before):
    expected = copy.deepcopy(model).to(dtype)
    if before:
        model.to(dtype)
    accelerate(model, strict=True)
    with torch.no_grad():
        if not before:
            model(x)  # fills caches
        model.to(dtype)
        (a, log_det, b), (c, other_log_det, d) = expected(x.to(dtype)), model(x.to(dtype))
    error = 1e-9 if dtype == torch.float64 else 0.05
    for y, z in ((a, c), (b, d)):
        assert y.dtype == z.dtype == dtype
        torch.testing.assert_close(y, z, rtol=error, atol=error * float(y.abs().max()))
    torch.testing.assert_close(log_det.float(), other_log_det.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_load_state_dict_and_training_steps(norm, x):
    torch.manual_seed(1)
    model, other = Model(norm), Model(norm)
    expected = other(x)
    accelerate(model, strict=True)
    with torch.no_grad():
        model(x)
    assert list(model.state_dict()) == list(other.state_dict())
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert_close([y.detach() for y in expected], list(model(x)))
    for one in (model, other):
        optimizer = torch.optim.Adam(one.parameters(), 0.1)
        sum(y.square().sum() for y in one(x)).backward()
        optimizer.step()
    with torch.no_grad():
        assert_close(list(other(x)), list(model(x)))
    with torch.no_grad():
        for p in model.parameters():
            p.data.mul_(1.5)
        for p in other.parameters():
            p.data.mul_(1.5)
        assert_close(list(other.eval()(x)), list(model.eval()(x)))


@pytest.mark.parametrize("norm", ["plain", "hook"])
@pytest.mark.parametrize("filled", [False, True])
def test_copies_are_swapped_and_independent(norm, filled, x):
    model = Model(norm)
    accelerate(model, strict=True)
    with torch.no_grad():
        expected = model(x)
    if not filled:
        accelerate(model).undo()
    second = copied(model)
    assert is_swapped(second) and list(second.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert_close(list(expected), list(second(x)))
        for p in model.parameters():
            p.zero_()
        assert_close(list(expected), list(second(x)))


@pytest.mark.parametrize("save", [
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: torch.load(saved(model), weights_only=False),
])  # fmt: skip
def test_pickles_are_swapped(save, model, x):
    accelerate(model, strict=True)
    with torch.no_grad():
        expected = model(x)
        second = save(model)
        assert is_swapped(second)
        assert_close(list(expected), list(second(x)))
        accelerate(second)
    model.load_state_dict(second.state_dict())


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_an_undone_model_pickles_without_fastglow(model):
    with accelerate(model):
        pass
    assert b"fastglow" not in pickle.dumps(nn.LSTMCell(2, 2))
    accelerate(model.cell).undo()
    assert b"fastglow" not in pickle.dumps(model.cell)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # is deprecated
def test_torchscript_is_refused_until_the_swaps_are_undone(model):
    report = accelerate(model, strict=True)
    for module in model.children():
        with pytest.raises(FastglowError, match=r"cannot compile an accelerated \w+: undo it first, with report\.undo"):
            torch.jit.script(nn.Sequential(module))
    report.undo()
    torch.jit.script(model.cell)


def test_wrapped_compiled_and_traced():
    """In a process of its own: process groups and the compiler leave threads behind."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(Path(__file__).with_name("wrapping.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout


def test_hooks_of_the_module_and_of_its_parts_fire(model, x):
    expected = model(x)
    accelerate(model, strict=True)
    events = []
    model.wn.register_forward_pre_hook(lambda module, args: events.append("wn"))
    model.cell.register_forward_hook(lambda module, args, output: events.append("cell"))
    model(x)
    assert events == ["cell", "wn"]
    handles = [
        model.wn.in_layers[1].register_forward_hook(lambda *args: events.append("in_layers.1")),
        model.coupling.end.register_full_backward_hook(lambda *args: events.append("end")),
        model.conv.conv.register_forward_pre_hook(lambda *args: events.append("conv")),
    ]
    events.clear()
    outputs = model(x)
    sum(y.sum() for y in outputs).backward()
    assert events == ["cell", "wn", "in_layers.1", "conv", "end"]
    assert_close([y.detach() for y in expected], [y.detach() for y in outputs])
    for handle in handles:
        handle.remove()
    events.clear()
    before = backend.launches["wavenet_layer"]
    with backend.use_backend("triton"):
        model.wn(torch.randn(1, 4, 3))
    assert events == ["wn"] and backend.launches["wavenet_layer"] > before


def test_a_hook_of_all_modules_fires_for_the_parts(model, x):
    accelerate(model, strict=True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *args: seen.append(type(module).__name__))
    try:
        model(x)
    finally:
        handle.remove()
    assert seen.count("Conv1d") == 6 + 11 + 1  # of wn, coupling (whose conditioning is called for every layer), conv


def test_autocast(model, x):
    plain = copy.deepcopy(model)
    accelerate(model, strict=True)
    for gradients in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
            expected, found = plain(x), model(x)
        for a, b in zip(expected, found, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(a.detach().abs().max()))


def test_inference_mode_and_changed_weights(model, x):
    accelerate(model, strict=True)
    with torch.inference_mode():
        first = [y.clone() for y in model(x)]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
        changed = model(x)
    assert not torch.allclose(first[0], changed[0])
    restored = copy.deepcopy(model)
    accelerate(restored).undo()
    restore(restored)
    with torch.no_grad():
        assert_close(list(restored(x)), list(changed))


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return self.factor * weight


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("norm", ["plain", "parametrization"])
def test_parametrizations_that_are_added_later(norm, gradients, x):
    model = Model(norm)
    parametrized = [*model.wn.in_layers, *model.coupling.res_skip_layers, model.coupling.start]
    if norm == "plain":  # others are of one parameter of the module itself
        parametrized += [model.near, model.conv.conv]
    report = accelerate(model, strict=True)
    with torch.set_grad_enabled(gradients):
        model(x)  # fills caches
        scales = [Scaled(1.5) for _ in parametrized]
        for part, scale in zip(parametrized, scales, strict=True):
            nn.utils.parametrize.register_parametrization(part, "weight", scale)
        for factor in (1.5, 0.5):  # which PyTorch does not count
            for scale in scales:
                scale.factor = factor
            found = model(x)
            restored = copy.deepcopy(model)
            restore(restored)
            assert_close([y.detach() for y in restored(x)], [y.detach() for y in found])
    report.undo()
    assert not is_swapped(model)
    with torch.no_grad():
        assert_close([y.detach() for y in found], list(model(x)))


@pytest.mark.parametrize("cls", [nn.LSTMCell, InvConvNear])
def test_another_module_of_the_class_of_a_swapped_one(cls):
    module = cls(4, 4)
    accelerate(module, strict=True)
    other = type(module)(6, 2)
    assert type(other) is cls and other.train().training
    accelerate(other, strict=True).undo()
    assert type(other) is cls


def replica(module):
    """What DataParallel runs on a GPU: weights are plain attributes, other attributes are shared."""
    copied = module._replicate_for_data_parallel()
    for name, part in module._modules.items():
        copied._modules[name] = replica(part)
    for name, parameter in module._parameters.items():
        setattr(copied, name, None if parameter is None else parameter.detach().clone())
    return copied


def test_replicas_of_data_parallel_see_new_weights(model, x):
    accelerate(model, strict=True)
    with torch.no_grad():
        replica(model)(x)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        assert_close(list(copy.deepcopy(model)(x)), list(replica(model)(x)))


def test_a_copy_that_a_module_makes_in_its_own_way():
    near = Rebuilding(6, 2)
    accelerate(near, strict=True)
    copied = pickle.loads(pickle.dumps(near))
    assert type(copied) is Rebuilding and copied.channels == 6
    torch.testing.assert_close(copied.weight, near.weight)


class Rebuilding(InvConvNear):
    def __reduce__(self):
        return _rebuilt, (self.channels, self.num_splits, self.state_dict())


def _rebuilt(channels, num_splits, state):
    near = Rebuilding(channels, num_splits)
    near.load_state_dict(state)
    return near


def test_train_with_an_option_of_its_own():
    class Freezing(VitsStyleWN):
        def train(self, mode=True, frozen=False):
            self.frozen = frozen
            return super().train(mode)

    wn = Freezing()
    accelerate(wn, strict=True)
    assert wn.train(True, frozen=True).frozen and not wn.eval().frozen


@pytest.mark.parametrize("reverse", [False, True])
def test_buffers_that_change(reverse):
    torch.manual_seed(2)
    lus, z = InvertibleLUS(4), torch.randn(1, 4, 5)
    accelerate(lus, strict=True)
    with torch.no_grad():
        lus(z, reverse)
        lus.p.copy_(lus.p.roll(1, 0))
        assert_close(tensors(InvertibleLUS.forward(lus, z, reverse)), tensors(lus(z, reverse)))


def test_weights_that_are_made_and_loaded_under_inference_mode(x):
    other = Model()
    with torch.inference_mode():
        model = Model()
        accelerate(model, strict=True)
        model(x)
        model.load_state_dict(other.state_dict())
        assert_close(list(other(x)), list(model(x)))
