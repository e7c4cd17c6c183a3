"""The bound of rounding errors: correct results pass for any rounding of PyTorch's results, wrong ones fail."""

import pytest
import torch
from torch import Tensor

from fastglow.diagnosis.rounding import RUNS, perturbed

from .checks import assert_as_exact_as

UNIT = torch.finfo(torch.float32).eps / 2
NO_CAP = 1e9


def passes(actual: Tensor, references: Tensor, exact: Tensor, factor: float = 2, cap: float = NO_CAP) -> bool:
    try:
        assert_as_exact_as(actual, references, exact, factor, cap)
    except AssertionError:
        return False
    return True


def cancelling(n: int) -> Tensor:
    """[n] float32 values whose sum is small compared to the sum of their absolute values."""
    x = torch.randn(n)
    x[0] -= x.double().sum().float() * (1 - 1e-4)
    return x


def in_order(terms: Tensor) -> Tensor:
    """The sum, one term after the other: the order with the largest errors."""
    total = torch.zeros((), dtype=terms.dtype)
    for term in terms:
        total = total + term
    return total


# Sums: the bound depends on the sum of the absolute terms.


@pytest.mark.parametrize("n", [3, 17, 200, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_a_cancelling_sum_passes(n, seed):
    torch.manual_seed(seed)
    x = cancelling(n)
    references, exact = perturbed(lambda: x.sum()), x.double().sum()
    for order in (torch.arange(n), torch.arange(n).flip(0), torch.randperm(n), x.abs().argsort()):
        assert passes(in_order(x[order]), references, exact)


@pytest.mark.parametrize("n", [3, 17, 200, 1000])
@pytest.mark.parametrize("units", [4, -4, 16])
def test_an_error_of_a_few_units_of_the_terms_fails(n, units):
    x = cancelling(n)
    exact = x.double().sum()
    wrong = (exact + units * UNIT * x.double().abs().sum()).float()
    assert not passes(wrong, perturbed(lambda: x.sum()), exact)


def test_a_reference_that_happens_to_be_exact_does_not_tighten_the_bound():
    x = torch.tensor([1.0, 2.0**-23, -1.0, 2.0**-24])  # PyTorch may sum them exactly
    exact = x.double().sum()
    references = perturbed(lambda: x.sum())
    assert passes(in_order(x), references, exact)
    assert passes((exact + UNIT * x.abs().sum()).float(), references, exact)
    assert not passes((exact + 8 * UNIT * x.abs().sum()).float(), references, exact)


def test_the_bound_does_not_depend_on_the_order_of_summation():
    x, bounds = cancelling(512), []
    for _ in range(9):
        shuffled = x[torch.randperm(512)]
        bounds.append((perturbed(shuffled.sum) - x.double().sum()).abs().max().item())
    assert max(bounds) <= 1.01 * min(bounds)
    assert max(bounds) == pytest.approx(UNIT * x.abs().sum().item(), rel=0.01)


# Products of matrices.


def product(dtype: torch.dtype, inner: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.randn(6, inner).to(dtype), torch.randn(inner, 5).to(dtype)
    return a, b, a.double() @ b.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_product_accumulated_in_float32_passes(dtype):
    a, b, exact = product(dtype)
    references = perturbed(lambda: a @ b)
    assert references.dtype == dtype
    assert references.shape == (RUNS, 6, 5)
    one_by_one = in_order(a.float().T.unsqueeze(2) * b.float().unsqueeze(1))
    for actual in (exact, a.float() @ b.float(), one_by_one):
        assert passes(actual.to(dtype), references, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inner", [128, 256, 1000])
def test_a_product_accumulated_in_16_bits_fails(dtype, inner):
    a, b, exact = product(dtype, inner)
    actual = in_order(a.T.unsqueeze(2) * b.unsqueeze(1))
    assert not passes(actual, perturbed(lambda: a @ b), exact)


@pytest.mark.parametrize("rounded", [torch.float16, torch.bfloat16], ids=str)
def test_operands_rounded_to_16_bits_fail_in_float32(rounded):
    a, b, exact = product(torch.float32)
    references = perturbed(lambda: a @ b)
    assert not passes(a.to(rounded).float() @ b, references, exact)
    assert not passes((a @ b).to(rounded).float(), references, exact)


def test_a_missing_term_fails():
    a, b, exact = product(torch.float32)
    a[:, -1] = 1e-3
    assert not passes(a[:, :-1] @ b[:-1], perturbed(lambda: a @ b), a.double() @ b.double())


# Functions, gradients, chains.


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.exp, lambda x: torch.softmax(x, dim=0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_functions_are_accurate_to_a_few_units(function, dtype):
    x = torch.randn(300).to(dtype)
    references, exact = perturbed(lambda: function(x)), function(x.double())
    unit = torch.finfo(dtype).eps / 2
    assert passes(exact.to(dtype), references, exact)
    assert passes(function(x), references, exact)
    assert not passes((exact * (1 + 40 * unit)).to(dtype), references, exact)


def test_gradients_get_random_errors_too():
    x = torch.randn(40, 7, requires_grad=True)
    weight = torch.randn(7, 3)

    def gradient(x: Tensor, weight: Tensor) -> dict:
        y = torch.tanh(x @ weight).sum()
        return {"x": torch.autograd.grad(y, x)[0], "none": None}

    references = perturbed(lambda: gradient(x, weight))
    exact = gradient(x.detach().double().requires_grad_(), weight.double())["x"]
    assert references["none"] is None
    assert len({tuple(run.flatten().tolist()) for run in references["x"]}) == RUNS
    assert passes(gradient(x, weight)["x"], references["x"], exact, factor=3)
    assert not passes(gradient(x, weight)["x"] * (1 + 200 * UNIT), references["x"], exact, factor=3)


def test_moving_values_adds_no_error():
    x = torch.randn(6, 8)
    references = perturbed(lambda: torch.cat((x.T.contiguous().relu(), -x.T), dim=1)[1:].flatten() * 0.25)
    exact = torch.cat((x.T.relu(), -x.T), dim=1)[1:].flatten() * 0.25
    assert all(torch.equal(run, exact) for run in references)
    assert not passes(exact * (1 + 2 * UNIT), references, exact.double())


def test_errors_of_inverses_scale_with_the_condition_number():
    exact_matrix = torch.diag(torch.tensor([1.0, 1e-3, 1.0, 1e-3])) + 0.3 * torch.ones(4, 4)
    references, exact = perturbed(lambda: torch.linalg.inv(exact_matrix)), torch.linalg.inv(exact_matrix.double())
    assert passes(torch.linalg.inv(exact_matrix), references, exact)
    condition = torch.linalg.cond(exact_matrix.double()).item()
    assert not passes((exact * (1 + 100 * condition * UNIT)).float(), references, exact)


def test_written_tensors_and_wider_intermediates_keep_their_dtypes():
    x = torch.randn(5, 9).half()

    def step() -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float().sum(dim=1)
        out = torch.zeros(5, 5)
        torch.addmm(out, x.float(), x.float().T, out=out)
        return wide, wide.half(), out.add_(1)

    wide, narrow, out = perturbed(step)
    assert [y.dtype for y in (wide, narrow, out)] == [torch.float32, torch.float16, torch.float32]
    exact = x.double().sum(dim=1)
    assert passes(x.float().sum(dim=1), wide, exact)
    assert not passes(x.sum(dim=1).float(), wide, exact)  # the bound of the wider sum is that of float32
    assert passes(x.sum(dim=1), narrow, exact)
    assert passes(x.float() @ x.float().T + 1, out, x.double() @ x.double().T + 1)


# The cap.


def test_the_cap_allows_for_cancellation():
    x = torch.rand(40) + 1
    references, exact = perturbed(lambda: x.sum()), x.double().sum()
    assert passes(x.sum(), references, exact, cap=1e-6)
    assert not passes((exact * (1 + UNIT)).float(), references, exact, cap=UNIT / 8)
    x = cancelling(400)
    assert passes(in_order(x), perturbed(lambda: x.sum()), x.double().sum(), cap=1e-5)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_result_that_is_not_finite_fails(wrong):
    x = torch.randn(4, 4)
    actual = x @ x
    actual[1, 2] = wrong
    assert not passes(actual, perturbed(lambda: x @ x), x.double() @ x.double())


def test_another_dtype_or_shape_fails():
    x = torch.randn(4, 4)
    references, exact = perturbed(lambda: x @ x), x.double() @ x.double()
    assert not passes((x @ x).double(), references, exact)
    assert not passes((x @ x)[:2], references, exact)
    assert passes((x @ x)[:0], references[:, :0], exact[:0])
