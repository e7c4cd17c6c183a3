"""WN's form for training on a CPU against itself in float64."""

import copy
from collections import Counter

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend
from fastglow.kernels.cpu.wavenet_training import train_wavenet, wavenet_stack

from ..kernels.checks import Results, assert_refused, assert_results_as_exact_as, strided
from .test_wn_packed import DTYPES, N_MEL, inputs, make

CAPS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-1, 1e-1)}
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels-last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "strided": strided,
}


def trained(module, *args, **kw):
    before = backend.cpu_calls["wavenet_stack"]
    out = module(*args, **kw)
    assert backend.cpu_calls["wavenet_stack"] == before + 1
    return out


def differentiated(call, module, audio, spect, upstream):
    """Results of `call`, with gradients of both signals and of every parameter."""
    dtype = next(module.parameters()).dtype
    audio, spect = (x.detach().to(dtype).requires_grad_() for x in (audio, spect))
    out = call(module, audio, spect)
    named = {"audio": audio, "spect": spect, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(out, list(named.values()), upstream.to(out.dtype))
    return Results([out.detach()], dict(zip(named, gradients, strict=True)))


def assert_exact(module, audio, spect, upstream, autocast=False):
    def plainly(module, audio, spect):
        return module(audio, spect)

    def under_autocast(run):
        def call(*args):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return run(*args)

        return call

    arguments = module, audio, spect, upstream
    with backend.use_backend("reference"):
        exact = differentiated(plainly, copy.deepcopy(module).double(), *arguments[1:])
        plain = perturbed(lambda: differentiated(under_autocast(plainly), *arguments))
    assert_results_as_exact_as(differentiated(under_autocast(trained), *arguments), plain, exact, CAPS)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_pytorch(kernel_size, n_layers, dtype):
    """Some taps reach beyond all of the signal."""
    assert_exact(make(dtype, n_layers, kernel_size), *inputs(13), torch.randn(2, 6, 13))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 37)])
def test_layouts_and_sizes(layout, B, T):
    audio, spect = (layout(x) for x in inputs(T, B))
    assert_exact(make(torch.float32), audio, spect, layout(torch.randn(B, 6, T)))


def test_under_autocast():
    assert_exact(make(torch.float32), *inputs(37, 3), torch.randn(3, 6, 37), autocast=True)


def test_without_weight_norm():
    module = make(torch.float32)
    module.remove_weight_norm()
    assert_exact(module, *inputs(13), torch.randn(2, 6, 13))


@pytest.mark.parametrize("name", ["start", "end", "in_layers.1", "cond_layers.0", "res_skip_layers.0"])
@pytest.mark.parametrize("trains", [True, False])
def test_without_a_bias(name, trains):
    module = make(torch.float32)
    audio, spect = inputs(13)
    module.get_submodule(name).bias.data.zero_()
    with torch.set_grad_enabled(trains):
        expected = module(audio, spect)
        module.get_submodule(name).bias = None
        torch.testing.assert_close(module(audio, spect), expected, rtol=1e-5, atol=1e-5)


def weights(n_layers, dtype):
    """Of `train_wavenet`, in its order: leaves, flat; and a function that takes them so."""
    C, S, taps = 3, 2, 3
    shapes = [(C, 2, 1), (C,), *[(2 * C, C, taps), (2 * C,)] * n_layers, *[(2 * C, N_MEL, 1), (2 * C,)] * n_layers]
    shapes += [*[(2 * C, C, 1), (2 * C,)] * (n_layers - 1), (C, C, 1), (C,), (S, C, 1), (S,)]
    tensors = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]

    def call(audio, spect, *tensors):
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        n = n_layers
        return train_wavenet(
            audio, spect, pairs[0], pairs[1 : n + 1], pairs[n + 1 : 2 * n + 1], pairs[2 * n + 1 : -1], pairs[-1]
        )

    return tensors, call


@pytest.mark.parametrize("n_layers", [1, 3])
def test_numerical_derivative(n_layers):
    tensors, call = weights(n_layers, torch.float64)
    signals = [x.double().requires_grad_() for x in inputs(7, n_in=2)]
    torch.autograd.gradcheck(call, (*signals, *tensors))


def test_only_the_wanted_gradients():
    tensors, call = weights(3, torch.float64)
    everything = [*(x.double().requires_grad_() for x in inputs(7, n_in=2)), *tensors]
    upstream = torch.randn(2, 2, 7, dtype=torch.float64)
    expected = torch.autograd.grad(call(*everything), everything, upstream)
    for offset in range(3):
        given = [x.detach().requires_grad_(i % 3 == offset) for i, x in enumerate(everything)]
        call(*given).backward(upstream)
        for i, (x, d) in enumerate(zip(given, expected, strict=True)):
            assert x.grad is None if i % 3 != offset else torch.equal(x.grad, d), i


def test_backward_twice_gives_the_same():
    """Nothing that it keeps is written to."""
    module, (audio, spect) = make(torch.float32), inputs(9)
    out = trained(module, audio, spect)
    upstream, parameters = torch.randn_like(out), list(module.parameters())
    first = torch.autograd.grad(out, parameters, upstream, retain_graph=True)
    for d, again in zip(first, torch.autograd.grad(out, parameters, upstream), strict=True):
        assert torch.equal(d, again)


