"""Affine coupling: the reference against scalar arithmetic and its own inverse, the kernels against it in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck

from fastglow import kernels
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import affine_coupling, affine_coupling_inverse, flow_step_inverse
from fastglow.kernels.affine_coupling.kernels import CONFIGS, FLOW_STEP_CONFIGS
from fastglow.kernels.backend import use_backend
from fastglow.kernels.launch import use_config
from fastglow.kernels.reference import affine_coupling as reference

from .checks import (
    EVERY_DTYPE,
    FLOAT32_AND_FLOAT16,
    assert_as_exact_as,
    assert_kernels_refuse,
    assert_refused,
    assert_results_as_exact_as,
    assert_same_bits,
    cast,
    check_against_fp64,
    differentiate,
    recorded,
    zeros_for_shapes,
)

CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
KINDS = ["contiguous", "halves", "channels-last"]


def test_one_element_at_a_time(leaf):
    x, b_log_s = leaf(2, 3, 5), leaf(2, 6, 5)
    y, log_s = affine_coupling(x, b_log_s)
    assert y.shape == log_s.shape == x.shape
    for item in range(2):
        for channel in range(3):
            for t in range(5):
                b, expected_log_s = b_log_s[item, channel, t].item(), b_log_s[item, 3 + channel, t].item()
                assert log_s[item, channel, t].item() == expected_log_s
                expected = math.exp(expected_log_s) * x[item, channel, t].item() + b
                assert y[item, channel, t].item() == pytest.approx(expected, rel=1e-14)


def test_the_inverse_undoes_it(leaf):
    x, b_log_s = leaf(2, 3, 5), leaf(2, 6, 5)
    y, _ = affine_coupling(x, b_log_s)
    torch.testing.assert_close(affine_coupling_inverse(y, b_log_s), x, atol=1e-13, rtol=0)


def test_log_s_is_the_log_of_the_derivative(leaf):
    x, b_log_s = leaf(1, 1, 4), leaf(1, 2, 4)
    y, log_s = affine_coupling(x, b_log_s)
    (derivative,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(derivative.log(), log_s.detach(), atol=1e-14, rtol=0)


def test_the_sum_is_the_couplings_log_determinant(leaf):
    x, b_log_s = leaf(1, 2, 3), leaf(1, 4, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: affine_coupling(x, b_log_s)[0].flatten(), x)
    *_, log_s_sum = affine_coupling(x, b_log_s, return_log_s_sum=True)
    assert log_s_sum.shape == ()
    assert log_s_sum.item() == pytest.approx(torch.linalg.slogdet(jacobian.flatten(1)).logabsdet.item(), rel=1e-12)


def test_gradients(leaf):
    assert gradcheck(affine_coupling, (leaf(2, 3, 5), leaf(2, 6, 5)))
    assert gradcheck(lambda *x: affine_coupling(*x, return_log_s_sum=True), (leaf(2, 3, 5), leaf(2, 6, 5)))
    assert gradcheck(affine_coupling_inverse, (leaf(2, 3, 5), leaf(2, 6, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    x, b_log_s = torch.randn(1, 1, 3, dtype=dtype), torch.randn(1, 2, 3, dtype=dtype)
    y, log_s, log_s_sum = affine_coupling(x, b_log_s, return_log_s_sum=True)
    assert y.dtype == log_s.dtype == affine_coupling_inverse(y, b_log_s).dtype == dtype
    assert log_s_sum.dtype == torch.float32
    assert flow_step_inverse(x, y, b_log_s, torch.eye(2)).dtype == dtype


@pytest.mark.parametrize("swap", [False, True])
def test_flow_step_inverse_undoes_a_flow_step(leaf, swap):
    z, entering = leaf(2, 6, 5), leaf(2, 2, 5)
    weight, b_log_s = leaf(6, 6), leaf(2, 6, 5)
    first, second = torch.einsum("ij,bjt->bit", weight, z).chunk(2, dim=1)
    kept, changed = (second, first) if swap else (first, second)
    changed, _ = affine_coupling(changed, b_log_s)
    inverse = torch.linalg.inv(weight)
    back = flow_step_inverse(kept, changed, b_log_s, inverse, swap=swap)
    torch.testing.assert_close(back, z, atol=1e-10, rtol=0)
    with_entering = flow_step_inverse(kept, changed, b_log_s, inverse, entering, swap=swap)
    assert torch.equal(with_entering, torch.cat((entering, back), dim=1))


@pytest.mark.parametrize("swap", [False, True])
def test_gradients_of_flow_step_inverse(leaf, swap):
    inputs = (leaf(2, 2, 3), leaf(2, 2, 3), leaf(2, 4, 3), leaf(4, 4), leaf(2, 1, 3))
    assert gradcheck(lambda *inputs: flow_step_inverse(*inputs, swap=swap), inputs)


WRONG_STEPS = {
    r"b_log_s has shape \[2, 5, 4\], must be \[2, 6, 4\]": {"b_log_s": (2, 5, 4)},
    r"changed has shape \[3, 4\], must be \[B, n, T\]": {"changed": (3, 4)},
    r"kept has shape \[2, 2, 4\], must be \[2, 3, 4\]": {"kept": (2, 2, 4)},
    r"inverse has shape \[6, 6, 1\], must be \[6, 6\]": {"inverse": (6, 6, 1)},
    r"entering has shape \[2, 2, 5\], must be \[2, e, 4\]": {"entering": (2, 2, 5)},
}


@pytest.mark.parametrize("message", WRONG_STEPS)
def test_errors_name_what_is_wrong(message):
    shapes = {"kept": (2, 3, 4), "changed": (2, 3, 4), "b_log_s": (2, 6, 4), "inverse": (6, 6)}
    assert_refused(message, flow_step_inverse, **zeros_for_shapes(shapes | WRONG_STEPS[message]))


def test_shapes_of_the_coupling_must_fit():
    for coupling in (affine_coupling, affine_coupling_inverse):
        assert_refused(
            r"b_log_s has shape \[1, 3, 5\], must be \[1, 4, 5\]", coupling, torch.zeros(1, 2, 5), torch.zeros(1, 3, 5)
        )


@pytest.mark.parametrize("coupling", [affine_coupling, affine_coupling_inverse])
def test_integers_are_refused(coupling):
    halves = torch.ones(1, 2, 5), torch.ones(1, 4, 5)
    assert_refused("[xy] has dtype int64, must be a floating-point dtype", coupling, halves[0].long(), halves[1])
    assert_refused("b_log_s has dtype int32, must be", coupling, halves[0], halves[1].int())


def tensor(kind, dtype, device, *shape):
    """Random [B, channels, T]: dense, the last channels and positions of a larger tensor, or dense channels-last."""
    items, channels, length = shape
    if kind == "halves":
        return torch.randn(items, 2 * channels, 3 + length, device=device).to(dtype)[:, channels:, 3:]
    if kind == "channels-last":
        return torch.randn(items, length, channels, device=device).to(dtype).transpose(1, 2)
    return torch.randn(shape, device=device).to(dtype)


def check_sum(actual, exact):
    """The sum of log s may be small by cancellation: its error scales with its summands."""
    *_, log_s, log_s_sum = exact
    assert actual[2].dtype == torch.float32
    assert abs(actual[2].item() - log_s_sum.item()) <= 1e-6 * log_s.abs().sum().item()


def check_coupling(name, n_outputs, kind, dtype, device, shape, b_kind=None, used=(True, True, True)):
    """Compares with float64; `used`: which of the outputs have a gradient."""
    items, n, length = shape
    x = tensor(kind, dtype, device, *shape).requires_grad_()
    b_log_s = tensor(b_kind or kind, dtype, device, items, 2 * n, length).requires_grad_()
    ds = [tensor(kind, dtype, device, *shape) for _ in range(2)] + [torch.randn((), device=device)]
    upstream = [d if u else None for d, u in zip(ds, used, strict=True)][:n_outputs]
    function, plain = getattr(kernels, name), getattr(reference, name)
    arguments = {"y" if name.endswith("inverse") else "x": x, "b_log_s": b_log_s}
    if n_outputs == 3:
        arguments["return_log_s_sum"] = True

    actual = differentiate(function, arguments, upstream)
    rounded = perturbed(lambda: differentiate(plain, arguments, upstream))
    exact = differentiate(plain, cast(arguments, torch.float64), upstream)
    assert len(actual.outputs) == n_outputs
    if n_outputs == 3:
        check_sum(actual.outputs, exact.outputs)
    actual, rounded, exact = (results._replace(outputs=results.outputs[:2]) for results in (actual, rounded, exact))
    assert_results_as_exact_as(actual, rounded, exact, CAPS)


@dataclass(frozen=True)
class Step:
    """A call of flow_step_inverse on c channels, with e entering."""

    c: int
    length: int = 65
    e: int = 0
    swap: bool = False
    kind: str = "contiguous"
    items: int = 2

    def arguments(self, dtype, device):
        half = (self.items, self.c // 2, self.length)
        kept, changed = (tensor(self.kind, dtype, device, *half) for _ in range(2))
        b_log_s = tensor(self.kind, dtype, device, self.items, self.c, self.length)
        inverse = torch.randn(self.c, self.c, device=device).T
        entering = tensor(self.kind, dtype, device, self.items, self.e, self.length) if self.e else None
        return {
            "kept": kept,
            "changed": changed,
            "b_log_s": b_log_s,
            "inverse": inverse,
            "entering": entering,
            "swap": self.swap,
        }

    def check(self, dtype, device):
        check_against_fp64(flow_step_inverse, reference.flow_step_inverse, self.arguments(dtype, device), CAPS)


STEPS = [
    Step(2, length=1),
    Step(4, e=2, length=7),
    Step(8, e=2),
    Step(8, e=1, swap=True, kind="halves"),
    Step(6, e=2, length=130, items=1, kind="halves"),
    Step(6, swap=True, kind="channels-last", length=33),
    Step(8, e=2, kind="channels-last"),
    Step(16, e=4, swap=True),
]


@pytest.mark.usefixtures("triton_backend")
class TestKernels:
    @FLOAT32_AND_FLOAT16
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(2, 4, 65), (1, 3, 7), (2, 1, 1), (1, 33, 33)], ids=str)
    def test_as_exact_as_pytorch(self, dtype, kind, shape, device):
        check_coupling("affine_coupling", 3, kind, dtype, device, shape)
        check_coupling("affine_coupling_inverse", 1, kind, dtype, device, shape)

    def test_without_the_sum(self, device):
        check_coupling("affine_coupling", 2, "halves", torch.float32, device, (2, 4, 300))

    def test_two_memory_orders(self, device):
        check_coupling("affine_coupling", 3, "halves", torch.float32, device, (2, 4, 33), b_kind="channels-last")
        check_coupling("affine_coupling", 3, "channels-last", torch.float32, device, (2, 4, 33), b_kind="halves")

    @pytest.mark.parametrize("used", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
    def test_outputs_without_a_gradient(self, used, device):
        check_coupling("affine_coupling", 3, "contiguous", torch.float32, device, (2, 2, 33), used=used)

    @pytest.mark.parametrize("config", CONFIGS, ids=str)
    def test_every_configuration(self, config, device):
        with use_config("affine_coupling_fwd", config), use_config("affine_coupling_bwd", config):
            check_coupling("affine_coupling", 3, "contiguous", torch.float32, device, (1, 18, 130))

    def test_mixed_dtypes_promote_as_in_pytorch(self, device):
        x, b_log_s = torch.randn(1, 2, 9, device=device), torch.randn(1, 4, 9, device=device)
        for inputs in ((x.half(), b_log_s), (x, b_log_s.half())):
            inputs = [tensor.requires_grad_() for tensor in inputs]
            results = affine_coupling(*inputs, return_log_s_sum=True)
            plain = perturbed(lambda: reference.affine_coupling(*inputs, return_log_s_sum=True))  # noqa: B023
            exact = reference.affine_coupling(*(x.double() for x in inputs), return_log_s_sum=True)
            for tensors in zip(results[:2], plain[:2], exact[:2], strict=True):
                assert_as_exact_as(*tensors, 2, CAPS[torch.float16][0])
            check_sum(results, exact)
            gradients = torch.autograd.grad(results[0].sum(), inputs)
            assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]

    def test_autocast_gives_the_references_dtypes(self, device):
        x, b_log_s = torch.randn(1, 2, 9, device=device).half(), torch.randn(1, 4, 9, device=device).half()
        with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
            results, expected = (module.affine_coupling(x, b_log_s) for module in (kernels, reference))
            inverses = [module.affine_coupling_inverse(x, b_log_s) for module in (kernels, reference)]
        assert [result.dtype for result in results] == [y.dtype for y in expected]
        assert inverses[0].dtype == inverses[1].dtype

    @pytest.mark.parametrize("wanted", [(1, 0), (0, 1)], ids=str)
    @pytest.mark.parametrize("function", ["affine_coupling", "affine_coupling_inverse"])
    def test_only_wanted_gradients(self, wanted, function, device):
        x, b_log_s = torch.randn(2, 2, 9, device=device), torch.randn(2, 4, 9, device=device)
        dy = torch.randn(2, 2, 9, device=device)

        def run(module, *wanted):
            inputs = [x.detach().requires_grad_(bool(w)) for x, w in zip((x, b_log_s), wanted, strict=True)]
            result = getattr(module, function)(*inputs)
            (result[0] if isinstance(result, tuple) else result).backward(dy)
            return [x.grad for x in inputs]

        for gradient, expected, w in zip(run(kernels, *wanted), run(reference, 1, 1), wanted, strict=True):
            if w:
                torch.testing.assert_close(gradient, expected)
            else:
                assert gradient is None

    def test_a_gradient_reaches_log_s_from_all_its_uses(self, device):
        def run(module):
            b_log_s = torch.linspace(-1, 1, 40, device=device).view(1, 4, 10).requires_grad_()
            h = b_log_s * 1.5
            y, log_s, log_s_sum = module.affine_coupling(torch.ones(1, 2, 10, device=device), h, return_log_s_sum=True)
            (y.square().sum() + (log_s**3).sum() + 2 * log_s_sum + h.sin().sum()).backward()
            return b_log_s.grad

        torch.testing.assert_close(run(kernels), run(reference))

    def test_log_s_needs_a_gradient_where_its_input_does(self, device):
        x, b_log_s = torch.randn(1, 2, 5, device=device), torch.randn(1, 4, 5, device=device)
        for x_needs, b_needs in ((True, False), (False, True), (False, False)):
            inputs = (x.detach().requires_grad_(x_needs), b_log_s.detach().requires_grad_(b_needs))
            y, log_s, log_s_sum = affine_coupling(*inputs, return_log_s_sum=True)
            assert y.requires_grad == (x_needs or b_needs)
            assert log_s.requires_grad == log_s_sum.requires_grad == b_needs

    def test_inputs_are_not_changed(self, device):
        inputs = [torch.randn(1, 2, 5, device=device), torch.randn(1, 4, 5, device=device)]
        before = [x.clone() for x in inputs]
        affine_coupling(*inputs, return_log_s_sum=True)
        affine_coupling_inverse(*inputs)
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))

    @FLOAT32_AND_FLOAT16
    @pytest.mark.parametrize("step", STEPS, ids=str)
    def test_flow_step_as_exact_as_pytorch(self, step, dtype, device):
        step.check(dtype, device)

    @pytest.mark.parametrize("config", FLOW_STEP_CONFIGS, ids=str)
    def test_every_configuration_of_the_flow_step(self, config, device):
        with use_config("flow_step_inverse", config):
            Step(16, e=2, length=600, items=1).check(torch.float32, device)

    def test_flow_step_with_scales_beyond_float16(self, device):
        """exp(log s) is beyond float16's range, changed / exp(log s) is not."""
        step = Step(4, length=9).arguments(torch.float16, device)
        step["b_log_s"][:, 2:] = -18.0
        step["changed"] *= 1e-4
        step["b_log_s"][:, :2] = 0.0
        assert reference.flow_step_inverse(**step).isfinite().logical_not().any()
        exact = reference.flow_step_inverse(**cast(step, torch.float64))
        scale = exact.abs().max().item()
        torch.testing.assert_close(flow_step_inverse(**step).double(), exact, rtol=2e-3, atol=2e-3 * scale)

    def test_the_result_has_the_memory_order_of_the_changed_half(self, device):
        for kind in KINDS:
            step = Step(8, e=2, kind=kind).arguments(torch.float32, device)
            out = flow_step_inverse(**step)
            assert (out.transpose(1, 2) if kind == "channels-last" else out).is_contiguous()
            y, _ = affine_coupling(step["changed"], step["b_log_s"])
            assert (y.transpose(1, 2) if kind == "channels-last" else y).is_contiguous()

    def test_flow_step_of_tensors_of_several_dtypes(self, device):
        step = Step(4, e=2, length=9).arguments(torch.float32, device)
        changed = step["changed"].half()
        out = flow_step_inverse(**step | {"changed": changed})
        expected = reference.flow_step_inverse(**step | {"changed": changed.float()})
        assert out.dtype == torch.float16
        torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-2)


