"""The invertible 1x1 convolution: the reference against NumPy, the kernels against the reference in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow import kernels
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import (
    invertible_conv1x1,
    invertible_conv1x1_factors,
    invertible_conv1x1_inverse,
)
from fastglow.kernels.invertible_conv1x1.product import BWD_CONFIGS, FWD_CONFIGS
from fastglow.kernels.launch import use_config
from fastglow.kernels.reference import invertible_conv1x1 as reference

from .checks import (
    FLOAT32_AND_FLOAT16,
    assert_as_exact_as,
    assert_kernels_refuse,
    assert_refused,
    assert_same_bits,
    check_positional_against_fp64,
    launch_counter,
    recorded,
    strided,
)

CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}


@pytest.fixture(params=[1, 2, 3, 8])
def size(request):
    return request.param


@pytest.fixture(params=[1, -1], ids=["det>0", "det<0"])
def weight(request, leaf, size):
    """[size, size, 1] float64, far from singular, with a determinant of the parameter's sign."""
    weight = leaf(size, size, 1)
    with torch.no_grad():
        weight += 3 * torch.eye(size, dtype=torch.float64).unsqueeze(2)
        if torch.det(weight.squeeze(2)).sign() != request.param:
            weight[0] *= -1
    assert np.linalg.slogdet(weight.detach().squeeze(2).numpy()).sign == request.param
    return weight


def test_against_numpy(leaf, weight, size):
    z = leaf(2, size, 5)
    output, log_det = invertible_conv1x1(z, weight)
    matrix = weight.detach().squeeze(2).numpy()
    np.testing.assert_allclose(output.detach(), matrix @ z.detach().numpy(), atol=1e-13)
    assert log_det.shape == ()
    np.testing.assert_allclose(log_det.detach(), np.linalg.slogdet(matrix).logabsdet, atol=1e-13)
    np.testing.assert_allclose(
        invertible_conv1x1_inverse(z, weight).detach(), np.linalg.solve(matrix, z.detach().numpy()), atol=1e-12
    )


def test_factors_against_numpy(leaf, weight, size):
    other = leaf(5, 5, 1)
    inverses, log_dets = invertible_conv1x1_factors([weight, other])
    matrices = [x.detach().squeeze(2).numpy() for x in (weight, other)]
    for inverse, matrix in zip(inverses, matrices, strict=True):
        np.testing.assert_allclose(inverse.detach().numpy() @ matrix, np.eye(len(matrix)), atol=1e-12)
    expected = [np.linalg.slogdet(matrix).logabsdet for matrix in matrices]
    np.testing.assert_allclose(log_dets.detach(), expected, atol=1e-12)


def test_the_inverse_undoes_it(leaf, weight, size):
    z = leaf(2, size, 5)
    there_and_back = invertible_conv1x1_inverse(invertible_conv1x1(z, weight)[0], weight)
    torch.testing.assert_close(there_and_back, z, atol=1e-12, rtol=0)


def test_gradients(leaf, weight, size):
    z = leaf(2, size, 3)
    assert gradcheck(invertible_conv1x1, (z, weight))
    assert gradcheck(invertible_conv1x1_inverse, (z, weight))


def test_gradients_of_the_factors(leaf, weight):
    def factors(*weights):
        inverses, log_dets = invertible_conv1x1_factors(weights)
        return log_dets, *inverses

    assert gradcheck(factors, (weight, (leaf(3, 3, 1) + 3 * torch.eye(3).unsqueeze(2)).detach().requires_grad_()))


def test_gradient_of_the_log_determinant_is_the_transposed_inverse(weight):
    (gradient,) = torch.autograd.grad(invertible_conv1x1(weight.transpose(0, 2), weight)[1], weight)
    np.testing.assert_allclose(gradient.squeeze(2), np.linalg.inv(weight.detach().squeeze(2).numpy()).T, atol=1e-12)


def test_given_factors_are_used(leaf, weight, size):
    z, log_det, inverse = leaf(2, size, 5), torch.randn(()), leaf(size, size)
    output, returned = invertible_conv1x1(z, weight, log_det)
    assert returned is log_det
    torch.testing.assert_close(output, invertible_conv1x1(z, weight)[0], atol=0, rtol=0)
    output = invertible_conv1x1_inverse(z, torch.full_like(weight, torch.nan), inverse)
    torch.testing.assert_close(output, inverse @ z, atol=1e-13, rtol=0)


def test_a_permutation_has_log_determinant_zero():
    weight = torch.eye(4)[[1, 0, 2, 3]].unsqueeze(2)
    assert torch.det(weight.squeeze(2)) == -1
    assert invertible_conv1x1(torch.randn(1, 4, 3), weight)[1] == 0


