"""WN in inference on a CPU, where its operations are compiled, recorded, transformed or watched."""

import copy

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from fastglow.kernels import backend

from ..kernels.checks import assert_same_bits
from .test_wn_packed import inputs, make

TRACES = pytest.mark.filterwarnings("ignore")  # tracers and compilers warn of their own internals


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


@pytest.fixture
def module():
    return make(torch.float32)


class Subclass(Tensor):
    pass


def exported(module, *arguments):
    return torch.export.export(module, arguments, strict=False).module()(*arguments)


def traced(module, *arguments):
    return torch.jit.trace(module, arguments, check_trace=False)(*arguments)


def recorded(module, *arguments):
    return make_fx(module)(*arguments)(*arguments)


def mapped(module, *arguments):
    return torch.func.vmap(module)(*(x.unsqueeze(1) for x in arguments)).squeeze(1)


def mapped_over_weights(module, *arguments):
    """Of two modules, the second's result."""
    parameters, buffers = torch.func.stack_module_state([make(torch.float32), module])

    def call(parameters, buffers):
        return torch.func.functional_call(module, (parameters, buffers), arguments)

    return torch.func.vmap(call)(parameters, buffers)[1]


def differentiated(module, audio, spect):
    return torch.func.jvp(lambda x: module(x, spect), (audio,), (audio,))[0]


def of_a_subclass(module, audio, spect):
    out = module(audio.as_subclass(Subclass), spect)
    assert type(out) is Subclass
    return out.as_subclass(Tensor)


@TRACES
@pytest.mark.parametrize(
    "run",
    [exported, traced, recorded, mapped, mapped_over_weights, differentiated, of_a_subclass],
    ids=lambda run: run.__name__,
)
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "weights are packed"])
def test_pytorchs_own_operations_run(module, run, warm):
    arguments = inputs(11)
    exact = copy.deepcopy(module).double()(*(x.double() for x in arguments))
    expected = copy.deepcopy(module)(*arguments)
    if warm:
        module(*arguments)
    before = backend.cpu_calls.total()
    found = run(module, *arguments)
    assert backend.cpu_calls.total() == before
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)
    assert_same_bits(module(*arguments), expected)  # in its form for CPUs, with weights of its own
    assert backend.cpu_calls.total() > before


@pytest.mark.parametrize("fake_inputs", [True, False])
def test_fake_tensors_do_not_stay(module, fake_inputs):
    arguments = inputs(11)
    expected = copy.deepcopy(module)(*arguments)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = [mode.from_tensor(x) for x in arguments] if fake_inputs else arguments
        out = module(*given)
    assert isinstance(out, FakeTensor) and out.shape == expected.shape
    assert isinstance(module(*(mode.from_tensor(x) for x in arguments)), FakeTensor)  # the mode is off
    assert_same_bits(module(*arguments), expected)
    with backend.use_backend("reference"):
        assert type(module(*arguments)) is Tensor


def test_operations_are_counted(module):
    with FlopCounterMode(display=False) as counter:
        module(*inputs(11))
    assert counter.get_total_flops() > 0


@TRACES
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_code_calls_the_form_for_cpus(module, compiler):
    arguments = inputs(11)
    expected = module(*arguments)
    torch.compiler.reset()
    before = backend.cpu_calls.total()
    compiled = torch.compile(module, backend=compiler)
    for _ in range(2):
        assert_same_bits(compiled(*arguments), expected)
    assert backend.cpu_calls.total() == before + 2 * module.n_layers
    with backend.use_backend("reference"):
        plain = module(*arguments)
        assert_same_bits(torch.compile(module, backend=compiler)(*arguments), plain)
