"""Affine coupling: the reference against scalar arithmetic and its own inverse, the kernels against it in fp64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck

from fastglow.errors import FastglowError
from fastglow.kernels import affine_coupling, affine_coupling_inverse, flow_step_inverse
from fastglow.kernels.affine_coupling import CONFIGS, FLOW_STEP_CONFIGS
from fastglow.kernels.backend import use_backend
from fastglow.kernels.launch import use_config
from fastglow.kernels.reference import affine_coupling as reference

from .conftest import assert_as_exact_as, recorded
from .rounding import drawn

CAPS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
KINDS = ["contiguous", "halves", "channels-last"]


def test_one_number_at_a_time(leaf):
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
def test_a_flow_step_backwards_undoes_one_forwards(leaf, swap):
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
def test_gradients_of_a_flow_step_backwards(leaf, swap):
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
    with pytest.raises(FastglowError, match=message):
        flow_step_inverse(**{name: torch.zeros(shape) for name, shape in {**shapes, **WRONG_STEPS[message]}.items()})


def test_shapes_of_the_coupling_must_fit():
    for coupling in (affine_coupling, affine_coupling_inverse):
        with pytest.raises(FastglowError, match=r"b_log_s has shape \[1, 3, 5\], must be \[1, 4, 5\]"):
            coupling(torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))


def tensor(kind, dtype, device, *shape):
    """Random [B, channels, T]: dense, the last channels and positions of more, or dense with channels innermost."""
    items, channels, length = shape
    if kind == "halves":
        return torch.randn(items, 2 * channels, 3 + length, device=device).to(dtype)[:, channels:, 3:]
    if kind == "channels-last":
        return torch.randn(items, length, channels, device=device).to(dtype).transpose(1, 2)
    return torch.randn(shape, device=device).to(dtype)


def check_sum(actual, exact):
    """The sum of log s may be small by cancellation: its rounding is that of the summands."""
    *_, log_s, log_s_sum = exact
    assert actual[2].dtype == torch.float32
    assert abs(actual[2].item() - log_s_sum.item()) <= 1e-6 * log_s.abs().sum().item()


def check_coupling(function, outputs, kind, dtype, device, shape, b_kind=None, used=(True, True, True)):
    """Compares with fp64; `used`: which of the outputs have a gradient."""
    items, n, length = shape
    x = tensor(kind, dtype, device, *shape)
    b_log_s = tensor(b_kind or kind, dtype, device, items, 2 * n, length)
    douts = [tensor(kind, dtype, device, *shape) for _ in range(2)] + [torch.randn((), device=device)]

    def run(module, *inputs):
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        options = {"return_log_s_sum": True} if outputs == 3 else {}
        results = getattr(module, function)(*inputs, **options)
        results = results if isinstance(results, tuple) else (results,)
        assert len(results) == outputs
        pairs = [(y, dy.to(y.dtype)) for y, dy, u in zip(results, douts, used, strict=False) if u]
        outs, grads = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outs, inputs, grads, allow_unused=True)
        return results, [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]

    actual, actual_gradients = run(PUBLIC, x, b_log_s)
    plain, plain_gradients = drawn(lambda: run(reference, x, b_log_s))
    exact, exact_gradients = run(reference, x.double(), b_log_s.double())
    for results in zip(actual[:2], plain[:2], exact[:2], strict=True):
        assert_as_exact_as(*results, 2, CAPS[dtype])
    if outputs == 3:
        check_sum(actual, exact)
    for gradients in zip(actual_gradients, plain_gradients, exact_gradients, strict=True):
        assert_as_exact_as(*gradients, 3, CAPS[dtype])


class PUBLIC:
    affine_coupling = staticmethod(affine_coupling)
    affine_coupling_inverse = staticmethod(affine_coupling_inverse)


@dataclass(frozen=True)
class Step:
    """A call of flow_step_inverse on c channels, with e entering."""

    c: int
    length: int = 65
    e: int = 0
    swap: bool = False
    kind: str = "contiguous"
    items: int = 2

    def inputs(self, dtype, device):
        half = (self.items, self.c // 2, self.length)
        kept, changed = (tensor(self.kind, dtype, device, *half) for _ in range(2))
        b_log_s = tensor(self.kind, dtype, device, self.items, self.c, self.length)
        inverse = torch.randn(self.c, self.c, device=device).T
        entering = tensor(self.kind, dtype, device, self.items, self.e, self.length) if self.e else None
        return kept, changed, b_log_s, inverse, entering

    def check(self, dtype, device):
        inputs = self.inputs(dtype, device)
        actual = flow_step_inverse(*inputs, swap=self.swap)
        plain = drawn(lambda: reference.flow_step_inverse(*inputs, swap=self.swap))
        exact = reference.flow_step_inverse(*(x if x is None else x.double() for x in inputs), swap=self.swap)
        assert_as_exact_as(actual, plain, exact, 2, CAPS[dtype])


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
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(2, 4, 65), (1, 3, 7), (2, 1, 1), (1, 33, 33)], ids=str)
    def test_as_exact_as_pytorch(self, dtype, kind, shape, device):
        check_coupling("affine_coupling", 3, kind, dtype, device, shape)
        check_coupling("affine_coupling_inverse", 1, kind, dtype, device, shape)

    def test_without_the_sum(self, device):
        check_coupling("affine_coupling", 2, "halves", torch.float32, device, (2, 4, 300))

    def test_two_orders_in_memory(self, device):
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
            plain = drawn(lambda: reference.affine_coupling(*inputs, return_log_s_sum=True))  # noqa: B023
            exact = reference.affine_coupling(*(x.double() for x in inputs), return_log_s_sum=True)
            for tensors in zip(results[:2], plain[:2], exact[:2], strict=True):
                assert_as_exact_as(*tensors, 2, CAPS[torch.float16])
            check_sum(results, exact)
            gradients = torch.autograd.grad(results[0].sum(), inputs)
            assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]

    def test_autocast_gives_the_references_dtypes(self, device):
        x, b_log_s = torch.randn(1, 2, 9, device=device).half(), torch.randn(1, 4, 9, device=device).half()
        with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
            results, expected = (module.affine_coupling(x, b_log_s) for module in (PUBLIC, reference))
            inverses = [module.affine_coupling_inverse(x, b_log_s) for module in (PUBLIC, reference)]
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

        for gradient, expected, w in zip(run(PUBLIC, *wanted), run(reference, 1, 1), wanted, strict=True):
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

        torch.testing.assert_close(run(PUBLIC), run(reference))

    def test_log_s_needs_a_gradient_where_its_input_does(self, device):
        x, b_log_s = torch.randn(1, 2, 5, device=device), torch.randn(1, 4, 5, device=device)
        for x_needs, b_needs in ((True, False), (False, True), (False, False)):
            inputs = (x.detach().requires_grad_(x_needs), b_log_s.detach().requires_grad_(b_needs))
            y, log_s, log_s_sum = affine_coupling(*inputs, return_log_s_sum=True)
            assert y.requires_grad == (x_needs or b_needs)
            assert log_s.requires_grad == log_s_sum.requires_grad == b_needs

    def test_log_s_is_no_copy(self, device):
        b_log_s = torch.randn(1, 4, 5, device=device, requires_grad=True)
        _, log_s = affine_coupling(torch.randn(1, 2, 5, device=device), b_log_s)
        assert log_s.data_ptr() == b_log_s[:, 2:].data_ptr()

    def test_inputs_stay_as_they_are(self, device):
        inputs = [torch.randn(1, 2, 5, device=device), torch.randn(1, 4, 5, device=device)]
        before = [x.clone() for x in inputs]
        affine_coupling(*inputs, return_log_s_sum=True)
        affine_coupling_inverse(*inputs)
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("step", STEPS, ids=str)
    def test_flow_step_as_exact_as_pytorch(self, step, dtype, device):
        step.check(dtype, device)

    @pytest.mark.parametrize("config", FLOW_STEP_CONFIGS, ids=str)
    def test_every_configuration_of_the_flow_step(self, config, device):
        with use_config("flow_step_inverse", config):
            Step(16, e=2, length=600, items=1).check(torch.float32, device)

    def test_flow_step_with_scales_beyond_float16(self, device):
        """exp(log s) is beyond float16's range, changed / exp(log s) is not."""
        kept, changed, b_log_s, inverse, _ = Step(4, length=9).inputs(torch.float16, device)
        b_log_s[:, 2:] = -18.0
        changed, b_log_s[:, :2] = changed * 1e-4, 0.0
        result = flow_step_inverse(kept, changed, b_log_s, inverse)
        assert reference.flow_step_inverse(kept, changed, b_log_s, inverse).isfinite().logical_not().any()
        exact = reference.flow_step_inverse(*(x.double() for x in (kept, changed, b_log_s, inverse)))
        torch.testing.assert_close(result.double(), exact, rtol=2e-3, atol=2e-3 * exact.abs().max().item())

    def test_order_in_memory_is_that_of_what_is_changed(self, device):
        for kind in KINDS:
            inputs = Step(8, e=2, kind=kind).inputs(torch.float32, device)
            out = flow_step_inverse(*inputs)
            assert (out.transpose(1, 2) if kind == "channels-last" else out).is_contiguous()
            y, _ = affine_coupling(inputs[1], inputs[2])
            assert (y.transpose(1, 2) if kind == "channels-last" else y).is_contiguous()

    def test_flow_step_of_tensors_of_several_dtypes(self, device):
        kept, changed, b_log_s, inverse, entering = Step(4, e=2, length=9).inputs(torch.float32, device)
        out = flow_step_inverse(kept, changed.half(), b_log_s, inverse, entering)
        expected = reference.flow_step_inverse(kept, changed.half().float(), b_log_s, inverse, entering)
        assert out.dtype == torch.float16
        torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-2)


