"""The operations as PyTorch operators: opcheck, torch.compile in one graph, torch.export, second derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastglow import ops
from fastglow.errors import FastglowError
from fastglow.kernels import backend, flow_step_inverse
from fastglow.kernels.reference import gated_activation as gate

from .checks import assert_refused, assert_same_bits
from .operator_cases import FUNCTIONS, OTHERS, Call, loop_call

CALLS = (*FUNCTIONS, *OTHERS, loop_call(0.0), loop_call(0.4))

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler, about itself


class Recorder(TorchDispatchMode):
    """Inside, remembers the calls of this library's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[OpOverload, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "fastglow":
            self.calls.append((func, tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, args)))
        return func(*args, **(kwargs or {}))


def recorded(call: Call, name: str, dtype: torch.dtype, needs: Any, spread: bool = False) -> list:
    """The operators that a call and its backward pass make, with their arguments."""
    with backend.use_backend(name), Recorder() as recorder:
        outputs = call.run(call.leaves(dtype, needs, spread))
        sum(x.float().sum() for x in outputs if x.requires_grad).backward()
    assert recorder.calls
    return recorder.calls


def with_gradients(func: OpOverload, args: tuple) -> tuple:
    """Forward operators get arguments that require gradients."""
    if func.name().endswith("_backward"):
        return args
    return tree_map(lambda x: x.requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x, args)


def everything(i: int) -> bool:
    return True


@pytest.fixture(params=["kernels", "reference"])
def implementation(request, monkeypatch) -> str:
    """How operators run on a CPU."""
    if request.param == "reference":
        monkeypatch.setattr(backend, "interprets", lambda: False)
    return request.param


@pytest.fixture(autouse=True)
def _new_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_opcheck(call, implementation, monkeypatch):
    with monkeypatch.context() as recording:
        recording.setattr(backend, "interprets", lambda: True)
        calls = recorded(call, "triton", torch.float32, everything)
    for func, args in calls:
        torch.library.opcheck(func, with_gradients(func, args))


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("parity", [0, 1])
def test_opcheck_with_strides_in_half_precision_and_gradients_of_some(call, parity):
    needs = lambda i: i % 2 == parity or i == 0  # noqa: E731
    for func, args in recorded(call, "triton", torch.float16, needs, spread=True):
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor"))


