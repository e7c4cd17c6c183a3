"""Location-sensitive attention: the reference against a NumPy loop and against the convolution it stands for, the
kernels against the reference in float64."""

import importlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastglow.errors import FastglowError
from fastglow.kernels import backend, launch, location_attention
from fastglow.kernels.location_attention import fold_location
from fastglow.kernels.reference.location_attention import location_attention as reference

from .conftest import assert_as_exact_as, recorded
from .rounding import drawn

module = importlib.import_module("fastglow.kernels.location_attention.kernels")

BATCH, TIME, N_QUERY, N_MEMORY, ATTENTION, FILTERS = 3, 5, 3, 4, 7, 2
LENGTHS = torch.tensor([5, 1, 3])
MASKS = {"no mask": None, "mask": torch.arange(TIME) >= LENGTHS.unsqueeze(1)}


@pytest.fixture(params=[1, 3, 9], ids=lambda k: f"kernel {k}")
def inputs(request, leaf):
    """The positional arguments without the mask. Kernel 9 is longer than the text."""
    return (
        leaf(BATCH, N_QUERY),
        leaf(BATCH, TIME, N_MEMORY),
        leaf(BATCH, TIME, ATTENTION),
        leaf(BATCH, 2, TIME),
        leaf(ATTENTION, N_QUERY),
        leaf(FILTERS, 2, request.param),
        leaf(ATTENTION, FILTERS),
        leaf(1, ATTENTION),
    )


@pytest.fixture(params=MASKS)
def mask(request):
    return MASKS[request.param]


# What a call may be given besides the inputs and a mask; a bias [1] is added by those that have `v_bias`.
OPTIONS = {
    "plain": {},
    "bias": {"v_bias": True},
    "sharpened": {"sharpening": 2.5},
    "sigmoid": {"normalization": "sigmoid"},
    "all": {"v_bias": True, "sharpening": 0.5, "normalization": "sigmoid"},
}


def attention_of_one_item(
    query, memory, processed_memory, weights_cat, query_weight, conv, dense, v, length,
    v_bias=(0.0,), sharpening=1.0, normalization="softmax",
):  # fmt: skip
    """[n_memory] context and [T] weights of an item whose first `length` positions are text, in NumPy loops."""
    n_filters, _, kernel_size = conv.shape
    weights = np.zeros(len(memory))
    for t in range(length):
        location = np.zeros(n_filters)
        for tap in range(kernel_size):
            source = t + tap - kernel_size // 2
            if 0 <= source < len(memory):
                location += conv[:, :, tap] @ weights_cat[:, source]
        energy = v[0] @ np.tanh(query_weight @ query + dense @ location + processed_memory[t])
        energy = sharpening * (energy + v_bias[0])
        weights[t] = np.exp(energy) if normalization == "softmax" else 1 / (1 + np.exp(-energy))
    weights /= weights.sum()
    return weights @ memory, weights


def with_bias(options, bias):
    return {**options, "v_bias": bias} if "v_bias" in options else options


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_a_loop(inputs, mask, options):
    bias = torch.tensor([0.7], dtype=torch.float64)
    contexts, weights = location_attention(*inputs, mask, **with_bias(options, bias))
    assert contexts.shape == (BATCH, N_MEMORY)
    assert weights.shape == (BATCH, TIME)
    arrays = [x.detach().numpy() for x in inputs]
    for item in range(BATCH):
        length = TIME if mask is None else int(LENGTHS[item])
        context, expected = attention_of_one_item(
            *(x[item] for x in arrays[:4]), *arrays[4:], length, **with_bias(options, bias.numpy())
        )
        np.testing.assert_allclose(weights[item].detach(), expected, atol=1e-14)
        np.testing.assert_allclose(contexts[item].detach(), context, atol=1e-13)


