"""Hooks inside the models fire, replaced modules are called, and neither changes a number that it should not."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from fastglow import WaveGlow
from fastglow.kernels import backend

from .tiny_tacotron2 import LENGTHS, NO_DROPOUT, SEEDS, TEXT, build, training_batch

WAVEGLOW = {
    "n_mel_channels": 3,
    "n_flows": 4,
    "n_group": 8,
    "n_early_every": 2,
    "n_early_size": 2,
    "WN_config": {"n_layers": 2, "n_channels": 10, "kernel_size": 3},
    "upsample_kernel_size": 32,
    "upsample_stride": 16,
}
MEL, MEL_LENGTHS = torch.randn(2, 3, 5), torch.tensor([5, 3])


def build_waveglow(**config):
    model = WaveGlow(**{**WAVEGLOW, **config}).eval()
    with torch.no_grad():
        for wn in model.WN:
            for parameter in wn.end.parameters():
                parameter.normal_(std=0.1)
    return model


def waveglow_infer(model):
    with torch.no_grad():
        return [model.infer(MEL, 0.7, seed=3), model.infer(MEL, seed=SEEDS[:2], lengths=MEL_LENGTHS)]


def waveglow_forward(model):
    audio = 0.1 * torch.linspace(-1, 1, 160).view(2, 80)
    like = next(model.parameters())
    z, log_s, log_det = model((MEL.to(like), audio.to(like)))
    return [z, *log_s, *log_det]


def tacotron2_infer(model):
    pieces = [*model.infer_pieces(TEXT, LENGTHS, piece_frames=[3, 4], seed=SEEDS)]
    streamed = (torch.cat([piece.mel for piece in pieces], dim=2), torch.cat([p.alignments for p in pieces], dim=1))
    return [*model.infer(TEXT, LENGTHS, seed=SEEDS), *model.inference(TEXT[1:2], seed=4), *streamed]


def tacotron2_forward(model):
    return model(training_batch(dtype=model.embedding.weight.dtype)[0])


def build_tacotron2(**config):
    """Without early stopping: it takes all steps, so that a rounding error cannot change their number."""
    return build(**{"decoder_no_early_stopping": True, "gate_threshold": 2.0, **config})


BUILDS = {
    "tacotron2 forward": (partial(build_tacotron2, **NO_DROPOUT), tacotron2_forward),
    "tacotron2 infer": (build_tacotron2, tacotron2_infer),
    "waveglow forward": (build_waveglow, waveglow_forward),
    "waveglow infer": (build_waveglow, waveglow_infer),
    "old waveglow infer": (partial(build_waveglow, alternate_halves=True), waveglow_infer),
    "unnormed waveglow infer": (lambda: WaveGlow.remove_weightnorm(build_waveglow()), waveglow_infer),
}


def called_by_the_reference(name, run):
    """Whether NVIDIA's code calls the module, too: it calls methods of some, and reads the weights of others."""
    if run is tacotron2_infer:
        return name not in ("", "decoder")
    return run is not waveglow_infer or not (name == "" or name.endswith(".conv"))


def hooked(model, name, register, fired):
    return getattr(model.get_submodule(name), register)(lambda *args: fired.append(name))


@pytest.mark.parametrize("which", BUILDS)
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_the_hook_of_every_single_module_fires_and_changes_no_number(which, register):
    torch.manual_seed(4)
    make, run = BUILDS[which]
    model = make()
    torch.manual_seed(1)
    expected = run(model)
    names = [
        n for n, m in model.named_modules() if not isinstance(m, nn.ModuleList) and called_by_the_reference(n, run)
    ]
    assert len(names) > 25
    for name in names:
        fired = []
        handle = hooked(model, name, register, fired)
        torch.manual_seed(1)
        found = run(model)
        handle.remove()
        assert fired, name
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(run(model), expected, strict=True))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients")  # PyTorch's, of the first layers
@pytest.mark.parametrize("which", ["tacotron2 forward", "waveglow forward"])
def test_backward_hooks_fire_and_change_no_gradient(which):
    make, run = BUILDS[which]
    model = make().train().double()  # biases before batch normalisation have no gradient but rounding errors
    # PyTorch's backward hooks do not look into the packed sequence that the encoder's LSTM gives.
    inner = [n for n, m in model.named_modules() if n not in ("", "encoder.lstm") and not [*m.children()]]
    assert len(inner) > 20

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)
        sum(x.square().sum() for x in run(model)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    for name in inner:
        fired = []
        handle = hooked(model, name, "register_full_backward_hook", fired)
        found = gradients()
        handle.remove()
        assert fired, name
        for key, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[key], atol=1e-9, rtol=1e-6, msg=lambda text, at=(name, key): f"{at}: {text}"
            )


@pytest.mark.parametrize("which", ["tacotron2 infer", "waveglow infer"])
def test_the_fast_path_runs_without_hooks_only(which):
    make, run = BUILDS[which]
    model, op = make(), "decode_loop" if which.startswith("tacotron2") else "wavenet_layer"

    def calls():
        before = backend.cpu_calls[op]
        run(model)
        return backend.cpu_calls[op] - before

    usual = calls()
    assert usual > 0
    modules = [model.decoder.decoder_rnn] if which.startswith("tacotron2") else [wn.start for wn in model.WN]
    handles = [module.register_forward_hook(lambda *args: None) for module in modules]
    assert calls() == 0
    for handle in handles:
        handle.remove()
    assert calls() == usual
    handle = register_module_forward_hook(lambda *args: None)
    try:
        assert calls() == 0
    finally:
        handle.remove()
    modules[0].forward = modules[0].forward
    assert calls() < usual


