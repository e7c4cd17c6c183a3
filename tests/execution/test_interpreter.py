"""The quickened interpreter against Triton's own."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastglow import kernels
from fastglow.kernels import backend
from fastglow.kernels.backend import interprets

from .. import interpreter as quickened

pytestmark = pytest.mark.skipif(not interprets(), reason="is about the interpreter")


@triton.jit
def _added(x, y):
    return x + y


@triton.jit
def _kernel(x, out, fails: tl.constexpr):
    i = tl.arange(0, 4)
    tl.static_assert(not fails, "as asked")
    tl.store(out + i, _added(tl.load(x + i), 1.0))


def of_several_modules():
    """Results of kernels that call functions of other modules, with random numbers among them."""
    generator = torch.Generator().manual_seed(0)
    h, spect = (torch.randn(2, channels, 9, generator=generator) for channels in (8, 6))
    weights = [torch.randn(shape, generator=generator) for shape in ((16, 8, 3), (16,), (16, 6, 1), (16,), (16, 8, 1))]
    with backend.use_backend("triton"):
        layer = kernels.wavenet_layer(h, spect, *weights, torch.zeros(16), dilation=2)
        return [*layer, kernels.prenet(h[:, :, 0], [torch.ones(4, 8)], 0.5, seeds=torch.tensor([1, 2]))]


def test_same_bits_as_without(monkeypatch):
    quick = of_several_modules()
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(interpreter, "_patch_lang", quickened._patch_lang)
    monkeypatch.setattr(builder, "options", type(builder.options)())
    assert builder.options.sanitize_overflow
    assert all(map(torch.equal, quick, of_several_modules()))


@pytest.mark.parametrize("fails", [False, True])
def test_the_language_is_as_before_after_a_launch(fails):
    before = {name: getattr(tl, name) for name in ("load", "arange", "static_assert", "reduce")}
    x, out = torch.arange(4.0), torch.zeros(4)
    if fails:
        with pytest.raises(interpreter.InterpreterError, match="as asked"):
            _kernel[(1,)](x, out, fails=True)
    else:
        _kernel[(1,)](x, out, fails=False)
    if hasattr(interpreter, "_LangPatchScope"):  # before Triton 3.6 the language stays patched
        assert {name: getattr(tl, name) for name in before} == before
    _kernel[(1,)](x, out, fails=False)
    assert torch.equal(out, x + 1)