def test_against_a_convolution(inputs, mask):
    query, memory, processed_memory, weights_cat, query_weight, conv, dense, v = inputs
    location = dense @ F.conv1d(weights_cat, conv, padding=conv.shape[2] // 2)  # [B, A, T]
    hidden = torch.tanh((query @ query_weight.T).unsqueeze(2) + location + processed_memory.transpose(1, 2))
    energies = F.conv1d(hidden, v.unsqueeze(2)).squeeze(1)
    if mask is not None:
        energies = torch.where(mask, -torch.inf, energies)
    expected = torch.softmax(energies, dim=1)
    contexts, weights = location_attention(*inputs, mask)
    torch.testing.assert_close(weights, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(contexts, torch.einsum("bt,btd->bd", expected, memory), atol=1e-13, rtol=0)


def test_gradients(inputs, mask):
    assert gradcheck(location_attention, (*inputs, mask), fast_mode=True)


@pytest.mark.parametrize("options", list(OPTIONS.values())[1:], ids=list(OPTIONS)[1:])
def test_gradients_with_options(inputs, options):
    bias = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def attention(bias, *inputs):
        return location_attention(*inputs, lengths=LENGTHS, **with_bias(options, bias))

    assert gradcheck(attention, (bias, *inputs), fast_mode=True)


def test_lengths_are_a_mask(inputs):
    given = MASKS["mask"]
    other = torch.tensor([[False, True, False, False, False]] * BATCH)
    for mask in (None, other):
        expected = location_attention(*inputs, given if mask is None else given | mask)
        for actual, x in zip(location_attention(*inputs, mask, lengths=LENGTHS), expected, strict=True):
            assert torch.equal(actual, x)


@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_an_item_that_is_all_padding_gets_zeros(inputs, normalization):
    lengths = torch.tensor([5, 0, 3])
    contexts, weights = location_attention(*inputs, lengths=lengths, normalization=normalization)
    assert not contexts[1].any() and not weights[1].any()
    gradients = torch.autograd.grad(contexts.sum() + (weights * weights).sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    others = [0, 2]
    expected, _ = location_attention(
        *(x[others] for x in inputs[:4]), *inputs[4:], lengths=lengths[others], normalization=normalization
    )
    torch.testing.assert_close(contexts[others], expected, atol=1e-14, rtol=0)


def test_padding_gets_no_weight_and_has_no_influence(inputs):
    query, memory, processed_memory, weights_cat, *parameters = inputs
    mask = MASKS["mask"]
    weights_cat = weights_cat.masked_fill(mask.unsqueeze(1), 0.0)
    contexts, weights = location_attention(query, memory, processed_memory, weights_cat, *parameters, mask)
    assert not weights[mask].any()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH, dtype=torch.float64), atol=1e-14, rtol=0)
    for item, length in enumerate(LENGTHS.tolist()):
        alone = (x[item : item + 1, :length] for x in (memory, processed_memory))
        context, weight = location_attention(
            query[item : item + 1], *alone, weights_cat[item : item + 1, :, :length], *parameters
        )
        torch.testing.assert_close(weights[item : item + 1, :length], weight, atol=1e-14, rtol=0)
        torch.testing.assert_close(contexts[item : item + 1], context, atol=1e-13, rtol=0)


def test_large_energies_do_not_overflow(inputs):
    *arguments, v = inputs
    contexts, weights = location_attention(*arguments, 1e6 * v)
    assert contexts.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH, dtype=torch.float64))


def test_folded_weights_are_those_of_the_convolution(inputs):
    conv, dense = inputs[5:7]
    folded = fold_location(conv, dense, torch.float64)
    taps = conv.shape[2]
    assert folded.shape == (ATTENTION, 64)
    assert not folded[:, 2 * taps :].any()
    expected = torch.einsum("af,fct->act", dense, conv)
    torch.testing.assert_close(folded[:, : 2 * taps].view(ATTENTION, 2, taps), expected, atol=1e-14, rtol=0)
    assert gradcheck(lambda *weights: fold_location(*weights, torch.float64), (conv, dense), fast_mode=True)


