"""What `wavenet_layer` takes and refuses: dtypes, autocast, masks, empty signals, wrong shapes."""

import pytest
import torch

from fastglow.kernels import backend, wavenet_layer

from . import checks
from .test_wavenet_layer import Case


def test_empty_signal(device):
    arguments = Case(time=0).arguments(torch.float32, device)
    with backend.use_backend("triton"):
        h, skip = wavenet_layer(**arguments)
        (h.sum() + skip.sum()).backward()
    assert h.shape == skip.shape == (2, 40, 0)
    assert not arguments["in_weight"].grad.any()


def test_autocast_computes_in_its_dtype(device, triton_backend):
    arguments = Case(lengths=True).arguments(torch.float32, device)
    with torch.autocast(device, torch.float16):
        h, _ = wavenet_layer(**arguments)
    h.float().sum().backward()
    assert h.dtype == torch.float16
    assert arguments["in_weight"].grad.dtype == torch.float32


def test_other_dtypes_fall_back_or_are_refused(device):
    arguments = Case().arguments(torch.float64, device)
    checks.assert_kernels_refuse("wavenet_layer: .* float64 is not among", wavenet_layer, **arguments)
    assert wavenet_layer(**arguments)[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_mask_of_any_dtype_leaves_the_dtype_of_the_signal(device, dtype):
    arguments = Case(mask=True).arguments(torch.float16, device)
    mask = arguments["mask"].to(dtype)
    for name in ("triton", "reference"):
        with backend.use_backend(name):
            expected, found = wavenet_layer(**arguments), wavenet_layer(**{**arguments, "mask": mask})
        checks.assert_same_bits(found, expected)


def test_a_mask_with_a_gradient_runs_on_the_reference(device):
    arguments = Case(mask=True).arguments(torch.float32, device)
    arguments["mask"] = mask = arguments["mask"].float().requires_grad_()
    assert torch.autograd.grad(wavenet_layer(**arguments)[0].sum(), mask)[0].any()
    checks.assert_kernels_refuse("its mask requires a gradient", wavenet_layer, **arguments)
    with torch.no_grad(), backend.use_backend("triton"):
        wavenet_layer(**arguments)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"h": (40, 37)}, r"h has shape \[40, 37\], must be \[B, C, T\]"),
        ({"in_weight": (80, 39, 3)}, r"in_weight has shape \[80, 39, 3\], must be \[80, 40, k\]"),
        ({"in_weight": (80, 40, 2)}, "in_weight has 2 taps, must be an odd number"),
        ({"res_skip_weight": (80, 39, 1)}, r"res_skip_weight has shape \[80, 39, 1\]"),
        ({"res_skip_weight": (81, 40, 1)}, r"res_skip_weight has 81 rows, must be S or 40 \+ S with 0 < S <= 40"),
        ({"dilation": 0}, "dilation=0 must be at least 1"),
        ({"conditioning": (2, 20, 37)}, r"cond_weight has shape \[80, 21, 1\], must be \[80, 20, 1\]"),
        ({"conditioning": (2, 21, 36)}, r"conditioning has shape \[2, 21, 36\], must be \[2, D, 37\]"),
        (
            {"conditioning": (2, 80, 36), "cond_weight": None},
            r"conditioning has shape \[2, 80, 36\], must be \[2 or 1, 80, 37 or 1\] without a cond_weight",
        ),
        ({"mask": (2, 37)}, r"mask has shape \[2, 37\], must be \[2, 1, 37\]"),
        ({"lengths": (3,)}, r"lengths has shape \[3\], must be \[2\]"),
        ({"lengths": (2,)}, "lengths has dtype float32, must be an integer dtype"),
        ({"in_bias": (1,)}, r"in_bias has shape \[1\], must be \[80\]"),
        ({"cond_bias": (80, 1)}, r"cond_bias has shape \[80, 1\], must be \[80\]"),
        ({"res_skip_bias": (81,)}, r"res_skip_bias has shape \[81\], must be \[80\]"),
        ({"conditioning": (2, 80, 37), "cond_weight": None}, "cond_bias is given without a cond_weight"),
        ({"h": torch.zeros(2, 40, 37).half()}, "h has dtype float16 and conditioning float32: cast one"),
        ({"res_skip_bias": torch.zeros(80).double()}, "h has dtype float32 and res_skip_bias float64"),
        ({"skip": (2, 8, 37)}, r"skip has shape \[2, 8, 37\], must be \[2, 40, 37\]"),
    ],
    ids=str,
)
def test_wrong_arguments(changed, message):
    arguments = Case().arguments(torch.float32, "cpu") | checks.zeros_for_shapes(changed)
    checks.assert_refused(message, wavenet_layer, **arguments)
