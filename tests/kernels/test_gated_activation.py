"""The gated activation unit: the reference against scalar arithmetic, the kernels against the reference in fp64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import gated_activation
from fastglow.kernels.backend import use_backend
from fastglow.kernels.gated_activation.kernels import CONFIGS
from fastglow.kernels.launch import use_config
from fastglow.kernels.reference.gated_activation import DROPOUT_STREAM
from fastglow.kernels.reference.gated_activation import gated_activation as reference

from . import checks
from .test_philox import philox_in_python

# Shapes of b for an a of [2, 6, 5].
SECOND = {
    "absent": None,
    "full": (2, 6, 5),
    "broadcast over time": (2, 6, 1),
    "broadcast over items": (1, 6, 5),
    "broadcast over both": (1, 6, 1),
}
OPTIONS = {
    "plain": {},
    "gate first": {"gate_first": True},
    "dropout before": {"dropout": "before", "p_dropout": 0.3, "seed": 7},
    "dropout after, gate first": {"gate_first": True, "dropout": "after", "p_dropout": 0.6, "seed": -(2**40) - 1},
}
CAPS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=SECOND)
def second(request):
    return SECOND[request.param]


@pytest.fixture
def inputs(second, leaf):
    return (leaf(2, 6, 5),) if second is None else (leaf(2, 6, 5), leaf(*second))


def kept_in_python(i, p_dropout, seed):
    seed %= 2**64
    words = philox_in_python((i % 2**32, i // 2**32, 0, DROPOUT_STREAM), (seed % 2**32, seed // 2**32))
    return (words[0] >> 8) * 2.0**-24 >= p_dropout


@pytest.mark.parametrize("gate_first", [False, True])
def test_against_scalar_arithmetic(inputs, gate_first):
    output = gated_activation(*inputs, gate_first=gate_first)
    assert output.shape == (2, 3, 5)
    a = inputs[0].tolist()
    b = inputs[1].expand(2, 6, 5).tolist() if len(inputs) == 2 else [[[0.0] * 5] * 6] * 2
    for item in range(2):
        for channel in range(3):
            for t in range(5):
                first = a[item][channel][t] + b[item][channel][t]
                other = a[item][3 + channel][t] + b[item][3 + channel][t]
                filtered, gate = (other, first) if gate_first else (first, other)
                expected = math.tanh(filtered) / (1 + math.exp(-gate))
                assert output[item, channel, t].item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, -1])
def test_dropout_against_scalar_arithmetic(leaf, seed):
    a, b, bias = leaf(2, 6, 5), leaf(2, 6, 1), leaf(6)
    options = {"p_dropout": 0.4, "seed": seed}
    product = gated_activation(a, b, bias)
    after = gated_activation(a, b, bias, dropout="after", **options)
    for i, (x, y) in enumerate(zip(product.flatten().tolist(), after.flatten().tolist(), strict=True)):
        assert y == pytest.approx(x / 0.6 if kept_in_python(i, 0.4, seed) else 0, rel=1e-13)
    kept = torch.tensor([kept_in_python(i, 0.4, seed) for i in range(60)], dtype=torch.float64).view(2, 6, 5)
    before = gated_activation(a, b, bias, dropout="before", **options)
    expected = gated_activation((a + bias.unsqueeze(1)) * kept / 0.6, b)
    torch.testing.assert_close(before, expected, rtol=1e-13, atol=0)


def test_gradients(inputs):
    assert gradcheck(gated_activation, inputs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_with_options(leaf, options):
    inputs = (leaf(2, 4, 3), leaf(2, 4, 1), leaf(4))
    assert gradcheck(lambda *inputs: gated_activation(*inputs, **options), inputs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_channels_last_is_the_same_transposed(inputs, leaf, options):
    bias = leaf(6)
    a, b = (*inputs, None)[:2]
    output = gated_activation(a, b, bias, **options)
    swapped = [None if x is None else x.transpose(1, 2) for x in (a, b)]
    assert torch.equal(gated_activation(*swapped, bias, channels_last=True, **options), output.transpose(1, 2))


def test_elements_are_dropped_with_the_given_probability():
    a = torch.ones(4, 100, 500)
    for p_dropout in (0.05, 0.5, 0.9):
        output = gated_activation(a, dropout="after", p_dropout=p_dropout, seed=3)
        checks.assert_fraction(output == 0, p_dropout)
        assert torch.equal(output, gated_activation(a, dropout="after", p_dropout=p_dropout, seed=3))
        assert not torch.equal(output, gated_activation(a, dropout="after", p_dropout=p_dropout, seed=4))


def test_without_a_seed_the_mask_comes_from_pytorchs_generator():
    a = torch.randn(2, 6, 50)
    checks.assert_seeded_by_pytorch(lambda: gated_activation(a, dropout="after", p_dropout=0.5))


def test_zero_probability_is_no_dropout():
    a = torch.randn(2, 6, 5)
    for dropout in ("before", "after"):
        assert torch.equal(gated_activation(a, dropout=dropout, p_dropout=0.0), gated_activation(a))


def test_saturates_without_nan():
    a = torch.tensor([[[1e30], [-1e30]]], requires_grad=True)
    output = gated_activation(a)
    output.sum().backward()
    assert output.item() == 0
    assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    assert gated_activation(torch.randn(1, 2, 3, dtype=dtype)).dtype == dtype


WRONG = {
    "a has 5 channels, must be an even number": {"a": (2, 5, 3)},
    r"a has shape \[6, 5\], must be \[B, 2C, T\]": {"a": (6, 5)},
    r"a has shape \[6, 5\], must be \[B, T, 2C\]": {"a": (6, 5), "channels_last": True},
    "a has 5 channels": {"a": (2, 6, 5), "channels_last": True},
    r"b has shape \[2, 6, 4\], must be \[2, 6, 5\], or 1 for B or T": {"b": (2, 6, 4)},
    r"b has shape \[3, 6, 1\]": {"b": (3, 6, 1)},
    r"b has shape \[6, 5\]": {"b": (6, 5)},
    r"b has shape \[2, 1, 5\]": {"b": (2, 1, 5)},
    "a has dtype int64, must be a floating-point dtype": {"a": torch.ones(2, 6, 5).long()},
    "b has dtype bool, must be": {"b": torch.ones(2, 6, 5).bool()},
    "bias has dtype complex64, must be": {"bias": torch.ones(6).cfloat()},
    r"bias has shape \[3\], must be \[6\]": {"bias": (3,)},
    "dropout='during' must be None, 'before' or 'after'": {"dropout": "during"},
    "p_dropout=1.0 must be at least 0 and below 1": {"dropout": "after", "p_dropout": 1.0},
    "p_dropout=-0.1 must be": {"p_dropout": -0.1},
    "seed=9223372036854775808 does not fit": {"seed": 2**63},
    r"seed has dtype int64, shape \[1\], device cpu": {"seed": torch.zeros(1, dtype=torch.int64)},
    r"seed has dtype float32, shape \[\], device cpu": {"seed": torch.zeros(())},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    arguments = checks.zeros_for_shapes({"a": (2, 6, 5), **WRONG[message]})
    checks.assert_refused(message, gated_activation, **arguments)


@dataclass(frozen=True)
class Case:
    """A call; `shape` of a and `b` of b, both as [B, 2C, T]."""

    shape: tuple[int, int, int]
    b: tuple[int, int, int] | None = None
    bias: bool = False
    channels_last: bool = False
    strided: bool = False
    options: str = "plain"

    def tensor(self, shape, dtype, device):
        """Random [B, channels, T], or the same transposed if channels_last; with gaps in memory if strided."""
        shape = (shape[0], shape[2], shape[1]) if self.channels_last else shape
        if self.strided:
            x = torch.randn(shape[0], shape[2] + 2, 2 * shape[1], device=device)
            return x.transpose(1, 2)[:, ::2, 1:-1].to(dtype)
        return torch.randn(shape, device=device).to(dtype)

    def inputs(self, dtype, device):
        a = self.tensor(self.shape, dtype, device)
        b = None if self.b is None else self.tensor(self.b, dtype, device)
        bias = torch.randn(2 * self.shape[1], device=device)[::2].to(dtype) if self.bias else None
        return a, b, bias

    def run(self, function, inputs, dy):
        """(output, gradients of those inputs that are there)."""
        inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
        output = function(*inputs, channels_last=self.channels_last, **OPTIONS[self.options])
        present = [x for x in inputs if x is not None]
        return output, torch.autograd.grad(output, present, dy.to(output.dtype))

    def check(self, dtype, device):
        inputs = self.inputs(dtype, device)
        items, channels, length = self.shape
        dy = self.tensor((items, channels // 2, length), dtype, device)
        actual, actual_gradients = self.run(gated_activation, inputs, dy)
        plain, plain_gradients = perturbed(lambda: self.run(reference, inputs, dy))
        exact, exact_gradients = self.run(reference, [x if x is None else x.double() for x in inputs], dy)
        checks.assert_as_exact_as(actual, plain, exact, 2, CAPS[dtype])
        for gradients in zip(actual_gradients, plain_gradients, exact_gradients, strict=True):
            checks.assert_as_exact_as(*gradients, 3, CAPS[dtype])
        return actual, exact


# Every option present and absent, each with each layout; sizes that end inside a tile and beyond one.
CASES = [
    Case((1, 2, 1)),
    Case((2, 14, 65)),
    Case((3, 6, 33), b=(3, 6, 33)),
    Case((2, 6, 7), b=(1, 6, 7), options="gate first"),
    Case((2, 6, 33), b=(2, 6, 1), bias=True),
    Case((3, 10, 7), b=(1, 10, 1), bias=True, options="gate first"),
    Case((2, 66, 65), b=(1, 66, 65), bias=True),
    Case((2, 2, 300), b=(2, 2, 1)),
    Case((2, 6, 1), b=(2, 6, 1), bias=True),
    Case((2, 14, 33), channels_last=True),
    Case((2, 66, 7), b=(2, 66, 7), bias=True, channels_last=True, options="gate first"),
    Case((1, 140, 33), b=(1, 140, 1), channels_last=True),
    Case((3, 6, 9), b=(1, 6, 9), channels_last=True),
    Case((3, 6, 9), b=(1, 6, 1), bias=True, channels_last=True, options="gate first"),
    Case((2, 6, 33), b=(2, 6, 33), bias=True, strided=True),
    Case((2, 6, 33), b=(1, 6, 33), strided=True, channels_last=True),
    Case((2, 6, 17), b=(2, 6, 1), strided=True),
    Case((2, 6, 17), b=(2, 6, 17), options="dropout before"),
    Case((2, 6, 17), b=(2, 6, 1), bias=True, options="dropout before"),
    Case((3, 6, 9), b=(1, 6, 9), bias=True, channels_last=True, options="dropout before"),
    Case((2, 6, 17), b=(2, 6, 17), options="dropout after, gate first"),
    Case((2, 6, 9), b=(1, 6, 1), bias=True, channels_last=True, options="dropout after, gate first"),
]

SIZE = (8, 1024, 2000)
FULL_SIZE = [
    Case(SIZE, b=SIZE),
    Case(SIZE, b=SIZE, channels_last=True),
    Case(SIZE, b=(8, 1024, 1), bias=True),
    Case(SIZE, b=(1, 1024, 2000), channels_last=True),
    Case((16, 384, 437), b=(16, 384, 1), bias=True, options="dropout before"),
    Case((16, 384, 437), b=(16, 384, 437), strided=True, options="dropout after, gate first"),
]


@pytest.mark.usefixtures("triton_backend")
class TestKernels:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch(self, case, device):
        case.check(torch.float32, device)

    @pytest.mark.parametrize("case", CASES[2::3], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        case.check(torch.float16, device)

    @pytest.mark.parametrize("config", CONFIGS, ids=str)
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_every_configuration(self, config, channels_last, device):
        case = Case((1, 18, 9), b=(1, 18, 1), channels_last=channels_last)
        with use_config("gated_activation_fwd", config), use_config("gated_activation_bwd", config):
            case.check(torch.float32, device)

    def test_mixed_dtypes_promote_as_in_pytorch(self, device):
        case = Case((2, 6, 9), b=(2, 6, 9), bias=True)
        a, b, bias = case.inputs(torch.float16, device)
        dy = torch.randn(2, 3, 9, device=device)
        for inputs in ((a, b.float(), bias), (a.float(), b, bias), (a, b, bias.float())):
            output, gradients = case.run(gated_activation, inputs, dy)
            expected, expected_gradients = case.run(reference, inputs, dy)
            assert output.dtype == expected.dtype == torch.float32
            torch.testing.assert_close(output, expected, rtol=0, atol=5e-3)
            for gradient, x, y in zip(gradients, inputs, expected_gradients, strict=True):
                assert gradient.dtype == x.dtype
                torch.testing.assert_close(gradient, y, rtol=1e-2, atol=5e-3)

    @pytest.mark.parametrize("dropout", ["before", "after"])
    def test_masks_match_the_references(self, dropout, device):
        # The gate is open and does not overflow: an element is zero only where it was dropped.
        a = torch.full((2, 6, 9), 3.0, device=device)
        for seed in (torch.tensor(1, device=device), 2**62 + 1):
            options = {"dropout": dropout, "p_dropout": 0.5, "seed": seed}
            kept = reference(a, **options) != 0
            assert 10 < kept.sum() < 44
            assert torch.equal(gated_activation(a, **options) != 0, kept)
            last = gated_activation(a.transpose(1, 2).contiguous(), channels_last=True, **options)
            assert torch.equal(last.transpose(1, 2) != 0, kept)

    def test_without_a_seed_the_mask_comes_from_pytorchs_generator(self, device):
        a = torch.randn(2, 6, 20, device=device)
        checks.assert_seeded_by_pytorch(lambda: gated_activation(a, dropout="after", p_dropout=0.5))

    def test_backward_refuses_a_seed_that_changed(self, device):
        a, seed = torch.randn(1, 2, 3, device=device, requires_grad=True), torch.tensor(1, device=device)
        output = gated_activation(a, dropout="after", p_dropout=0.5, seed=seed)
        seed += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()

    @pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
    @pytest.mark.parametrize("over_time", [False, True])
    def test_only_wanted_gradients(self, wanted, over_time, device):
        case = Case((2, 6, 9), b=(2, 6, 1 if over_time else 9), bias=True)
        inputs = case.inputs(torch.float32, device)
        dy = torch.randn(2, 3, 9, device=device)
        _, expected = case.run(reference, inputs, dy)
        inputs = [x.requires_grad_(bool(w)) for x, w in zip(inputs, wanted, strict=True)]
        gated_activation(*inputs).backward(dy)
        for x, w, gradient in zip(inputs, wanted, expected, strict=True):
            if w:
                torch.testing.assert_close(x.grad, gradient)
            else:
                assert x.grad is None

    def test_b_of_another_layout_without_a_gradient(self, device):
        a = torch.randn(2, 6, 5, device=device, requires_grad=True)
        b, dy = torch.randn(2, 5, 6, device=device).transpose(1, 2), torch.randn(2, 3, 5, device=device)
        gradients = [torch.autograd.grad(function(a, b), a, dy)[0] for function in (gated_activation, reference)]
        torch.testing.assert_close(*gradients)

    def test_leaves_have_separate_gradients(self, device):
        a, b = (torch.randn(1, 4, 5, device=device, requires_grad=True) for _ in range(2))
        gated_activation(a, b).sum().backward()
        assert torch.equal(a.grad, b.grad)
        a.grad.zero_()
        assert b.grad.abs().sum() > 0

    def test_inputs_without_gradients(self, device):
        a, b, _ = inputs = Case((1, 4, 5), b=(1, 4, 5)).inputs(torch.float32, device)
        before = [a.clone(), b.clone()]
        with torch.no_grad():
            assert not gated_activation(*inputs).requires_grad
        assert not gated_activation(*inputs).requires_grad
        assert torch.equal(a, before[0])
        assert torch.equal(b, before[1])

    def test_the_result_has_the_memory_order_of_a(self, device):
        a = torch.randn(2, 6, 5, device=device)
        assert gated_activation(a).is_contiguous()
        assert gated_activation(a.transpose(1, 2).contiguous(), channels_last=True).is_contiguous()
        channels_inner = a.transpose(1, 2).contiguous().transpose(1, 2)
        assert gated_activation(channels_inner).transpose(1, 2).is_contiguous()

    def test_expanded_gradient(self, device):
        a = torch.randn(2, 6, 5, device=device, requires_grad=True)
        gated_activation(a).sum().backward()
        b = a.detach().requires_grad_()
        reference(b).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)

    @pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, under the interpreter
    def test_saturates_without_nan(self, device):
        a = torch.tensor([[[1e30], [-1e30]]], device=device, requires_grad=True)
        output = gated_activation(a)
        output.sum().backward()
        assert output.item() == 0
        assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("shape", [(0, 6, 5), (2, 6, 0), (2, 0, 5)])
@pytest.mark.parametrize("b_time", [False, True])
def test_empty_inputs(shape, b_time, device, poison):
    a = torch.randn(shape, device=device, requires_grad=True)
    b = torch.randn(*shape[:2], 1 if b_time else shape[2], device=device, requires_grad=True)
    bias = torch.randn(shape[1], device=device, requires_grad=True)
    with use_backend("triton"):
        output = gated_activation(a, b, bias)
    output.sum().backward()
    assert output.shape == (shape[0], shape[1] // 2, shape[2])
    for x in (a, b, bias):
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.gpu
@pytest.mark.usefixtures("triton_backend")
class TestOnGPU:
    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("case", FULL_SIZE, ids=str)
    def test_full_size(self, dtype, case):
        case.check(dtype, "cuda")

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch_in_bfloat16(self, case):
        case.check(torch.bfloat16, "cuda")

    def test_same_bits_every_time(self):
        case = Case((8, 384, 777), b=(8, 384, 1), bias=True, options="dropout before")
        inputs, dy = case.inputs(torch.float16, "cuda"), torch.randn(8, 192, 777, device="cuda").half()
        first, *others = (case.run(gated_activation, inputs, dy) for _ in range(3))
        for other in others:
            assert torch.equal(other[0], first[0])
            assert all(torch.equal(x, y) for x, y in zip(other[1], first[1], strict=True))

    def test_in_a_graph_with_a_seed_that_changes(self):
        a = torch.randn(2, 384, 100, device="cuda", requires_grad=True)
        dy = torch.randn(2, 192, 100, device="cuda")
        seed = torch.zeros((), dtype=torch.int64, device="cuda")
        options = {"dropout": "after", "p_dropout": 0.5}

        def step():
            output = gated_activation(a, seed=seed, **options)
            return output, torch.autograd.grad(output, a, dy)[0]

        graph, outputs = checks.recorded(step)
        for value in (5, 6):
            seed.fill_(value)
            graph.replay()
            expected = gated_activation(a, seed=value, **options)
            assert torch.equal(outputs[0], expected)
            assert torch.equal(outputs[1], torch.autograd.grad(expected, a, dy)[0])

    def test_element_indices_beyond_32_bits(self):
        a = torch.zeros(1, 4, 2**29 + 17, dtype=torch.float16, device="cuda")
        a[:, :, -9:] = torch.randn(4, 9, device="cuda").half()
        options = {"dropout": "after", "p_dropout": 0.5, "seed": 1}
        output = gated_activation(a, **options)
        last = gated_activation(a.transpose(1, 2), channels_last=True, **options)
        assert torch.equal(last.transpose(1, 2), output)
        expected = gated_activation(a[:, :, -9:].contiguous())
        kept = output[:, :, -9:] != 0
        assert torch.equal(output[:, :, -9:], torch.where(kept, 2 * expected, 0))
        assert output[:, :, :-9].count_nonzero() == 0
