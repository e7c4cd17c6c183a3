"""Models that torch.compile has compiled, on a CPU: training in one graph, inference around the packed forms."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

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


def graphs(module, inputs) -> tuple[int, list[torch.Tensor], list[torch.Tensor]]:
    """How many graphs a training step has; results and gradients of it, and of the eager module."""
    found = []

    def counting(graph, _):
        found.append(graph)
        return graph.forward

    def step(run) -> list[torch.Tensor]:
        torch.manual_seed(4)
        outputs = [x for x in tree_leaves(run(*inputs)) if x.requires_grad]
        gradients = torch.autograd.grad(sum(x.square().sum() for x in outputs), list(module.parameters()))
        return [*(x.detach() for x in outputs), *gradients]

    torch.compiler.reset()
    compiled = step(torch.compile(module, backend=counting))
    return len(found), compiled, step(module)


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_training_of_waveglow_is_one_graph(name):
    model = build_waveglow(torch.float32)
    n_frames = 4
    n_samples = n_frames * model.config.upsample_stride - 3
    inputs = torch.randn(2, model.n_mel_channels, n_frames), 0.3 * torch.randn(2, n_samples)
    with backend.use_backend(name):
        n, found, expected = graphs(model, (inputs,))
        assert n == 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_training_that_saves_memory():
    """Its flows are outside the graphs."""
    model = build_waveglow(torch.float32)
    inputs = torch.randn(2, model.n_mel_channels, 4), 0.3 * torch.randn(2, 4 * model.config.upsample_stride - 3)
    model.memory_saving = True
    n, found, expected = graphs(model, (inputs,))
    assert n >= 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.memory_saving = False
    torch.testing.assert_close(found, graphs(model, (inputs,))[2], rtol=1e-4, atol=1e-5)


def test_training_of_tacotron2_with_gradient_checkpointing():
    model = build_stopping(SEEDS).train()
    model.gradient_checkpointing = True
    mels = torch.randn(len(TEXT), model.config.n_mel_channels, 5)
    _, found, expected = graphs(model, ((TEXT, LENGTHS, mels, TEXT.shape[1], torch.full((len(TEXT),), 5)),))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_training_of_tacotron2_breaks_its_graph_at_the_packed_lstm_alone(name):
    model = build_stopping(SEEDS).train()
    mels = torch.randn(len(TEXT), model.config.n_mel_channels, 5)
    inputs = TEXT, LENGTHS, mels, TEXT.shape[1], torch.full((len(TEXT),), 5)
    with backend.use_backend(name):
        n, found, expected = graphs(model, (inputs,))
        assert n <= 3  # up to the encoder, to its LSTM, and all the rest
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["triton", "auto"])
def test_exported_waveglow_of_any_size(name, strict):
    model = build_waveglow(torch.float32)
    samples = model.config.upsample_stride
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames", min=2, max=999)

    def inputs(items: int, n_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(items, 3, n_frames), torch.randn(items, n_frames * samples)

    sizes = (({0: batch, 2: frames}, {0: batch, 1: frames * samples}),)
    with backend.use_backend(name):
        program = torch.export.export(model, (inputs(2, 4),), dynamic_shapes=sizes, strict=strict)
        other = inputs(3, 7)
        torch.testing.assert_close(program.module()(other), model(other), atol=1e-5, rtol=1e-5)