def results(function: Any, call: Call, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Outputs, and gradients of every argument that has one."""
    leaves = call.leaves(dtype, everything)
    outputs = function(leaves)
    reached = [x for x in outputs if x.requires_grad]
    torch.manual_seed(0)
    upstream = [torch.randn_like(x) for x in reached]
    wanted = [x for x in leaves.values() if x.requires_grad]
    gradients = torch.autograd.grad(reached, wanted, upstream, allow_unused=True)
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("name", ["triton", "auto"])
def test_compiled_as_one_graph(call, name):
    with backend.use_backend(name):
        expected = results(call.run, call)
        found = results(torch.compile(call.run, fullgraph=True, backend="aot_eager"), call)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Module(torch.nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        return self.call.run(tensors)


@pytest.mark.parametrize("call", FUNCTIONS, ids=str)
@pytest.mark.parametrize("name, strict", [("triton", True), ("triton", False), ("auto", True)])
def test_exported(call, strict, name, monkeypatch):
    leaves = call.leaves(torch.float32, everything)
    with backend.use_backend(name):
        expected = results(call.run, call)
        program = torch.export.export(Module(call), (leaves,), strict=strict)
    operators = [node.target for node in program.graph.nodes if getattr(node.target, "namespace", "") == "fastglow"]
    assert bool(operators) == (name == "triton")
    assert_same_bits(results(program.module(), call), expected)
    monkeypatch.setattr(backend, "interprets", lambda: False)  # a CPU, where no kernel runs
    torch.testing.assert_close(results(program.module(), call), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["triton", "auto"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_in_compiled_code(name, dtype):
    if dtype == torch.bfloat16 and name == "triton":
        pytest.skip("Triton's interpreter does not compute bfloat16 correctly")
    for call in (c for c in FUNCTIONS if c.name in ("layer", "1x1", "coupling", "lstm", "attention")):
        torch.compiler.reset()
        compiled = torch.compile(call.run, fullgraph=True, backend="aot_eager")
        with backend.use_backend(name), torch.autocast("cpu", dtype):
            expected, found = results(call.run, call), results(compiled, call)
        assert [x.dtype for x in found] == [x.dtype for x in expected], call
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        with backend.use_backend(name):  # compiled again without autocast
            assert results(compiled, call)[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_dynamic_shapes(name):
    compilations = []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(ops.gated_activation, fullgraph=True, backend=counting, dynamic=True)
    with backend.use_backend(name):
        for batch, channels, T in ((2, 6, 5), (3, 10, 9), (5, 4, 7)):
            a, b = torch.randn(batch, channels, T), torch.randn(batch, channels, T)
            assert_same_bits(compiled(a, b), ops.gated_activation(a, b))
    assert len(compilations) == 1


def test_compiled_code_follows_the_backend():
    a = torch.randn(2, 6, 5)
    compiled = torch.compile(ops.gated_activation, fullgraph=True, backend="eager")
    for name in ("auto", "triton", "reference", "triton", "auto"):
        before = backend.launches["gated_activation"]
        with backend.use_backend(name):
            compiled(a)
        assert backend.launches["gated_activation"] - before == (name == "triton"), name


@pytest.mark.parametrize("call", [c for c in CALLS if c.name not in ("factors",)], ids=str)
def test_second_derivatives_are_refused(call):
    with backend.use_backend("triton"):
        leaves = call.leaves(torch.float32, everything)
        first = [x for x in leaves.values() if x.requires_grad]
        outputs = [x for x in call.run(leaves) if x.requires_grad]
        upstream = [torch.randn_like(x).requires_grad_() for x in outputs]
        gradients = torch.autograd.grad(outputs, first, upstream, create_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match="fastglow::.* is once_differentiable"):
            sum((x * x).sum() for x in gradients if x is not None and x.requires_grad).backward()


def test_flow_step_inverse():
    halves = [torch.randn(2, 2, 5), torch.randn(2, 2, 5), torch.randn(2, 4, 5), torch.randn(4, 4)]
    for entering in (None, torch.randn(2, 2, 5)):
        args = (*halves, entering, True)
        torch.library.opcheck(torch.ops.fastglow.flow_step_inverse.default, args)
        with backend.use_backend("triton"), torch.no_grad():
            compiled = torch.compile(flow_step_inverse, fullgraph=True, backend="aot_eager")
            assert_same_bits(compiled(*args[:-1], swap=True), flow_step_inverse(*args[:-1], swap=True))
    halves[0].requires_grad_()
    with pytest.raises(RuntimeError, match="flow_step_inverse has no backward pass"):
        torch.ops.fastglow.flow_step_inverse(*halves, None, False).sum().backward()


def test_float64_runs_on_the_reference():
    a = torch.randn(2, 6, 5, dtype=torch.float64)
    y = torch.ops.fastglow.gated_activation(a, None, None, 0, None, False, None, 0.0)
    assert_same_bits(y, gate.gated_activation(a))


@pytest.mark.parametrize("n_channels", [3, torch.IntTensor([3])])
@pytest.mark.parametrize(
    "shapes",
    [((2, 6, 5), (2, 6, 5)), ((2, 6, 5), (2, 6, 1)), ((2, 6, 5), (1, 6, 5)), ((1, 6, 5), (2, 6, 1))],
    ids=str,
)
@pytest.mark.parametrize("swapped", [False, True])
def test_fused_add_tanh_sigmoid_multiply(n_channels, shapes, swapped):
    a, b = map(torch.randn, shapes)
    u = a + b
    pair = (b, a) if swapped else (a, b)
    for name in ("triton", "auto"):
        with backend.use_backend(name):
            y = ops.fused_add_tanh_sigmoid_multiply(*pair, n_channels)
            torch.testing.assert_close(y, torch.tanh(u[:, :3]) * torch.sigmoid(u[:, 3:]))
            compiled = torch.compile(ops.fused_add_tanh_sigmoid_multiply, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(*pair, n_channels), y)


def test_fused_add_tanh_sigmoid_multiply_with_wrong_channels():
    a = torch.randn(2, 6, 5)
    assert_refused(
        "n_channels=2 must be half of the 6 channels", ops.fused_add_tanh_sigmoid_multiply, a, a, torch.tensor([2])
    )


# The others hand on their `log_det`.
@pytest.mark.parametrize("call", [c for c in FUNCTIONS if c.name != "1x1, known factor"], ids=str)
@pytest.mark.parametrize("spread", [False, True])
def test_results_may_be_changed_in_place(call, spread):
    """As those of PyTorch's own operations, in any memory order."""

    def gradients(triple: Any) -> tuple[Tensor, ...]:
        leaves = call.leaves(torch.float32, everything, spread)
        outputs = [triple(x) for x in call.run(leaves)]
        wanted = [x for x in leaves.values() if x.requires_grad]
        return torch.autograd.grad(sum(x.square().sum() for x in outputs), wanted)

    with backend.use_backend("triton"):
        assert_same_bits(gradients(lambda x: x.mul_(3)), gradients(lambda x: x * 3))


@pytest.mark.parametrize("call", FUNCTIONS, ids=str)
def test_forward_derivatives_are_refused(call):
    """PyTorch takes those of an operator for zero."""
    with forward_ad.dual_level():
        tensors = {
            name: forward_ad.make_dual(x, torch.randn_like(x)) if x.is_floating_point() else x
            for name, x in call.tensors.items()
        }
        with backend.use_backend("triton"):
            assert_refused("no forward-mode derivative", call.run, tensors)
        assert forward_ad.unpack_dual(call.run(tensors)[0]).tangent.any()


def test_forward_derivatives_of_operators_are_refused():
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="gated_activation has no forward-mode derivative"):
        a = forward_ad.make_dual(torch.randn(2, 6, 5), torch.randn(2, 6, 5))
        torch.ops.fastglow.gated_activation(a, None, None, 0, None, False, None, 0.0)


