"""Weight normalisation: the reference against NumPy and PyTorch, the kernels against the reference in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils.parametrizations import weight_norm as parametrize

from fastglow.kernels import weight_norm, weight_norm_packed
from fastglow.kernels.launch import use_config
from fastglow.kernels.reference import weight_norm as reference
from fastglow.kernels.weight_norm.kernels import CONFIGS

from .checks import (
    FLOAT32_AND_FLOAT16,
    assert_kernels_refuse,
    assert_refused,
    assert_same_bits,
    check_positional_against_fp64,
    differentiate,
    launch_counter,
    recorded,
    strided,
)

SHAPES = [(5, 3, 7), (1, 3, 1), (4, 1, 1)]
CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}

# The interpreter uses NumPy, which warns about divisions by zero.
DIVIDES_BY_ZERO = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")


@pytest.fixture(params=SHAPES, ids=str)
def inputs(request, leaf):
    return leaf(*request.param), leaf(request.param[0], 1, 1)


def test_against_numpy(inputs):
    v, g = (x.detach().numpy() for x in inputs)
    weight = weight_norm(*inputs).detach()
    assert weight.shape == v.shape
    np.testing.assert_allclose(weight, g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True)), atol=1e-14)


def test_against_pytorchs_parametrisation(inputs):
    v, g = inputs
    conv = nn.Conv1d(v.shape[1], v.shape[0], v.shape[2], bias=False, dtype=torch.float64)
    parametrize(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.copy_(g)
        conv.parametrizations.weight.original1.copy_(v)
    weight = weight_norm(v, g)
    torch.testing.assert_close(weight, conv.weight, atol=1e-14, rtol=0)
    upstream = torch.randn_like(weight)
    expected = torch.autograd.grad(conv.weight, tuple(conv.parameters()), upstream)
    torch.testing.assert_close(torch.autograd.grad(weight, (g, v), upstream), expected, atol=1e-13, rtol=0)


def test_gradients(inputs):
    assert gradcheck(weight_norm, inputs)


def test_the_norm_of_v_does_not_matter(inputs):
    v, g = inputs
    torch.testing.assert_close(weight_norm(1000 * v, g), weight_norm(v, g), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    v, g = torch.randn(3, 5, 7), torch.rand(3, 1, 1) + 0.5
    weight = weight_norm(v.to(dtype), g.to(dtype))
    assert weight.dtype == dtype
    torch.testing.assert_close(weight.float(), weight_norm(v, g), atol=4 * torch.finfo(dtype).eps, rtol=0)


def regroup(shapes, tensors):
    """Groups of (v, g) pairs from tensors in the order v, g, v, g, ..."""
    tensors = iter(tensors)
    return [[(next(tensors), next(tensors)) for _ in group] for group in shapes]


def test_a_packed_matrix_is_the_convolutions_matrix(leaf):
    """The sum of a dilated convolution and of the conditioning's 1x1 convolution is one product."""
    C, D, taps, dilation, T = 3, 4, 3, 2, 9
    shapes = [[(2 * C, C, taps), (2 * C, D, 1)], [(C, C, 1)]]
    groups = regroup(shapes, [x for shape in sum(shapes, []) for x in (leaf(*shape), leaf(shape[0], 1, 1))])
    first, second = weight_norm_packed(groups)
    assert (first.shape, second.shape) == ((2 * C, taps * C + D), (C, C))

    h, conditioning = leaf(2, C, T), leaf(2, D, T)
    padded = F.pad(h, (dilation, dilation))
    columns = [padded[:, :, tap * dilation : tap * dilation + T] for tap in range(taps)]
    found = first @ torch.cat((*columns, conditioning), dim=1)
    in_layer, cond_layer = (weight_norm(v, g) for v, g in groups[0])
    expected = F.conv1d(h, in_layer, padding=dilation, dilation=dilation) + F.conv1d(conditioning, cond_layer)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(second, weight_norm(*groups[1][0])[:, :, 0], atol=0, rtol=0)


