"""WaveGlow's memory_saving: results and gradients against those of the ordinary mode and of float64."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.diagnosis.rounding import perturbed
from fastglow.modules import WN

from ..kernels.checks import assert_as_exact_as, assert_same_bits
from .test_waveglow import STRUCTURES, build, mel_and_audio


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


def twins(dtype=torch.float64, **config):
    """(a model, its copy that saves memory)."""
    model = build(dtype, **config)
    saving = copy.deepcopy(model)
    saving.memory_saving = True
    return model, saving


def inputs_of(model, n_frames=3):
    """(mel, audio), which require gradients; the audio ends within a group."""
    mel, audio = mel_and_audio(model, n_frames=n_frames)
    dtype = model.upsample.weight.dtype
    return mel.to(dtype).requires_grad_(), audio[:, :-3].to(dtype).requires_grad_()


def results_of(model, inputs):
    z, log_s_list, log_det_list = model(inputs)
    return [z, *log_s_list, *log_det_list]


def upstream_of(results, seed=5):
    """The same values whatever the results' dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in results]


def gradients(model, inputs, used=slice(None), amp=None):
    """(results, gradients of the inputs and of all parameters that require one) with random upstream gradients."""
    with nullcontext() if amp is None else torch.autocast("cpu", amp):
        results = results_of(model, inputs)
    upstream = [d.to(x.dtype) for x, d in zip(results, upstream_of(results), strict=True)]
    outputs, ds = zip(
        *((x, d) for x, d in list(zip(results, upstream, strict=True))[used] if x.requires_grad), strict=True
    )
    wanted = [x for x in (*inputs, *model.parameters()) if x.requires_grad]
    return [x.detach() for x in results], torch.autograd.grad(outputs, wanted, ds, allow_unused=True)


def assert_close(found, expected, tolerance):
    """Each within `tolerance` of the norm of the largest in float32, where small ones are sums that cancel."""
    scale = max(x.norm() for x in expected if x is not None)
    for x, y in zip(found, expected, strict=True):
        if y is None or not y.any():
            assert x is None or not x.any()
        else:
            assert x.dtype == y.dtype
            floor = 1e-3 * scale if x.dtype == torch.float32 else 0.0
            assert (x - y).norm() <= tolerance * max(y.norm(), floor)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str)
def test_every_result_and_gradient(structure, dtype, tolerance):
    model, saving = twins(dtype, **structure)
    inputs = inputs_of(model)
    (results, found), (expected_results, expected) = gradients(saving, inputs), gradients(model, inputs)
    if dtype == torch.float64:
        assert_same_bits(results, expected_results)
    torch.testing.assert_close(results, expected_results, rtol=1e-5, atol=1e-5)
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize(
    "used", [slice(0, 1), slice(2, 3), slice(5, 6), slice(1, 3), slice(6, 7), slice(10, 11)], ids=str
)
def test_callers_may_use_some_results_only(used):
    """z; log s of the second and of the last flow; of the first two; log det of the first and of the last flow."""
    model, saving = twins()
    inputs = inputs_of(model)
    assert_close(gradients(saving, inputs, used)[1], gradients(model, inputs, used)[1], 1e-11)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("structure", ["tiny", "early output of every flow", "alternating halves"])
def test_as_exact_under_autocast_as_the_ordinary_mode(structure, amp):
    model, saving = twins(torch.float32, **STRUCTURES[structure])
    inputs = inputs_of(model)
    _, exact = gradients(copy.deepcopy(model).double(), [x.detach().double().requires_grad_() for x in inputs])
    references = perturbed(lambda: gradients(model, inputs, amp=amp)[1], n_runs=4)
    results, found = gradients(saving, inputs, amp=amp)
    for x, ordinary, truth in zip(found, references, exact, strict=True):
        assert_as_exact_as(x, ordinary, truth, factor=2, cap=1.0)
    assert {x.dtype for x in results} == {torch.float32}