def test_a_singular_matrix_is_minus_infinity_and_not_nan():
    assert invertible_conv1x1(torch.randn(1, 2, 3), torch.ones(2, 2, 1))[1] == -torch.inf
    (inverse,), log_dets = invertible_conv1x1_factors([torch.ones(2, 2, 1)])
    assert log_dets.tolist() == [-torch.inf]
    assert inverse.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_has_a_float32_determinant_and_inverse(dtype):
    z, weight = torch.randn(2, 4, 3).to(dtype), torch.linalg.qr(torch.randn(4, 4))[0].unsqueeze(2).to(dtype)
    output, log_det = invertible_conv1x1(z, weight)
    assert output.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert log_det.dtype == wide
    assert log_det == torch.linalg.slogdet(weight.squeeze(2).to(wide)).logabsdet
    inverse = invertible_conv1x1_inverse(output, weight)
    assert inverse.dtype == dtype
    torch.testing.assert_close(inverse, z, atol=16 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: invertible_conv1x1(torch.ones(4, 3), torch.ones(4, 4, 1)), r"z has shape \[4, 3\]"),
        (lambda: invertible_conv1x1(torch.ones(2, 3, 5), torch.ones(4, 4, 1)), r"z has shape \[2, 3, 5\]"),
        (lambda: invertible_conv1x1(torch.ones(2, 4, 5), torch.ones(4, 3, 1)), r"weight has shape \[4, 3, 1\]"),
        (lambda: invertible_conv1x1(torch.ones(2, 4, 5), torch.ones(4, 4, 3)), r"weight has shape \[4, 4, 3\]"),
        (lambda: invertible_conv1x1(torch.ones(2, 4, 5), torch.ones(4, 4)), r"weight has shape \[4, 4\]"),
        (
            lambda: invertible_conv1x1(torch.ones(2, 4, 5).half(), torch.ones(4, 4, 1)),
            "z has dtype float16 and weight float32",
        ),
        (
            lambda: invertible_conv1x1(torch.ones(2, 4, 5), torch.ones(4, 4, 1), torch.ones(2)),
            r"log_det has shape \[2\], must be one entry, a scalar",
        ),
        (
            lambda: invertible_conv1x1_inverse(torch.ones(2, 4, 5), torch.ones(4, 4, 1), torch.ones(4, 4, 1)),
            r"inverse has shape \[4, 4, 1\]",
        ),
        (lambda: invertible_conv1x1(*2 * [torch.ones(1, 1, 1).int()]), "z has dtype int32, must be a floating-point"),
        (lambda: invertible_conv1x1_inverse(*2 * [torch.ones(1, 1, 1).int()]), "z has dtype int32, must be"),
        (lambda: invertible_conv1x1_factors([]), "weights is empty"),
        (lambda: invertible_conv1x1_factors([torch.ones(0, 0, 1)]), r"weight has shape \[0, 0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    assert_refused(message, call)


def well_conditioned(c: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    rotation = torch.linalg.qr(torch.randn(c, c))[0]
    return (1.2 * rotation + 0.1 * torch.randn(c, c)).unsqueeze(2).to(device, dtype)


def check(kernel, plain, tensors, **options):
    check_positional_against_fp64(kernel, plain, tensors, CAPS, **options)


def product(module):
    """W z of a module's invertible_conv1x1, without log|det W|."""
    return lambda z, weight: module.invertible_conv1x1(z, weight, torch.zeros((), device=z.device))[0]


def product_with_inverse(module):
    return lambda z, inverse: module.invertible_conv1x1_inverse(z, inverse.unsqueeze(2), inverse)


# Tiles have 256 positions (forward) and 128 (backward).
@FLOAT32_AND_FLOAT16
@pytest.mark.parametrize("shape", [(2, 8, 65), (3, 7, 1), (1, 2, 300), (2, 16, 129), (1, 1, 7)], ids=str)
def test_products_against_fp64(triton_backend, device, shape, dtype):
    z, weight = torch.randn(shape).to(device, dtype), well_conditioned(shape[1], dtype, device)
    check(product(kernels), product(reference), (z, weight))
    inverse = torch.randn(shape[1], shape[1], device=device)
    check(product_with_inverse(kernels), product_with_inverse(reference), (z, inverse))


@FLOAT32_AND_FLOAT16
@pytest.mark.parametrize("c", [1, 3])
def test_products_and_factors_against_fp64(triton_backend, device, c, dtype):
    z, weight = torch.randn(2, c, 33).to(device, dtype), well_conditioned(c, dtype, device)
    check(invertible_conv1x1, reference.invertible_conv1x1, (z, weight))
    check(invertible_conv1x1_inverse, reference.invertible_conv1x1_inverse, (z, weight))


def test_given_factors_need_no_launch(triton_backend, device):
    z, weight = torch.randn(2, 6, 33, device=device), well_conditioned(6, torch.float32, device)
    log_det, inverse = torch.randn((), device=device), torch.randn(6, 6, device=device)
    launches = launch_counter()
    assert invertible_conv1x1(z, weight, log_det)[1] is log_det
    invertible_conv1x1_inverse(z, torch.full_like(weight, torch.nan), inverse)
    assert launches() == 2


@FLOAT32_AND_FLOAT16
def test_products_of_strided_tensors(triton_backend, device, dtype):
    z, weight = strided(torch.randn(2, 8, 37).to(device, dtype)), strided(well_conditioned(8, dtype, device))
    check(product(kernels), product(reference), (z, weight), layout=strided)
    check(
        product_with_inverse(kernels), product_with_inverse(reference), (z, strided(torch.randn(8, 8, device=device)))
    )
    check(product(kernels), product(reference), (z, weight), layout=lambda d: d[:1, :1, :1].expand(d.shape))


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["z only", "weight only"])
def test_only_one_of_two_gradients(triton_backend, device, needed):
    tensors = torch.randn(2, 4, 33, device=device), well_conditioned(4, torch.float32, device)
    check(product(kernels), product(reference), tensors, needed=needed)


@pytest.mark.parametrize("channels", FWD_CONFIGS)
def test_every_configuration(triton_backend, device, channels):
    z, weight = torch.randn(1, channels, 530, device=device), well_conditioned(channels, torch.float32, device)
    plain = perturbed(lambda: product(reference)(z, weight)), product(reference)(z.double(), weight.double())
    for config in FWD_CONFIGS[channels]:
        with use_config("invertible_conv1x1_fwd", config):
            assert_as_exact_as(product(kernels)(z, weight), *plain, 2, CAPS[torch.float32][0])
    for config in BWD_CONFIGS[channels]:
        with use_config("invertible_conv1x1_bwd", config):
            check(product(kernels), product(reference), (z, weight))


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0)], ids=["B = 0", "T = 0"])
def test_kernels_without_positions(triton_backend, device, shape):
    z, weight = torch.randn(shape, device=device), well_conditioned(4, torch.float32, device)
    for leaf in (z, weight):
        leaf.requires_grad_()
    output, log_det = invertible_conv1x1(z, weight)
    assert output.shape == shape
    d_z, d_weight = torch.autograd.grad(
        [output, log_det], [z, weight], [torch.ones_like(output), torch.ones_like(log_det)]
    )
    assert d_z.shape == shape
    torch.testing.assert_close(d_weight.squeeze(2), torch.linalg.inv(weight.squeeze(2)).T, atol=1e-6, rtol=0)
    assert invertible_conv1x1_inverse(z, weight).shape == shape
    (d_weight,) = torch.autograd.grad(invertible_conv1x1_inverse(z, weight).sum(), weight)
    assert not d_weight.any()


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str)
def test_kernels_under_autocast(triton_backend, device, dtype):
    z, weight = torch.randn(2, 4, 33, device=device), well_conditioned(4, torch.float32, device)

    def under_autocast(function):
        def call(z, weight):
            with torch.autocast(device, dtype, enabled=z.dtype == torch.float32):
                return function(z, weight)

        return call

    z, weight = (x.to(dtype).float() for x in (z, weight))  # the cast loses nothing, so the exact result needs none
    output, log_det = under_autocast(invertible_conv1x1)(z, weight)
    assert (output.dtype, log_det.dtype) == (dtype, torch.float32)
    assert under_autocast(invertible_conv1x1_inverse)(z, weight).dtype == dtype
    check(under_autocast(invertible_conv1x1), under_autocast(reference.invertible_conv1x1), (z, weight))