class TestWithoutKernels:
    def test_flow_step_that_needs_gradients(self, device):
        kept, changed, b_log_s, inverse, _ = Step(4, length=5).inputs(torch.float32, device)
        inverse.requires_grad_()
        with use_backend("triton"), pytest.raises(FastglowError, match="no backward pass"):
            flow_step_inverse(kept, changed, b_log_s, inverse)
        flow_step_inverse(kept, changed, b_log_s, inverse).sum().backward()
        assert inverse.grad.isfinite().all()

    def test_flow_step_of_many_channels(self, device):
        step = Step(18, length=5)
        with use_backend("triton"), pytest.raises(FastglowError, match="18 channels, more than 16"):
            step.check(torch.float32, device)
        step.check(torch.float32, device)

    @pytest.mark.parametrize("shape", [(0, 2, 5), (2, 2, 0), (2, 0, 5)], ids=str)
    def test_nothing_to_do(self, shape, device, poison):
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
    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(8, 4, 2000), (1, 3, 100_000), (4, 80, 777)], ids=str)
    def test_full_size(self, dtype, kind, shape):
        check_coupling("affine_coupling", 3, kind, dtype, "cuda", shape)
        check_coupling("affine_coupling_inverse", 1, kind, dtype, "cuda", shape)

    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("c", [4, 6, 8, 16])
    @pytest.mark.parametrize("items", [1, 16])
    def test_flow_step_of_full_size(self, dtype, kind, c, items):
        Step(c, length=20_000, e=2, items=items, kind=kind, swap=c == 6).check(dtype, "cuda")

    def test_same_bits_every_time(self):
        x, b_log_s = torch.randn(8, 4, 2000, device="cuda"), torch.randn(8, 8, 2000, device="cuda")
        first, *others = (affine_coupling(x, b_log_s, return_log_s_sum=True) for _ in range(3))
        assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))

    def test_in_a_graph(self):
        inputs = Step(8, e=2, length=1000).inputs(torch.float16, "cuda")
        x = torch.randn(2, 4, 1000, device="cuda", requires_grad=True)
        b_log_s = torch.randn(2, 8, 1000, device="cuda", requires_grad=True)

        def step():
            y, log_s, log_s_sum = affine_coupling(x, b_log_s, return_log_s_sum=True)
            gradients = torch.autograd.grad(y.sum() + log_s_sum, (x, b_log_s))
            return flow_step_inverse(*inputs), y, log_s_sum, *gradients

        graph, results = recorded(step)
        with torch.no_grad():
            for input in (x, b_log_s, inputs[1]):
                input.copy_(torch.randn_like(input))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, step(), strict=True))

    def test_more_elements_than_32_bits_count(self):
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
