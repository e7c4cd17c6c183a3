"""Models whose inference torch.compile has compiled, on a CPU: it breaks its graphs at the packed forms."""

import pytest
import torch

from fastglow.kernels import backend

from .test_waveglow import build as build_waveglow
from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, build_stopping

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler, about itself


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_tacotron2(compiler):
    model = build_stopping(SEEDS)
    expected = model.infer(TEXT, LENGTHS, seed=SEEDS)
    torch.compiler.reset()
    before = backend.cpu_calls["decode_loop"]
    for found, tensor in zip(
        torch.compile(model.infer, backend=compiler)(TEXT, LENGTHS, seed=SEEDS), expected, strict=True
    ):
        torch.testing.assert_close(found, tensor, atol=1e-5, rtol=0)
    assert backend.cpu_calls["decode_loop"] == before + 1


def test_waveglow_infer():
    model, mel = build_waveglow(torch.float32), torch.randn(2, 3, 4)
    expected = model.infer(mel, seed=1)
    torch.compiler.reset()
    before = backend.cpu_calls.total()
    found = torch.compile(model.infer, backend="eager")(mel, seed=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert backend.cpu_calls.total() > before