def test_autocast_rounds_what_it_multiplies(triton_backend, device):
    z, weight = torch.randn(2, 4, 33, device=device), well_conditioned(4, torch.float32, device)
    with torch.autocast(device, torch.float16):
        output, log_det = invertible_conv1x1(z, weight)
        inverse = invertible_conv1x1_inverse(z, weight)
    torch.testing.assert_close(output, invertible_conv1x1(z.half(), weight.half(), log_det)[0], atol=0, rtol=0)
    torch.testing.assert_close(inverse, invertible_conv1x1_inverse(z.half(), weight), atol=0, rtol=0)
    torch.testing.assert_close(log_det, invertible_conv1x1_factors([weight])[1][0], atol=0, rtol=0)


def conditioned(c: int, condition: float) -> torch.Tensor:
    """[c, c, 1] float32 with singular values from 10 down to 10 / condition."""
    left, right = (torch.linalg.qr(torch.randn(c, c, dtype=torch.float64))[0] for _ in range(2))
    return (left * torch.logspace(1, 1 - np.log10(condition), c, dtype=torch.float64) @ right).float().unsqueeze(2)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("c", [2, 8])
def test_factors_are_as_exact_as_linalgs(triton_backend, device, c, condition):
    weights = [conditioned(c, condition).to(device) for _ in range(16)]
    exact_inverses, exact_log_dets = reference.invertible_conv1x1_factors([weight.double() for weight in weights])
    inverses, log_dets = invertible_conv1x1_factors(weights)
    scale = torch.stack(exact_inverses).abs().amax(dim=(1, 2), keepdim=True)
    plain = perturbed(lambda: torch.linalg.inv(torch.stack(weights).squeeze(3)))
    assert_as_exact_as(
        torch.stack(inverses) / scale.float(), plain / scale.float(), torch.stack(exact_inverses) / scale, 2, 1e-6
    )
    plain = perturbed(lambda: torch.linalg.slogdet(torch.stack(weights).squeeze(3)).logabsdet)
    assert_as_exact_as(log_dets, plain, exact_log_dets, 2, 1e-6)