def test_second_derivatives_are_refused():
    audio, spect = (x.requires_grad_() for x in inputs(5))
    module = make(torch.float32)
    (d,) = torch.autograd.grad(module(audio, spect).sum(), audio, create_graph=True)
    with pytest.raises(RuntimeError, match="force the reference backend"):
        d.sum().backward()
    with backend.use_backend("reference"):
        (d,) = torch.autograd.grad(module(audio, spect).sum(), audio, create_graph=True)
        d.sum().backward()


def test_the_result_may_be_written_to():
    module, arguments = make(torch.float32), inputs(9)
    parameters = list(module.parameters())
    expected = torch.autograd.grad(2 * trained(module, *arguments).square().sum(), parameters)
    out = trained(module, *arguments)
    found = torch.autograd.grad(out.mul_(2).square().sum() / 2, parameters)
    torch.testing.assert_close(found, expected)


def test_no_items():
    module, (audio, spect) = make(torch.float32), inputs(9)
    out = trained(module, audio[:0].requires_grad_(), spect[:0])
    assert out.shape == (0, 6, 9)
    assert not any(d.any() for d in torch.autograd.grad(out.sum(), list(module.parameters())))


def hooked(module, *arguments):
    module.in_layers[0].register_forward_hook(lambda *_: None)
    return module(*arguments)


def forced(module, *arguments):
    with backend.use_backend("reference"):
        return module(*arguments)


def in_double(module, *arguments):
    return module.double()(*(x.double() for x in arguments)).float()


def masked(module, audio, spect):
    return module(audio, spect, torch.ones(len(audio), 1, audio.shape[2]))


def of_lengths(module, audio, spect):
    return module(audio, spect, lengths=torch.full((len(audio),), audio.shape[2]))


def of_a_functorch_gradient(module, audio, spect):
    def loss(audio):
        out = module(audio, spect)
        return out.sum(), out

    return torch.func.grad(loss, has_aux=True)(audio)[1]


def of_a_tangent(module, audio, spect):
    return torch.func.jvp(lambda x: module(x, spect), (audio,), (audio,))[0]


def recorded(module, *arguments):
    return make_fx(module)(*arguments)(*arguments)


def exported(module, *arguments):
    return torch.export.export(module, arguments, strict=False).module()(*arguments)


@pytest.mark.filterwarnings("ignore")  # tracers warn of their own internals
@pytest.mark.parametrize(
    "run",
    [hooked, forced, in_double, masked, of_lengths, of_a_functorch_gradient, of_a_tangent, recorded, exported],
    ids=lambda run: run.__name__,
)
def test_what_it_is_not_for(run):
    module, (audio, spect) = make(torch.float32), inputs(11)
    expected = trained(module, audio, spect)
    before = backend.cpu_calls.total()
    torch.testing.assert_close(run(module, audio, spect), expected, atol=1e-4, rtol=1e-4)
    assert backend.cpu_calls.total() == before


@pytest.mark.filterwarnings("ignore")
def test_compiled_in_one_graph():
    module, (audio, spect) = make(torch.float32), inputs(11)
    expected = torch.autograd.grad(trained(module, audio, spect).square().sum(), list(module.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(trained(compiled, audio, spect).square().sum(), list(module.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    def listed(module, kind):
        return [[getattr(layer, kind).detach().requires_grad_() for layer in layers] for layers in module]

    module = make(dtype, n_layers=2)
    module.remove_weight_norm()
    layers = module.in_layers, module.cond_layers, module.res_skip_layers
    by_kind = [
        tensors for pair in zip(listed(layers, "weight"), listed(layers, "bias"), strict=True) for tensors in pair
    ]
    single = [*inputs(5), module.start.weight, module.start.bias, module.end.weight, module.end.bias]
    single = [x.detach().to(dtype).requires_grad_() for x in single]
    torch.library.opcheck(wavenet_stack, (*single, *by_kind))


def test_shapes_that_do_not_fit():
    module, (audio, spect) = make(torch.float32), inputs(9)
    assert_refused("audio has shape", module, audio[:, :2], spect)
    assert_refused("spect has shape", module, audio, spect[:, :, :4])
    assert_refused("spect has shape", module, audio, spect[:1])
    assert_refused("audio has shape", module, audio[0], spect[0])


COPIES = {"aten::copy_", "aten::cat", "aten::clone", "aten::contiguous", "aten::stack"}


def test_no_activation_is_copied():
    """Of a step, by PyTorch's profiler. The biases are: they are where a layer's sums begin."""
    B, T, n_layers, channels = 3, 211, 5, 12
    module = make(torch.float32, n_layers, channels=channels)
    audio, spect = (LAYOUTS["channels-last"](x) for x in inputs(T, B))
    one = B * T * channels
    assert max(p.numel() for p in module.parameters()) < one
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        out = trained(module, audio, spect.requires_grad_())
        out.backward(torch.randn_like(out))
    assert spect.grad is not None
    events = [
        (event.name, torch.Size(event.input_shapes[0]).numel()) for event in profile.events() if event.input_shapes
    ]
    copies = Counter(event for event in events if event[0] in COPIES and event[1] >= one)
    assert copies == {("aten::copy_", one): 1, ("aten::copy_", 2 * one): n_layers}
