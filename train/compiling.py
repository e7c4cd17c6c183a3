"""torch.compile in training."""

import warnings
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.errors import FastglowError
from fastglow.kernels.backend import autocast_dtype


@cache
def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device, in one line; None if it does.

    On a CPU it needs a C++ compiler and Python's headers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # Inductor's own types differ between versions
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def check_compiler(device: torch.device) -> None:
    """
    Raises:
        FastglowError: torch.compile does not work on the device.
    """
    problem = compile_problem(device)
    if problem is not None:
        needs = "a C++ compiler and Python's headers" if device.type == "cpu" else "a C compiler and Python's headers"
        raise FastglowError(f"compile=True cannot compile ({problem}): install {needs}, or pass --no-compile")


def uncompiled() -> AbstractContextManager:
    """Inside, compiled functions run as they are written: what runs rarely is not worth compiling again."""
    return torch.compiler.set_stance("force_eager")


def compile_model(model: nn.Module, of_any_length: bool) -> None:
    """Has torch.compile compile the forward pass, at its first call. In place: the state_dict stays as it is.

    Args:
        of_any_length: one compilation serves batches of every length; else each shape has its own.
    """
    if of_any_length:
        for module in model.modules():
            if isinstance(module, nn.Conv1d):
                module._conv_forward = partial(_opaque_conv1d, module)  # type: ignore[method-assign]
    model.compile(dynamic=of_any_length)


def _opaque_conv1d(module: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """nn.Conv1d._conv_forward, which the compiler does not look into.

    With PyTorch 2.13 the compiler's own backward pass of a convolution serves one length only, and each other length is
    compiled again.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    assert module.padding_mode == "zeros" and module.groups == 1 and not isinstance(module.padding, str)
    return conv1d(x, weight, bias, module.stride[0], module.padding[0], module.dilation[0])


@torch.library.custom_op("fastglow::conv1d", mutates_args=())
def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> Tensor:
    return F.conv1d(x, weight, bias, stride, padding, dilation).contiguous()


@conv1d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> Tensor:
    length = (x.shape[2] + 2 * padding - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    return x.new_empty(x.shape[0], weight.shape[0], length)


@torch.library.custom_op("fastglow::conv1d_backward", mutates_args=())
def conv1d_backward(
    d: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    options = [stride], [padding], [dilation], False, [0], 1, [True, True, True]
    dx, dw, db = torch.ops.aten.convolution_backward(d, x, weight, [len(weight)], *options)
    return dx.contiguous(), dw.contiguous(), db.contiguous()


@conv1d_backward.register_fake
def _(d: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, db = conv1d_backward(d, *ctx.saved_tensors, *ctx.options)
    return dx, dw, db if ctx.has_bias else None, None, None, None


conv1d.register_autograd(_differentiate, setup_context=_save)