@FLOAT32_AND_FLOAT16
@pytest.mark.parametrize("sizes", [(4, 3, 1, 4, 2), (1,)], ids=str)
def test_factors_and_their_gradients(triton_backend, device, sizes, dtype):
    weights = [well_conditioned(c, dtype, device) for c in sizes]
    weights[0] = strided(weights[0])
    outputs = all_factors(kernels)(*weights)
    assert {x.dtype for x in outputs} == {torch.float32}
    check(all_factors(kernels), all_factors(reference), weights)


def test_factors_of_several_programs_in_one_launch(triton_backend, device):
    weights = [well_conditioned(c, torch.float32, device) for c in (16, 3, 2, 5, 16)]
    launches = launch_counter()
    check(all_factors(kernels), all_factors(reference), weights)
    assert launches() == 2  # forward and backward


def all_factors(module):
    def call(*weights):
        inverses, log_dets = module.invertible_conv1x1_factors(weights)
        return *inverses, log_dets

    return call


@pytest.mark.parametrize("choose", ["an inverse", "log_dets", "an inverse and a log_det"])
def test_gradients_of_some_of_the_factors(triton_backend, device, choose):
    weights = [well_conditioned(c, torch.float32, device) for c in (4, 3, 4)]

    def chosen(factors):
        def call(*weights):
            inverses, log_dets = factors(weights)
            return {
                "an inverse": inverses[0],
                "log_dets": log_dets,
                "an inverse and a log_det": (inverses[0], log_dets[2]),
            }[choose]

        return call

    needed = (True, False, choose != "an inverse")
    check(chosen(invertible_conv1x1_factors), chosen(reference.invertible_conv1x1_factors), weights, needed=needed)
    leaves = [weight.requires_grad_() for weight in weights]
    unused = torch.autograd.grad(invertible_conv1x1_factors(leaves)[0][0].sum(), leaves)[1:]
    assert not any(gradient.any() for gradient in unused)


SINGULAR = {
    "zeros": torch.zeros(3, 3),
    "ones": torch.ones(4, 4),
    "a row of zeros": torch.tensor([[1.0, 2, 3], [0, 0, 0], [4, 5, 7]]),
    "a column of zeros": torch.tensor([[0.0, 1, 2], [0, 3, 4], [0, 5, 6]]),
    "a row twice": torch.tensor([[1.0, 3, 2], [5, 1, 4], [1, 3, 2]]),
    "a subnormal pivot": torch.diag(torch.tensor([1.0, 1e-39, 1.0])),
    "a multiple of a row": torch.tensor([[1.0, 3, 2], [4, 12, 8], [1, 1, 0]]),
}