def test_a_hook_that_returns_a_value_replaces_the_output():
    model = build_tacotron2(**NO_DROPOUT)
    model.decoder.attention_layer.register_forward_hook(
        lambda module, inputs, output: (output[0], torch.full_like(output[1], 0.25))
    )
    assert (tacotron2_forward(model)[3] == 0.25).all()
    inside = model.infer(TEXT, LENGTHS, seed=1)[2]
    assert (inside == 0.25).all()


class Twice(nn.Module):
    """Calls another module, and doubles what it gives."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kw):
        output = self.module(*args, **kw)
        return tuple(2 * x for x in output) if isinstance(output, tuple) else 2 * output


def double(module, inputs, output):
    return tuple(2 * x for x in output) if isinstance(output, tuple) else 2 * output


REPLACED = {
    "tacotron2 forward": ["decoder.attention_rnn", "decoder.decoder_rnn", "decoder.gate_layer.linear_layer"],
    "tacotron2 infer": [
        "decoder.attention_rnn",
        "decoder.decoder_rnn",
        "decoder.linear_projection.linear_layer",
        "decoder.attention_layer.query_layer",
        "decoder.attention_layer.location_layer.location_conv.conv",
        "postnet.convolutions.1.0.conv",
        "encoder",
        "decoder.prenet",
        "postnet",
    ],
    "waveglow forward": ["WN.1.in_layers.0", "WN.2.end", "upsample", "WN.1", "convinv.2"],
    "waveglow infer": [
        "WN.1",
        "convinv.2",
        "WN.1.in_layers.0",
        "WN.0.cond_layers.1",
        "WN.3.start",
        "WN.2.end",
        "upsample",
    ],
}


@pytest.mark.parametrize(("which", "name"), [(which, name) for which, names in REPLACED.items() for name in names])
def test_a_replaced_module_is_called(which, name):
    """It gives what a hook that doubles the output gives, on a model of its own."""
    torch.manual_seed(4)
    make, run = BUILDS[which]
    model = make()
    torch.manual_seed(1)
    plain = run(model)
    other = copy.deepcopy(model)
    other.get_submodule(name).register_forward_hook(double)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, Twice(model.get_submodule(name)))
    results = []
    for one in (model, other):
        torch.manual_seed(1)
        results.append(run(one))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, results[0], strict=True))


class OneArgument(nn.Module):
    """Calls another module, with as many arguments as NVIDIA's code passes."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)

    def infer(self, z):
        return self.module.infer(z)


class TwoArguments(OneArgument):
    def forward(self, x, y):
        return self.module(x, y)


@pytest.mark.parametrize("way", ["module", "forward", "subclass"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("encoder", TwoArguments), ("decoder.prenet", OneArgument), ("postnet", OneArgument), ("WN.1", TwoArguments),
     ("convinv.2", OneArgument)],
)  # fmt: skip
def test_a_replacement_need_not_take_more_arguments_than_nvidias(name, kind, way):
    """Of texts and mels without padding, where the arguments that are fastglow's change nothing."""
    if name in ("WN.1", "convinv.2"):
        model = build_waveglow()

        def run():
            with torch.no_grad():
                return [model.infer(MEL, 0.7, seed=3), *waveglow_forward(model)]
    else:
        model = build_tacotron2(**NO_DROPOUT)

        def run():
            pieces = [piece.mel for piece in model.infer_pieces(TEXT, full, piece_frames=5)]
            return [*model.infer(TEXT, full), *model.inference(TEXT), torch.cat(pieces, dim=2)]

        full = torch.tensor([7] * 4)
    expected = run()
    parent, _, child = name.rpartition(".")
    module = model.get_submodule(name)
    own = type(module).forward
    if way == "module":
        setattr(model.get_submodule(parent), child, kind(module))
    elif way == "forward":
        one, two = partial(own, module), partial(own, module)
        module.forward = (lambda x: one(x)) if kind is OneArgument else (lambda x, y: two(x, y))
    else:
        one = {
            "forward": (lambda self, x: own(self, x)) if kind is OneArgument else (lambda self, x, y: own(self, x, y))
        }
        module.__class__ = type("Narrow", (type(module),), one)
    for found, tensor in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("which", ["tacotron2 infer", "waveglow infer", "tacotron2 forward", "waveglow forward"])
def test_hooks_under_autocast(which, dtype):
    make, run = BUILDS[which]
    model = make()
    names = ["decoder.attention_rnn", "decoder.prenet.layers.0"] if "tacotron2" in which else ["WN.0.start", "upsample"]
    fired = []
    for name in names:
        hooked(model, name, "register_forward_hook", fired)
    with torch.autocast("cpu", dtype):
        assert all(x.isfinite().all() for x in run(model))
    assert set(fired) == set(names)