SHAPES = {
    "query": lambda c: (c.items, 6),
    "memory": lambda c: (c.items, c.time, c.columns),
    "processed_memory": lambda c: (c.items, c.time, c.attention),
    "attention_weights_cat": lambda c: (c.items, 2, c.time),
    "query_weight": lambda c: (c.attention, 6),
    "location_conv_weight": lambda c: (c.filters, 2, c.taps),
    "location_dense_weight": lambda c: (c.attention, c.filters),
    "v_weight": lambda c: (1, c.attention),
}
NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class Case:
    """A call; `lengths` are of items 0, 1, ..., the others are full."""

    items: int = 2
    time: int = 21
    columns: int = 20
    attention: int = 18
    filters: int = 3
    taps: int = 5
    lengths: tuple[int, ...] = ()
    mask: bool = False
    options: dict = field(default_factory=dict)
    strided: bool = False

    def arguments(self, dtype: torch.dtype, device: str) -> dict:
        arguments = {}
        for name, shape in SHAPES.items():
            x = self._random(shape(self), device)
            if name == "attention_weights_cat":
                x = x.abs() / 4
            if name.endswith("weight"):
                x = x / x[0].numel() ** 0.5
            arguments[name] = x.to(dtype).detach().requires_grad_()
        options = dict(self.options)
        if "v_bias" in options:
            options["v_bias"] = torch.randn(1, device=device).to(dtype).requires_grad_()
        if self.lengths:
            full = [self.time] * (self.items - len(self.lengths))
            options["lengths"] = torch.tensor([*self.lengths, *full], device=device)
        if self.mask:
            options["mask"] = torch.rand(self.items, self.time, device=device) < 0.4
        return {**arguments, **options}

    def _random(self, shape: tuple[int, ...], device: str) -> torch.Tensor:
        """With strided, dimensions in reverse order in memory, and gaps between the numbers."""
        if not self.strided:
            return torch.randn(shape, device=device)
        x = torch.randn(*reversed(shape), 2, device=device)[..., 0]
        return x.permute(*reversed(range(x.dim())))


def differentiate(function, arguments: dict, upstream: list) -> tuple[list, dict]:
    """(context and weights, gradients by argument) under the upstream gradients; None counts as not reached."""
    outputs = function(**arguments)
    leaves = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    used = [(x, g) for x, g in zip(outputs, upstream, strict=True) if g is not None]
    torch.autograd.backward([x for x, _ in used], [g.to(x.dtype) for x, g in used])
    gradients = {name: x.grad for name, x in leaves.items()}
    for x in leaves.values():
        x.grad = None
    return [x.detach() for x in outputs], gradients


def cast(arguments: dict, dtype: torch.dtype) -> dict:
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for name, x in arguments.items()
    }


CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 2e-2), torch.bfloat16: (3e-2, 1e-1)}
CAPS_TF32 = (4e-3, 2e-2)


def check_against_fp64(arguments: dict, dtype: torch.dtype, caps=None, reached=(True, True)) -> None:
    caps = caps or CAPS[dtype]
    memory = arguments["memory"]
    shapes = ((len(memory), memory.shape[2]), memory.shape[:2])
    upstream = [
        torch.randn(shape, device=memory.device).to(dtype) if r else None
        for shape, r in zip(shapes, reached, strict=True)
    ]
    exact, exact_gradients = differentiate(reference, cast(arguments, torch.float64), upstream)
    plain, plain_gradients = drawn(lambda: differentiate(reference, arguments, upstream))
    ours, our_gradients = differentiate(location_attention, arguments, upstream)
    for actual, other, truth in zip(ours, plain, exact, strict=True):
        assert_as_exact_as(actual, other, truth, factor=2, cap=caps[0])
    for name, truth in exact_gradients.items():
        if truth is None:
            assert not our_gradients[name].any(), name
        else:
            assert_as_exact_as(our_gradients[name], plain_gradients[name], truth, factor=3, cap=caps[1])