class TestWithoutKernels:
    def test_flow_step_that_needs_gradients(self, device):
        step = Step(4, length=5).arguments(torch.float32, device)
        step["inverse"].requires_grad_()
        assert_kernels_refuse("no backward pass", flow_step_inverse, **step)
        flow_step_inverse(**step).sum().backward()
        assert step["inverse"].grad.isfinite().all()

    def test_flow_step_of_many_channels(self, device):
        step = Step(18, length=5)
        assert_kernels_refuse("18 channels, more than 16", flow_step_inverse, **step.arguments(torch.float32, device))
        step.check(torch.float32, device)

    @pytest.mark.parametrize("shape", [(0, 2, 5), (2, 2, 0), (2, 0, 5)], ids=str)
    def test_empty_inputs(self, shape, device, poison):
        items, n, length = shape
        x = torch.randn(shape, device=device, requires_grad=True)
        b_log_s = torch.randn(items, 2 * n, length, device=device, requires_grad=True)
        with use_backend("triton"):
            y, log_s, log_s_sum = affine_coupling(x, b_log_s, return_log_s_sum=True)
            inverse = affine_coupling_inverse(x, b_log_s)
            with torch.no_grad():
                out = flow_step_inverse(x, x, b_log_s, torch.randn(2 * n, 2 * n, device=device))
        assert y.shape == log_s.shape == inverse.shape == x.shape
        assert out.shape == b_log_s.shape
        assert log_s_sum.item() == 0
        (y.sum() + log_s.sum() + log_s_sum + inverse.sum()).backward()
        assert x.grad.shape == x.shape
        assert b_log_s.grad.shape == b_log_s.shape