def test_singular_matrices(triton_backend, device):
    leaves = [matrix.unsqueeze(2).to(device).requires_grad_() for matrix in SINGULAR.values()]
    inverses, log_dets = invertible_conv1x1_factors(leaves)
    assert log_dets.tolist() == [-torch.inf] * len(leaves)
    assert all(inverse.isfinite().all() for inverse in inverses)
    gradients = torch.autograd.grad([log_dets, *inverses], leaves, [torch.ones_like(x) for x in (log_dets, *inverses)])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_matrices_with_extreme_values(triton_backend, device):
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    almost = torch.ones(3, 3) + 1e-6 * torch.randn(3, 3)
    matrices = [
        torch.diag(torch.tensor([1.0, -1e-20, 1e20])),
        torch.diag(torch.tensor([1e-37, 1.0, 1e30])),
        torch.full((1, 1), 1e-30),
        1e-15 * rotation,
        1e15 * rotation,
        torch.eye(5)[[1, 0, 2, 4, 3]],
        -torch.eye(3),
        almost,
        torch.tensor([[0.0, 1e-30], [1e30, 1.0]]),
    ]
    _, log_dets = invertible_conv1x1_factors([matrix.unsqueeze(2).to(device) for matrix in matrices])
    expected = torch.stack([torch.linalg.slogdet(matrix.double()).logabsdet for matrix in matrices])
    torch.testing.assert_close(log_dets.cpu(), expected.float(), atol=1e-5, rtol=1e-6)


def test_nan_is_not_hidden(triton_backend, device):
    weights = [torch.eye(3).unsqueeze(2) for _ in range(3)]
    weights[0][1, 1] = weights[1][2, 0] = torch.nan
    inverses, log_dets = invertible_conv1x1_factors([weight.to(device) for weight in weights])
    assert log_dets.isnan().tolist() == [True, True, False]
    assert inverses[0].isnan().any() and inverses[1].isnan().any()
    torch.testing.assert_close(inverses[2].cpu(), torch.eye(3), atol=0, rtol=0)


def test_unsupported_calls_fall_back_or_are_refused(device):
    wide = torch.eye(17, device=device).unsqueeze(2)
    mixed = [torch.eye(2, device=device).unsqueeze(2), torch.eye(2, device=device).unsqueeze(2).half()]
    assert_kernels_refuse("17 channels are more than 16", invertible_conv1x1, torch.ones(1, 17, 3, device=device), wide)
    assert_kernels_refuse("17 channels are more than 16", invertible_conv1x1_factors, [wide])
    assert_kernels_refuse("the dtypes float16, float32", invertible_conv1x1_factors, mixed)
    assert_kernels_refuse("float64", invertible_conv1x1_factors, [wide[:2, :2].double()])
    output, log_det = invertible_conv1x1(torch.ones(1, 17, 3, device=device), wide)
    assert (output.sum(), log_det) == (51, 0)
    assert invertible_conv1x1_factors(mixed)[1].tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [4, 6, 8, 16])
def test_full_shapes(triton_backend, channels, dtype):
    weight = torch.linalg.qr(torch.randn(channels, channels))[0].unsqueeze(2).to("cuda", dtype)
    for shape in ((12, channels, 2000), (1, channels, 300_001)):
        z = torch.randn(shape, device="cuda").to(dtype)
        with torch.backends.cudnn.flags(allow_tf32=False):
            for name in ("invertible_conv1x1", "invertible_conv1x1_inverse"):
                check(getattr(kernels, name), getattr(reference, name), (z, weight))


@pytest.mark.gpu
def test_positions_beyond_31_bits(triton_backend):
    stride = 2**31 // 3
    storage = torch.zeros(2 * stride * 2, dtype=torch.float16, device="cuda")
    z = storage.as_strided((2, 2, 5), (2 * stride, stride, 3))
    z.copy_(torch.randn(2, 2, 5))
    weight = well_conditioned(2, torch.float16, "cuda")
    found = invertible_conv1x1(z, weight)[0]
    torch.testing.assert_close(found, reference.invertible_conv1x1(z.contiguous(), weight)[0], atol=2e-3, rtol=2e-3)


@pytest.mark.gpu
def test_in_a_cuda_graph(triton_backend):
    weights = [well_conditioned(8, torch.float32, "cuda").requires_grad_() for _ in range(12)]
    z = torch.randn(2, 8, 2000, device="cuda")

    def step():
        x, (_, log_dets) = z, invertible_conv1x1_factors(weights)
        for weight, log_det in zip(weights, log_dets, strict=True):
            x = 0.2 * invertible_conv1x1(x, weight, log_det)[0]
        return *torch.autograd.grad(x.square().mean() - log_dets.sum(), weights), log_dets.detach()

    graph, captured = recorded(step)
    with torch.no_grad():
        z.normal_()
        for weight in weights:
            weight.add_(0.1 * torch.randn_like(weight))
    graph.replay()
    assert_same_bits(captured, step())