# Between them: every option present and absent, sizes that end inside a tile, windows longer than the text and than a
# block of them, attention channels of several blocks.
CASES = [
    Case(),
    Case(items=1, time=1, columns=1, attention=1, filters=1, taps=1),
    Case(items=3, lengths=(7, 0), columns=33),
    Case(mask=True, options={"v_bias": True}, taps=9),
    Case(items=3, mask=True, lengths=(16, 1), options={"sharpening": 2.5}, time=35),
    Case(options={"normalization": "sigmoid", "v_bias": True}, lengths=(20,), taps=1),
    Case(items=3, mask=True, lengths=(0, 9), options={"normalization": "sigmoid", "sharpening": 0.5}),
    Case(strided=True, mask=True, lengths=(20,), options={"v_bias": True, "sharpening": 0.5}),
    Case(taps=35, time=19, attention=40),
    Case(items=1, taps=67, time=70, attention=34, columns=9, filters=2),
    Case(items=1, attention=140, columns=70, time=18, lengths=(17,)),
]


@pytest.mark.usefixtures("triton_backend")
class TestKernels:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch(self, case, device):
        check_against_fp64(case.arguments(torch.float32, device), torch.float32)

    @pytest.mark.parametrize("case", CASES[::2], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        check_against_fp64(case.arguments(torch.float16, device), torch.float16)

    @pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["context alone", "weights alone"])
    @pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
    def test_gradients_of_one_output_alone(self, case, reached, device):
        check_against_fp64(case.arguments(torch.float32, device), torch.float32, reached=reached)

    @pytest.mark.parametrize("wanted", NAMES)
    def test_each_gradient_alone(self, wanted, device):
        arguments = Case(lengths=(20,)).arguments(torch.float32, device)
        for name in NAMES:
            arguments[name].requires_grad_(name == wanted)
        reached = (True, wanted != "memory")  # the weights do not depend on the memory
        check_against_fp64(arguments, torch.float32, reached=reached)
        assert location_attention(**arguments)[1].requires_grad == reached[1]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_every_configuration(self, dtype, device):
        narrow, wide = Case(attention=34, taps=11), Case(items=1, attention=130)
        for kernel, lists in (
            ("location_attention_fwd", module.FORWARD_CONFIGS),
            ("location_attention_bwd", module.BACKWARD_CONFIGS),
        ):
            for case, is_wide in ((narrow, False), (wide, True)):
                for config in lists[dtype.itemsize, is_wide]:
                    with launch.use_config(kernel, config):
                        check_against_fp64(case.arguments(dtype, device), dtype)

    def test_what_lies_beyond_a_length_is_not_read(self, device):
        arguments = Case(lengths=(18,), mask=True).arguments(torch.float32, device)
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]
        clean = differentiate(location_attention, arguments, upstream)
        with torch.no_grad():
            for name in ("memory", "processed_memory"):
                arguments[name][0, 18:] = float("nan")
        dirty = differentiate(location_attention, arguments, upstream)
        for x, y in zip([*clean[0], *clean[1].values()], [*dirty[0], *dirty[1].values()], strict=True):
            assert torch.equal(x, y)

    def test_weights_of_another_dtype(self, device):
        """Loops keep the cumulative weights in float32."""
        arguments = Case(taps=9).arguments(torch.float16, device)
        cat = arguments["attention_weights_cat"]
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]
        narrow = differentiate(location_attention, arguments, upstream)
        arguments["attention_weights_cat"] = cat.detach().float().requires_grad_()
        wide = differentiate(location_attention, arguments, upstream)
        for x, y in zip(narrow[0], wide[0], strict=True):
            assert torch.equal(x, y)
        gradient = wide[1]["attention_weights_cat"]
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient.half(), narrow[1]["attention_weights_cat"])

    def test_location_weight_computed_before(self, device):
        arguments = Case().arguments(torch.float32, device)
        folded = fold_location(arguments["location_conv_weight"], arguments["location_dense_weight"], torch.float32)
        with torch.no_grad():
            expected = location_attention(**arguments)
            arguments["location_conv_weight"].zero_()
            for x, y in zip(location_attention(**arguments, location_weight=folded), expected, strict=True):
                assert torch.equal(x, y)

    def test_large_energies_do_not_overflow(self, device):
        arguments = Case(lengths=(5,)).arguments(torch.float32, device)
        arguments["v_weight"] = (1e6 * arguments["v_weight"]).detach().requires_grad_()
        contexts, weights = location_attention(**arguments)
        (contexts.sum() + weights.square().sum()).backward()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, device=device))
        assert all(arguments[name].grad.isfinite().all() for name in NAMES)

    def test_autocast(self, device):
        """In its dtype, but for the weights, which are float32 as on a GPU PyTorch's softmax has them."""
        arguments = Case(lengths=(20,), options={"v_bias": True}).arguments(torch.float32, device)
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]

        def autocast(function):
            def inside(**arguments):
                with torch.autocast(device, torch.float16):
                    return function(**arguments)

            return inside

        exact, exact_gradients = differentiate(reference, cast(arguments, torch.float64), upstream)
        plain, plain_gradients = drawn(lambda: differentiate(autocast(reference), arguments, upstream))
        ours, our_gradients = differentiate(autocast(location_attention), arguments, upstream)
        assert [x.dtype for x in ours] == [torch.float16, torch.float32]
        for actual, other, truth in zip(ours, plain, exact, strict=True):
            assert_as_exact_as(actual, other.to(actual.dtype), truth, factor=2, cap=4e-3)
        for name in NAMES:
            truth = exact_gradients[name]
            assert our_gradients[name].dtype == torch.float32
            assert_as_exact_as(our_gradients[name], plain_gradients[name], truth, factor=3, cap=2e-2)

    def test_same_bits_every_time(self, device):
        arguments = Case(lengths=(20,)).arguments(torch.float16, device)
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]
        first, *others = (differentiate(location_attention, arguments, upstream) for _ in range(3))
        for other in others:
            for x, y in zip([*first[0], *first[1].values()], [*other[0], *other[1].values()], strict=True):
                assert torch.equal(x, y)

    @pytest.mark.parametrize("sizes", [{"time": 18, "columns": 20}, {"time": 18, "columns": 70}], ids=str)
    def test_batched_is_alone(self, sizes, device):
        arguments = Case(items=3, lengths=(7, 15), **sizes).arguments(torch.float32, device)
        with torch.no_grad():
            for item, length in ((0, 7), (1, 15)):
                arguments["attention_weights_cat"][item, :, length:] = 0
            contexts, weights = location_attention(**arguments)
            for item, length in ((0, 7), (1, 15), (2, 18)):
                alone = {name: arguments[name][item : item + 1] for name in NAMES[:4]}
                for name in ("memory", "processed_memory"):
                    alone[name] = alone[name][:, :length]
                alone["attention_weights_cat"] = alone["attention_weights_cat"][:, :, :length]
                context, weight = location_attention(**alone, **{name: arguments[name] for name in NAMES[4:]})
                torch.testing.assert_close(contexts[item], context[0], atol=1e-6, rtol=0)
                torch.testing.assert_close(weights[item, :length], weight[0], atol=1e-6, rtol=0)
                assert not weights[item, length:].any()