def test_half_precision_does_not_accumulate_in_the_rebuilt_signals():
    """Each coupling network reads the same again, to float32's rounding."""
    model, saving = twins(torch.float32, n_flows=12, n_early_every=4)
    inputs = inputs_of(model)
    seen = {}
    for k, wn in enumerate(saving.WN):
        wn.register_forward_hook(lambda module, args, output, k=k: seen.setdefault(k, []).append(args[0].detach()))
    gradients(saving, inputs, amp=torch.bfloat16)
    assert [len(seen[k]) for k in range(12)] == [2] * 11 + [1]
    for first, again in (seen[k] for k in range(11)):
        assert first.dtype == torch.float32
        assert (again - first).abs().max() <= 1e-4 * first.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision(dtype):
    """Their signals are float32 all the same."""
    model, saving = twins(dtype, n_flows=8, n_early_every=4)
    inputs = inputs_of(model)
    _, exact = gradients(copy.deepcopy(model).double(), [x.detach().double().requires_grad_() for x in inputs])
    references = perturbed(lambda: gradients(model, inputs)[1], n_runs=4)
    results, found = gradients(saving, inputs)
    assert results[0].dtype == dtype
    for x, ordinary, truth in zip(found, references, exact, strict=True):
        assert_as_exact_as(x, ordinary, truth, factor=2, cap=1.0)


def with_condition(model, k, condition):
    """Sets the singular values of a flow's 1x1 convolution, from 1 to 1 / condition."""
    weight = model.convinv[k].conv.weight
    u, s, v = torch.linalg.svd(weight.detach().squeeze(2).double())
    values = torch.logspace(0, -torch.tensor(float(condition)).log10(), len(s), dtype=torch.float64)
    with torch.no_grad():
        weight.copy_((u @ values.diag() @ v).unsqueeze(2))


@pytest.mark.parametrize(("flows", "condition"), [([2], 1e4), (range(12), 2.0), (range(12), 30.0)])
def test_ill_conditioned_convolutions_amplify_no_rounding(flows, condition):
    """In float32 the inverses of twelve convolutions of condition 30 would leave nothing of a signal."""
    model = build(torch.float32, n_flows=12, n_early_every=4)
    for k in flows:
        with_condition(model, k, condition)
    saving = copy.deepcopy(model)
    saving.memory_saving = True
    inputs = inputs_of(model)
    assert_close(gradients(saving, inputs)[1], gradients(model, inputs)[1], 1e-4)


@pytest.mark.parametrize("row", ["zero", "repeated"])
def test_a_singular_convolution_gives_nan_and_not_wrong_gradients(row):
    model, saving = twins(torch.float32)
    for one in (model, saving):
        weight = one.convinv[1].conv.weight.detach()
        weight[0] = 0 if row == "zero" else weight[1]
    inputs = inputs_of(model)
    results = results_of(saving, inputs)
    torch.testing.assert_close(results, results_of(model, inputs), rtol=1e-5, atol=1e-5)
    assert (results[-4].item() == -torch.inf) == (row == "zero")
    found = torch.autograd.grad(results[0].sum(), list(saving.parameters()), allow_unused=True)
    of = dict(zip((name for name, _ in saving.named_parameters()), found, strict=True))
    assert of["WN.4.end.weight"].isfinite().all()
    for name in ("WN.0.end.weight", "WN.2.start.weight_v", "convinv.0.conv.weight", "upsample.weight"):
        assert of[name].isnan().any(), name


@pytest.mark.parametrize("hooked", [False, True])
def test_amplified_rounding_gives_nan_and_not_wrong_gradients(hooked):
    """Inverse convolutions of condition 1e4 one after another amplify even float64's beyond use."""
    model = build(torch.float32, n_flows=12, n_early_every=4)
    for k in range(12):
        with_condition(model, k, 1e4)
    if hooked:
        model.convinv[0].register_forward_hook(lambda *args: None)
    model.memory_saving = True
    found = gradients(model, inputs_of(model))[1]
    of = dict(zip((name for name, _ in model.named_parameters()), found[2:], strict=True))
    for name in ("upsample.weight", "convinv.0.conv.weight", "WN.0.end.weight", "WN.0.start.weight_v"):
        assert of[name].isnan().any(), name
    assert found[0].isnan().any() and found[1].isnan().any()