@pytest.mark.gpu
@pytest.mark.usefixtures("triton_backend")
class TestOnGPU:
    @EVERY_DTYPE
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(8, 4, 2000), (1, 3, 100_000), (4, 80, 777)], ids=str)
    def test_full_size(self, dtype, kind, shape):
        check_coupling("affine_coupling", 3, kind, dtype, "cuda", shape)
        check_coupling("affine_coupling_inverse", 1, kind, dtype, "cuda", shape)

    @EVERY_DTYPE
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("c", [4, 6, 8, 16])
    @pytest.mark.parametrize("items", [1, 16])
    def test_flow_step_of_full_size(self, dtype, kind, c, items):
        Step(c, length=20_000, e=2, items=items, kind=kind, swap=c == 6).check(dtype, "cuda")

    def test_same_bits_every_time(self):
        x, b_log_s = torch.randn(8, 4, 2000, device="cuda"), torch.randn(8, 8, 2000, device="cuda")
        first, *others = (affine_coupling(x, b_log_s, return_log_s_sum=True) for _ in range(3))
        for other in others:
            assert_same_bits(other, first)

    def test_in_a_graph(self):
        flow_step = Step(8, e=2, length=1000).arguments(torch.float16, "cuda")
        x = torch.randn(2, 4, 1000, device="cuda", requires_grad=True)
        b_log_s = torch.randn(2, 8, 1000, device="cuda", requires_grad=True)

        def step():
            y, log_s, log_s_sum = affine_coupling(x, b_log_s, return_log_s_sum=True)
            gradients = torch.autograd.grad(y.sum() + log_s_sum, (x, b_log_s))
            return flow_step_inverse(**flow_step), y, log_s_sum, *gradients

        graph, results = recorded(step)
        with torch.no_grad():
            for changing in (x, b_log_s, flow_step["changed"]):
                changing.copy_(torch.randn_like(changing))
        graph.replay()
        assert_same_bits(results, step())

    def test_element_indices_beyond_32_bits(self):
        x = torch.zeros(1, 4, 2**29 + 17, dtype=torch.float16, device="cuda")
        b_log_s = torch.zeros(1, 8, 2**29 + 17, dtype=torch.float16, device="cuda")
        end = slice(-9, None)
        x[..., end], b_log_s[..., end] = torch.randn(1, 4, 9).half(), torch.randn(1, 8, 9).half()
        inverse = torch.randn(8, 8, device="cuda")
        y, _ = affine_coupling(x, b_log_s)
        torch.testing.assert_close(y[..., end], affine_coupling(x[..., end], b_log_s[..., end])[0])
        del y
        out = flow_step_inverse(x, x, b_log_s, inverse)
        torch.testing.assert_close(
            out[..., end], flow_step_inverse(x[..., end], x[..., end], b_log_s[..., end], inverse)
        )