@pytest.mark.parametrize("empty", ["items", "time"])
def test_nothing_to_do(empty, device, poison):
    arguments = Case(**{empty: 0}, options={"v_bias": True}).arguments(torch.float32, device)
    with backend.use_backend("triton"):
        context, weights = location_attention(**arguments)
        (context.sum() + weights.sum()).backward()
    assert context.shape == (len(arguments["query"]), 20)
    assert weights.shape == arguments["memory"].shape[:2]
    assert not context.any()
    for name in NAMES:
        assert not arguments[name].grad.any(), name


WRONG = {
    "memory has shape \\[2, 21\\], must be \\[B, T, n_memory\\]": {"memory": (2, 21)},
    "query_weight has shape \\[18\\], must be \\[A, n_query\\]": {"query_weight": (18,)},
    "location_conv_weight has shape \\[3, 2, 4\\], must be \\[F, 2, odd k\\]": {"location_conv_weight": (3, 2, 4)},
    "query has shape \\[2, 7\\], must be \\[2, 6\\]": {"query": (2, 7)},
    "processed_memory has shape": {"processed_memory": (2, 21, 19)},
    "attention_weights_cat has shape": {"attention_weights_cat": (2, 21)},
    "location_dense_weight has shape": {"location_dense_weight": (18, 2)},
    "v_weight has shape \\[18\\]": {"v_weight": (18,)},
    "v_bias has shape \\[\\], must be \\[1\\]": {"v_bias": ()},
    "mask has shape \\[2, 20\\]": {"mask": torch.zeros(2, 20, dtype=torch.bool)},
    "mask has dtype uint8, must be bool": {"mask": torch.zeros(2, 21, dtype=torch.uint8)},
    "lengths has shape \\[3\\]": {"lengths": torch.zeros(3, dtype=torch.int64)},
    "lengths has dtype float32, must be an integer dtype": {"lengths": torch.zeros(2)},
    "location_weight has shape \\[18, 10\\], must be \\[18, 64\\]": {"location_weight": (18, 10)},
    "normalization='entmax' must be 'softmax' or 'sigmoid'": {"normalization": "entmax"},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    given = {k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in WRONG[message].items()}
    with pytest.raises(FastglowError, match=message):
        location_attention(**{**Case().arguments(torch.float32, "cpu"), **given})


def test_what_the_kernels_do_not_serve_falls_back_or_is_refused(device):
    arguments = Case().arguments(torch.float64, device)
    refused = {"location_attention: .* float64 is not among": arguments}
    assert location_attention(**arguments)[0].dtype == torch.float64
    mixed = {**arguments, "query": arguments["query"].float()}
    refused["the dtypes float32, float64"] = mixed
    wide = Case(items=1, time=2, attention=257).arguments(torch.float32, device)
    refused["attention dimension 257 is above 256"] = wide
    for message, given in refused.items():
        with backend.use_backend("triton"), pytest.raises(FastglowError, match=message):
            location_attention(**given)
    for x, y in zip(location_attention(**wide), reference(**wide), strict=True):
        assert torch.equal(x, y)


def mirrored_backward(arguments: dict, d_context: torch.Tensor, d_weights: torch.Tensor) -> dict:
    """The kernels' backward pass step by step in PyTorch, windows and all."""
    query, memory, processed, cat, w_query, conv, dense, v = (arguments[name].detach() for name in NAMES)
    T, taps = memory.shape[1], conv.shape[2]
    folded = dense @ conv.flatten(1)  # [A, 2k]
    windows = F.pad(cat, [taps // 2] * 2).unfold(2, taps, 1).transpose(1, 2).flatten(2)  # [B, T, 2k]
    hidden = torch.tanh((query @ w_query.T).unsqueeze(1) + processed + windows @ folded.T)
    weights = torch.softmax(hidden @ v[0], dim=1)
    g = torch.einsum("btd,bd->bt", memory, d_context) + d_weights
    d_energies = weights * (g - (weights * g).sum(1, keepdim=True))
    d_z = d_energies.unsqueeze(2) * v[0] * (1 - hidden**2)  # [B, T, A]
    d_query = d_z.sum(1)
    d_folded = torch.einsum("bta,btw->aw", d_z, windows)
    d_windows = (d_z @ folded).unflatten(2, (2, taps))
    d_cat = torch.zeros_like(cat)
    for tap in range(taps):
        shift = taps // 2 - tap  # of the window's position from that of the number
        rows = torch.arange(T) + shift
        inside = (rows >= 0) & (rows < T)
        d_cat += torch.where(inside.view(1, -1, 1), d_windows[:, rows.clamp(0, T - 1), :, tap], 0.0).transpose(1, 2)
    return {
        "query": d_query @ w_query,
        "memory": weights.unsqueeze(2) * d_context.unsqueeze(1),
        "processed_memory": d_z,
        "attention_weights_cat": d_cat,
        "query_weight": d_query.T @ query,
        "location_conv_weight": (dense.T @ d_folded).view(conv.shape),
        "location_dense_weight": d_folded @ conv.flatten(1).T,
        "v_weight": torch.einsum("bt,bta->a", d_energies, hidden).unsqueeze(0),
    }


def test_the_backward_by_hand_is_that_of_autograd_and_of_the_kernels(device, triton_backend):
    arguments = Case(taps=9).arguments(torch.float32, device)
    exact = {name: x.detach().cpu().double().requires_grad_() for name, x in arguments.items()}
    upstream = [torch.randn(2, 20, dtype=torch.float64), torch.randn(2, 21, dtype=torch.float64)]
    by_hand = mirrored_backward(exact, *upstream)
    _, by_autograd = differentiate(reference, exact, upstream)
    _, by_kernels = differentiate(location_attention, arguments, [g.to(device) for g in upstream])
    assert by_hand.keys() == by_autograd.keys() == by_kernels.keys()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(gradient, by_autograd[name], atol=1e-13, rtol=1e-12)
        torch.testing.assert_close(gradient, by_kernels[name].double().cpu(), atol=1e-5, rtol=1e-5)


FULL_SIZE = [
    Case(items=128, time=256, columns=512, attention=128, filters=32, taps=31, lengths=(200, 1, 0, 37)),
    Case(items=1, time=128, columns=512, attention=128, filters=32, taps=31),
    Case(items=16, time=1003, columns=512, attention=128, filters=32, taps=31, mask=True),
    Case(items=16, time=300, columns=256, attention=64, filters=10, taps=201, options={"sharpening": 2.0}),
    Case(
        items=16, time=128, columns=512, attention=256, filters=32, taps=31, lengths=(100,),
        options={"normalization": "sigmoid", "v_bias": True},
    ),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.usefixtures("triton_backend")
class TestOnGPU:
    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("case", FULL_SIZE, ids=str)
    def test_published_sizes(self, case, dtype):
        check_against_fp64(case.arguments(dtype, "cuda"), dtype)

    @pytest.mark.parametrize("case", FULL_SIZE[::2], ids=str)
    def test_published_sizes_in_tf32(self, case, monkeypatch):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
        check_against_fp64(case.arguments(torch.float32, "cuda"), torch.float32, CAPS_TF32)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch_in_bfloat16(self, case):
        check_against_fp64(case.arguments(torch.bfloat16, "cuda"), torch.bfloat16)

    def test_in_a_graph(self):
        arguments = FULL_SIZE[1].arguments(torch.float16, "cuda")
        arguments["lengths"] = torch.tensor([128], device="cuda")
        upstream = [torch.randn(1, 512, device="cuda").half(), torch.randn(1, 128, device="cuda").half()]
        leaves = [arguments[name] for name in NAMES]

        def step():
            outputs = location_attention(**arguments)
            return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]

        graph, results = recorded(step)
        for length in (128, 77):
            arguments["lengths"].fill_(length)
            graph.replay()
            for x, y in zip(results, step(), strict=True):
                assert torch.equal(x, y)