def test_derivatives_by_torch_func():
    a = torch.randn(2, 6, 5)
    gradient = torch.func.grad(lambda a: ops.gated_activation(a).sum())
    leaf = a.clone().requires_grad_()
    ops.gated_activation(leaf).sum().backward()
    torch.testing.assert_close(gradient(a), leaf.grad)
    with backend.use_backend("triton"):
        assert_refused("torch.func does not differentiate operators", gradient, a)
        assert_refused("no forward-mode derivative", torch.func.jvp, ops.gated_activation, (a,), (a,))


@pytest.mark.parametrize("name", ["triton", "auto"])
@pytest.mark.parametrize("dropout", ["before", "after"])
def test_exported_dropout_of_any_size(name, dropout):
    call = next(call for call in FUNCTIONS if call.name == "gate")._replace(
        options={"dropout": dropout, "p_dropout": 0.3, "seed": 7}
    )
    sizes = {0: torch.export.Dim("B"), 2: torch.export.Dim("T")}
    with backend.use_backend(name):
        program = torch.export.export(
            Module(call), ({"a": torch.randn(2, 6, 5)},), dynamic_shapes=({"a": sizes},), strict=False
        )
        a = {"a": torch.randn(3, 6, 11)}
        assert_same_bits(program.module()(a), call.run(a))


def test_a_wrong_shape_in_compiled_code_is_an_error():
    compiled = torch.compile(ops.affine_coupling, backend="eager")
    with pytest.raises(FastglowError, match="b_log_s has shape"):
        compiled(torch.randn(2, 3, 5), torch.randn(2, 5, 5))
