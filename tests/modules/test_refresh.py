"""`refresh()` detects uncounted writes to weights, in every module that caches folded weights."""

import copy
import importlib
import inspect
import pkgutil
import warnings

import pytest
import torch
from torch import Tensor, nn

import fastglow.models
import fastglow.modules
from fastglow import FastglowError, Tacotron2, WaveGlow
from fastglow.kernels import backend
from fastglow.models.waveglow_upsampling import Upsample
from fastglow.modules import WN, InvertibleConv1x1, LocationAttention
from fastglow.modules.parameter_cache import ParameterCache, Refreshable


def write_to_data(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.data.copy_(values)


def write_to_a_numpy_array(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.detach().numpy()[...] = values.numpy()


def write_to_a_dlpack_tensor(parameter: nn.Parameter, values: Tensor) -> None:
    torch.from_dlpack(parameter.detach()).copy_(values)


def write_to_the_storage(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.untyped_storage().copy_(values.contiguous().untyped_storage())


WAYS = [write_to_data, write_to_a_numpy_array, write_to_a_dlpack_tensor, write_to_the_storage]


def waveglow() -> tuple[nn.Module, tuple]:
    wn = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
    model = WaveGlow(5, 2, 4, 1, 2, wn, upsample_kernel_size=16, upsample_stride=4)
    return model, (torch.randn(1, 5, 6),)


def tacotron2() -> tuple[nn.Module, tuple]:
    model = Tacotron2(
        n_symbols=7, symbols_embedding_dim=8, encoder_embedding_dim=8, n_mel_channels=6, attention_rnn_dim=8,
        attention_dim=4, attention_location_n_filters=2, attention_location_kernel_size=3, decoder_rnn_dim=8,
        prenet_dim=8, postnet_embedding_dim=8, max_decoder_steps=2,
    )  # fmt: skip
    return model, (torch.randint(7, (1, 4)), torch.tensor([4]))


def decoder() -> tuple[nn.Module, tuple]:
    return tacotron2()[0].decoder, (torch.randn(1, 4, 8), torch.tensor([4]), torch.tensor([1]))


def encoder() -> tuple[nn.Module, tuple]:
    return tacotron2()[0].encoder, (torch.randn(1, 8, 4), torch.tensor([4]), torch.ones(1, 1, 4))


def run(module: nn.Module, inputs: tuple) -> list[Tensor]:
    """The result of inference, on the path that folds weights."""
    call = next((getattr(module, name) for name in ("infer", "grouped") if hasattr(module, name)), module)
    if isinstance(module, fastglow.models.tacotron2.Encoder):
        call = module  # its infer is the reference's, which folds nothing
    options = {"seed": 1} if isinstance(module, (WaveGlow, Tacotron2)) else {}
    on_both = (WN, InvertibleConv1x1, WaveGlow, Upsample, fastglow.models.tacotron2.Encoder)
    folds_on_both = isinstance(module, on_both)
    with torch.no_grad(), backend.use_backend("reference" if folds_on_both else "triton"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastglow.models.tacotron2.DecoderStepLimitWarning)
            outputs = call(*inputs, **options)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


CASES = {
    WN: lambda: (WN(2, 5, 2, 8, 3), (torch.randn(1, 2, 9), torch.randn(1, 5, 9))),
    InvertibleConv1x1: lambda: (InvertibleConv1x1(4), (torch.randn(1, 4, 9),)),
    LocationAttention: lambda: (
        LocationAttention(6, 5, 4, 3, 3),
        (torch.randn(1, 6), torch.randn(1, 7, 5), torch.randn(1, 7, 4), torch.rand(1, 2, 7)),
    ),
    WaveGlow: waveglow,
    Upsample: lambda: (Upsample(5, 16, 4), (torch.randn(1, 5, 6), 2)),
    fastglow.models.tacotron2.Decoder: decoder,
    fastglow.models.tacotron2.Encoder: encoder,
    Tacotron2: tacotron2,
}


@pytest.fixture
def on_the_cpu():
    if torch.cuda.is_available():
        pytest.skip("the interpreter, which takes tensors of the CPU, is for machines without a GPU")


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("kind", CASES)
def test_uncounted_writes_are_seen_after_a_refresh(kind, write):
    module, inputs = CASES[kind]()
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():  # WN's last convolution starts at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = run(module, inputs)
    for parameter in module.parameters():
        write(parameter, parameter.detach() * 1.1 + 0.01)
    expected = run(copy.deepcopy(module), inputs)  # a copy has no folded weights
    stale = run(module, inputs)
    module.refresh()
    actual = run(module, inputs)
    assert all(map(torch.equal, actual, expected))
    assert not all(map(torch.equal, before, actual))
    assert not all(map(torch.equal, stale, actual)), "nothing was stale: the test proves nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [WN, InvertibleConv1x1, LocationAttention, WaveGlow])
def test_weights_written_by_a_replayed_graph(kind):
    module, inputs = CASES[kind]()
    module.cuda().eval()
    inputs = tuple(x.cuda() for x in inputs)
    run(module, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for parameter in module.parameters():
            parameter.mul_(1.1)
    run(module, inputs)
    graph.replay()
    module.refresh()
    assert all(map(torch.equal, run(module, inputs), run(copy.deepcopy(module), inputs)))


def test_a_refresh_leaves_weights_gradients_and_modes_alone():
    model, inputs = waveglow()
    model.train()
    model.WN[0].start.bias.grad = torch.ones(8)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert model.refresh() is None
    assert model.training and torch.equal(model.WN[0].start.bias.grad, torch.ones(8))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # is deprecated
@pytest.mark.parametrize("kind", CASES)
def test_torchscript_is_refused_with_a_remedy(kind):
    module, _ = CASES[kind]()
    with pytest.raises(FastglowError, match=f"^torch.jit.script cannot compile fastglow's {kind.__name__}: leave"):
        torch.jit.script(nn.Sequential(module))


def test_every_module_with_a_cache_can_be_refreshed():
    found = set()
    for package in (fastglow.models, fastglow.modules):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for cls in vars(importlib.import_module(info.name)).values():
                if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls is not Refreshable:
                    if issubclass(cls, Refreshable) or ParameterCache.__name__ in inspect.getsource(cls):
                        assert issubclass(cls, Refreshable), cls
                        found.add(cls)
    assert found == set(CASES)