def test_hooks_on_parameters_and_parts_fire_as_often_as_they_should():
    model, saving = twins()
    inputs = inputs_of(model)
    fired = []
    for one in (model, saving):
        one.WN[0].start.weight_v.register_hook(lambda d: fired.append("parameter") or 2 * d)
        one.convinv[1].conv.weight.register_hook(lambda d: fired.append("matrix") or 3 * d)
        one.WN[1].register_full_backward_hook(lambda *args: fired.append("module"))
        one.WN[2].in_layers[0].register_forward_hook(lambda *args: fired.append("layer"))
        one.convinv[3].register_forward_hook(lambda *args: fired.append("convolution"))
    expected = gradients(model, inputs)[1]
    once = sorted(fired)
    fired.clear()
    assert_close(gradients(saving, inputs)[1], expected, 1e-11)
    assert sorted(fired) == sorted([*once, "layer", "convolution"])


class Mixing(nn.Module):
    """A 1x1 convolution with NVIDIA's call, without an inverse."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, z):
        return self.conv(z), z.shape[0] * z.shape[2] * torch.slogdet(self.conv.weight.squeeze(2))[1]


class OtherWN(WN):
    def forward(self, audio, spect):
        return 0.5 * super().forward(audio, spect).tanh()


@pytest.mark.parametrize("k", [0, 1, 4])
def test_replaced_parts_are_called(k):
    model, saving = twins()
    for one in (model, saving):
        one.convinv[k] = Mixing(one.convinv[k].conv)
        one.WN[2].__class__ = OtherWN
    inputs = inputs_of(model)
    assert_close(gradients(saving, inputs)[1], gradients(model, inputs)[1], 1e-11)


def test_without_weight_norm():
    model, saving = (WaveGlow.remove_weightnorm(one) for one in twins())
    inputs = inputs_of(model)
    assert_close(gradients(saving, inputs)[1], gradients(model, inputs)[1], 1e-11)


@pytest.mark.parametrize(
    "frozen",
    ["WN.", "convinv.", "upsample.", ("WN.0.", "WN.1.", "convinv.0", "convinv.1", "upsample."), "WN.4.", "convinv.4"],
    ids=str,
)
@pytest.mark.parametrize("of_inputs", [True, False])
def test_frozen_parameters(frozen, of_inputs):
    model, saving = twins()
    inputs = [x.detach().requires_grad_(of_inputs) for x in inputs_of(model)]
    for one in (model, saving):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
    assert_close(gradients(saving, inputs)[1], gradients(model, inputs)[1], 1e-11)


def test_a_frozen_model_has_gradients_of_its_inputs():
    model, saving = (one.requires_grad_(False) for one in twins())
    inputs = inputs_of(model)
    assert_close(gradients(saving, inputs)[1], gradients(model, inputs)[1], 1e-11)


def test_without_gradients_it_is_the_ordinary_forward():
    model, saving = twins(torch.float32)
    inputs = inputs_of(model)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert_same_bits(results_of(saving, inputs), results_of(model, inputs))
    assert_same_bits(saving.infer(inputs[0].detach(), seed=1), model.infer(inputs[0].detach(), seed=1))


def test_the_mode_is_kept_by_copies_and_is_in_no_checkpoint():
    model, saving = twins()
    assert not model.memory_saving
    assert copy.deepcopy(saving).memory_saving and pickle.loads(pickle.dumps(saving)).memory_saving
    assert saving.state_dict().keys() == model.state_dict().keys()
    assert saving.config == model.config


def test_backward_twice_and_in_parts():
    model, saving = twins()
    inputs = inputs_of(model)
    results, wanted = results_of(saving, inputs), list(saving.parameters())
    upstream = upstream_of(results)
    once = torch.autograd.grad(results, wanted, upstream, retain_graph=True)
    parts = [
        torch.autograd.grad(results[i : i + 1], wanted, upstream[i : i + 1], retain_graph=True, allow_unused=True)
        for i in range(len(results))
    ]
    for whole, *found in zip(once, *parts, strict=True):
        torch.testing.assert_close(sum(x for x in found if x is not None), whole, rtol=1e-9, atol=1e-12)
    assert_same_bits(torch.autograd.grad(results, wanted, upstream), once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(results, wanted, upstream)


def test_a_second_derivative_is_an_error():
    model, saving = twins()
    wanted = list(saving.parameters())
    inputs = inputs_of(model)
    found = torch.autograd.grad(WaveGlowLoss()(saving(inputs)), wanted, create_graph=True)
    expected = torch.autograd.grad(WaveGlowLoss()(model(inputs)), list(model.parameters()))
    assert_close([x.detach() for x in found], expected, 1e-11)
    with pytest.raises(RuntimeError, match="memory_saving=True has no second derivative: set it to False"):
        sum(x.square().sum() for x in found).backward()


def test_parameters_changed_before_the_backward_pass_are_an_error():
    _, saving = twins()
    loss = WaveGlowLoss()(saving(inputs_of(saving)))
    with torch.no_grad():
        saving.WN[0].end.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_z_may_be_written_to():
    model, saving = twins()
    inputs = inputs_of(model)
    found = []
    for one in (model, saving):
        loss = one(inputs)[0].mul_(2).square().sum()
        found.append(torch.autograd.grad(loss, list(one.parameters()), allow_unused=True))
    assert_close(found[1], found[0], 1e-11)


@pytest.mark.filterwarnings("ignore")  # of torch.func and forward-mode derivatives, about themselves
def test_other_derivatives_take_the_ordinary_path():
    model, saving = twins()
    mel, audio = (x.detach() for x in inputs_of(model))

    def energy(one):
        parameters = {name: x.detach() for name, x in one.named_parameters()}
        return torch.func.grad(lambda p: torch.func.functional_call(one, p, ((mel, audio),))[0].square().sum())(
            parameters
        )

    found, expected = energy(saving), energy(model)
    assert_close([*found.values()], [*expected.values()], 1e-11)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(audio, torch.ones_like(audio))
        tangents = [torch.autograd.forward_ad.unpack_dual(one((mel, dual))[0]).tangent for one in (saving, model)]
    assert_same_bits(*tangents)


def test_replicas_of_data_parallel():
    def replica(module):
        copied = module._replicate_for_data_parallel()
        for name, part in module._modules.items():
            copied._modules[name] = replica(part)
        copied._former_parameters = {name: p for name, p in module._parameters.items() if p is not None}
        for name, parameter in copied._former_parameters.items():
            setattr(copied, name, 1 * parameter)
        return copied

    model, saving = twins()
    inputs = inputs_of(model)
    wanted = list(saving.parameters())
    results = results_of(replica(saving), inputs)
    found = torch.autograd.grad(results, wanted, upstream_of(results))
    assert_close(found, gradients(model, inputs)[1][2:], 1e-11)


@pytest.mark.parametrize("amp", [None, torch.float16], ids=str)
def test_training_with_accumulation_and_a_loss_scale(amp):
    models = twins(torch.float32)
    trained = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=amp is not None)
        for _ in range(2):
            optimizer.zero_grad()
            for n_frames in (2, 3):
                torch.manual_seed(n_frames)
                with nullcontext() if amp is None else torch.autocast("cpu", amp):
                    loss = WaveGlowLoss()(model(inputs_of(model, n_frames)))
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        trained.append([p.detach() for p in model.parameters()])
    assert_close(trained[1], trained[0], 1e-5 if amp is None else 1e-2)