def test_gradients_of_packed_matrices(leaf):
    shapes = [[(3, 2, 3), (3, 1, 2)], [(2, 3, 1)]]
    tensors = [x for shape in sum(shapes, []) for x in (leaf(*shape), leaf(shape[0], 1, 1))]
    assert gradcheck(lambda *tensors: tuple(weight_norm_packed(regroup(shapes, tensors))), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_packed_matrices_are_rounded_once(dtype):
    pair = torch.randn(3, 5, 1), torch.rand(3, 1, 1)
    (matrix,) = weight_norm_packed([[pair]], dtype)
    torch.testing.assert_close(matrix, weight_norm(*pair)[:, :, 0].to(dtype), atol=0, rtol=0)
    halves = tuple(x.to(dtype) for x in pair)
    (matrix,) = weight_norm_packed([[halves]])
    expected = weight_norm(*(x.float() for x in halves))[:, :, 0].to(dtype)
    torch.testing.assert_close(matrix, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: weight_norm(torch.ones(3, 2), torch.ones(3, 1, 1)), r"v has shape \[3, 2\], must be \[out, in, k\]"),
        (lambda: weight_norm(torch.ones(3, 2, 1), torch.ones(3)), r"g has shape \[3\], must be \[3, 1, 1\]"),
        (
            lambda: weight_norm(torch.ones(3, 2, 1), torch.ones(3, 1, 1).half()),
            "v has dtype float32 and g float16: cast one",
        ),
        (lambda: weight_norm_packed([]), r"groups of \[\] weights"),
        (lambda: weight_norm_packed([[(torch.ones(3, 2, 1), torch.ones(3, 1, 1))], []]), r"groups of \[1, 0\] weights"),
        (
            lambda: weight_norm_packed([[(torch.ones(3, 2, 1), torch.ones(2, 1, 1))]]),
            r"g has shape \[2, 1, 1\], must be \[3, 1, 1\]",
        ),
        (
            lambda: weight_norm_packed([[(torch.ones(n, 2, 1), torch.ones(n, 1, 1)) for n in (3, 4)]]),
            r"\[3, 4\] output channels",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    assert_refused(message, call)


def check(kernel, plain, tensors, **options):
    check_positional_against_fp64(kernel, plain, tensors, CAPS, **options)


def alone(function):
    return lambda v, g: (function(v, g),)


def packed(function, shapes, dtype=None):
    """A function of tensors v, g, v, g, ...; its matrices are float64 if the tensors are."""
    return lambda *tensors: function(regroup(shapes, tensors), None if tensors[0].dtype == torch.float64 else dtype)


def weights(shapes, dtype, device):
    return [
        x.to(device, dtype) for shape in sum(shapes, []) for x in (torch.randn(shape), 0.5 + torch.rand(shape[0], 1, 1))
    ]


# Two layers of a WN, then the last, with shorter weights; rows of the first end inside a block.
WN = [[(34, 17, 3), (34, 7, 1)], [(34, 17, 1)], [(34, 17, 3), (34, 7, 1)], [(17, 17, 1)]]


@FLOAT32_AND_FLOAT16
@pytest.mark.parametrize("shape", [(1, 3, 1), (7, 5, 3), (65, 33, 1), (2, 700, 3)], ids=str)
def test_kernels_against_fp64(triton_backend, device, shape, dtype):
    check(alone(weight_norm), alone(reference.weight_norm), weights([[shape]], dtype, device))


@FLOAT32_AND_FLOAT16
def test_kernels_on_strided_tensors(triton_backend, device, dtype):
    tensors = [strided(x) for x in weights([[(7, 5, 3)]], dtype, device)]
    for layout in (strided, lambda d: d[:, :1, :1].expand(d.shape), lambda d: d):
        check(alone(weight_norm), alone(reference.weight_norm), tensors, layout=layout)
    expanded = [tensors[0], tensors[1][:1].expand(7, 1, 1)]
    check(alone(weight_norm), alone(reference.weight_norm), expanded)


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["v only", "g only"])
def test_only_one_of_two_gradients(triton_backend, device, needed):
    tensors = weights([[(7, 5, 3)]], torch.float32, device)
    check(alone(weight_norm), alone(reference.weight_norm), tensors, needed=needed)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_configuration(triton_backend, device, config):
    one = weights([[(35, 40, 3)]], torch.float32, device)
    shapes = [[(3, 40, 3), (3, 7, 1)]]
    several = weights(shapes, torch.float32, device)
    for kernel in ("fwd", "bwd"):
        with use_config(f"weight_norm_{kernel}", config):
            check(alone(weight_norm), alone(reference.weight_norm), one)
        with use_config(f"weight_norm_packed_{kernel}", config):
            check(packed(weight_norm_packed, shapes), packed(reference.weight_norm_packed, shapes), several)


@pytest.mark.parametrize(
    "dtype, result",
    [(torch.float32, None), (torch.float32, torch.float16), (torch.float16, None), (torch.float16, torch.float32)],
    ids=str,
)
def test_packed_kernels_against_fp64(triton_backend, device, dtype, result):
    tensors = weights(WN, dtype, device)
    kernel, plain = (packed(x, WN, result) for x in (weight_norm_packed, reference.weight_norm_packed))
    assert {matrix.dtype for matrix in kernel(*tensors)} == {result or dtype}
    check(kernel, plain, tensors)


def test_packed_weights_take_one_launch_and_one_buffer(triton_backend, device):
    tensors = [x.requires_grad_() for x in weights(WN, torch.float32, device)]
    launches = launch_counter()
    matrices = weight_norm_packed(regroup(WN, tensors))
    assert launches() == 1
    assert [tuple(matrix.shape) for matrix in matrices] == [(34, 58), (34, 17), (34, 58), (17, 17)]
    assert all(matrix.is_contiguous() for matrix in matrices)
    assert len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 1
    torch.autograd.backward(matrices, [torch.ones_like(matrix) for matrix in matrices])
    assert launches() == 2


@FLOAT32_AND_FLOAT16
def test_packed_kernels_on_strided_tensors(triton_backend, device, dtype):
    shapes = [[(5, 3, 3), (5, 4, 1)], [(2, 3, 1)]]
    tensors = [strided(x) for x in weights(shapes, dtype, device)]
    tensors[1] = tensors[1][:1].expand(5, 1, 1)
    kernel, plain = (packed(x, shapes) for x in (weight_norm_packed, reference.weight_norm_packed))
    check(kernel, plain, tensors, layout=strided)


@pytest.mark.parametrize("absent", [0, 1, 2], ids="without output {}".format)
def test_packed_kernels_without_some_gradients(triton_backend, device, absent):
    shapes = [[(5, 3, 3), (5, 4, 1)], [(4, 3, 1)], [(2, 3, 1)]]
    tensors = weights(shapes, torch.float32, device)
    # v and g: neither of the first weight, v of the second, g of the third, both of the fourth.
    needed = (False, False, True, False, False, True, True, True)
    kernel, plain = (packed(x, shapes) for x in (weight_norm_packed, reference.weight_norm_packed))
    check(kernel, plain, tensors, needed=needed, reached=[i != absent for i in range(len(shapes))])


@DIVIDES_BY_ZERO
def test_a_zero_direction_gives_nan_as_in_pytorch(triton_backend, device):
    v, g = weights([[(3, 5, 2)]], torch.float32, device)
    v[1] = 0
    d = torch.randn_like(v)
    pair = {"v": v.requires_grad_(), "g": g.requires_grad_()}
    plain = differentiate(reference.weight_norm, pair, [d])
    assert plain.outputs[0][1].isnan().all()
    assert all(gradient[1].isnan().all() for gradient in plain.gradients.values())
    found = differentiate(weight_norm, pair, [d])
    torch.testing.assert_close(found, plain, equal_nan=True)
    d_matrix = d.transpose(1, 2).flatten(1)
    (matrix,), gradients = differentiate(lambda v, g: weight_norm_packed([[(v, g)]]), pair, [d_matrix])
    torch.testing.assert_close(matrix, plain.outputs[0].transpose(1, 2).flatten(1), equal_nan=True)
    torch.testing.assert_close(gradients, plain.gradients, equal_nan=True)


def test_no_rows(triton_backend, device):
    empty = [x.requires_grad_() for x in weights([[(0, 5, 3)]], torch.float32, device)]
    others = weights([[(2, 5, 3)]], torch.float32, device)
    assert weight_norm(*empty).shape == (0, 5, 3)
    assert [x.shape for x in torch.autograd.grad(weight_norm(*empty).sum(), empty)] == [(0, 5, 3), (0, 1, 1)]
    matrices = weight_norm_packed([[tuple(empty)], [tuple(others)]])
    assert [matrix.shape for matrix in matrices] == [(0, 15), (2, 15)]
    assert [x.shape for x in torch.autograd.grad(matrices[0].sum(), empty)] == [(0, 5, 3), (0, 1, 1)]
    assert weight_norm_packed([[tuple(empty)]])[0].shape == (0, 15)


def test_unsupported_calls_fall_back_or_are_refused(device):
    single, half = (weights([[(2, 3, 1)]], dtype, device) for dtype in (torch.float32, torch.float16))
    assert_kernels_refuse("the dtypes float16, float32", weight_norm_packed, [[single, half]])
    assert_kernels_refuse("the result is float64", weight_norm_packed, [[single]], torch.float64)
    assert_kernels_refuse("float64 is not among", weight_norm, *(x.double() for x in single))
    assert weight_norm_packed([[single, half]])[0].shape == (2, 6)
    assert weight_norm_packed([[single]], torch.float64)[0].dtype == torch.float64


def published_wn(channels):
    """Weights of a WN of 8 layers conditioned on 640 channels."""
    layers = [[[(2 * channels, channels, 3), (2 * channels, 640, 1)], [(2 * channels, channels, 1)]] for _ in range(8)]
    layers[-1][1] = [(channels, channels, 1)]
    return sum(layers, [])


@pytest.mark.gpu
@pytest.mark.parametrize("result", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [256, 512])
def test_full_shapes(triton_backend, channels, result):
    shapes = published_wn(channels)
    kernel, plain = (packed(x, shapes, result) for x in (weight_norm_packed, reference.weight_norm_packed))
    check(kernel, plain, weights(shapes, torch.float32, "cuda"))
    check(alone(weight_norm), alone(reference.weight_norm), weights([[(2 * channels, channels, 3)]], result, "cuda"))


@pytest.mark.gpu
def test_in_a_cuda_graph(triton_backend):
    shapes = published_wn(64)
    tensors = [x.requires_grad_() for x in weights(shapes, torch.float32, "cuda")]
    upstreams = [torch.randn(sum(i * k for _, i, k in group), device="cuda").half() for group in shapes]

    def step():
        matrices = weight_norm_packed(regroup(shapes, tensors), torch.float16)
        ds = [d.expand(matrix.shape) for d, matrix in zip(upstreams, matrices, strict=True)]
        return *matrices, *torch.autograd.grad(matrices, tensors, ds)

    graph, captured = recorded(step)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.1 * torch.randn_like(tensor))
    graph.replay()
    assert_same_bits(captured, step())
