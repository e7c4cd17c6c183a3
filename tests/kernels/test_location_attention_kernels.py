"""Location attention's kernels against the reference in float64."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend, launch, location_attention
from fastglow.kernels.location_attention import fold_location
from fastglow.kernels.location_attention.kernels import BACKWARD_CONFIGS, FORWARD_CONFIGS
from fastglow.kernels.reference.location_attention import location_attention as reference

from .checks import (
    EVERY_DTYPE,
    FLOAT32_AND_FLOAT16,
    assert_as_exact_as,
    assert_kernels_refuse,
    assert_same_bits,
    cast,
    check_against_fp64,
    differentiate,
    recorded,
    strided,
)

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
    """One call; `lengths` are those of items 0, 1, ..., other items are full."""

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
            x = torch.randn(shape(self), device=device)
            if name == "attention_weights_cat":
                x = x.abs() / 4
            if name.endswith("weight"):
                x = x / x[0].numel() ** 0.5
            x = x.to(dtype)
            arguments[name] = (strided(x) if self.strided else x).requires_grad_()
        options = dict(self.options)
        if "v_bias" in options:
            options["v_bias"] = torch.randn(1, device=device).to(dtype).requires_grad_()
        if self.lengths:
            full = [self.time] * (self.items - len(self.lengths))
            options["lengths"] = torch.tensor([*self.lengths, *full], device=device)
        if self.mask:
            options["mask"] = torch.rand(self.items, self.time, device=device) < 0.4
        return {**arguments, **options}


CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 2e-2), torch.bfloat16: (3e-2, 1e-1)}
CAPS_TF32 = {torch.float32: (4e-3, 2e-2)}


def check(arguments: dict, caps=CAPS, **options) -> None:
    check_against_fp64(location_attention, reference, arguments, caps, **options)


# Together: every option present and absent, sizes that end inside a tile, windows longer than the text and than BK,
# attention dimensions of several blocks.
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
        check(case.arguments(torch.float32, device))

    @pytest.mark.parametrize("case", CASES[::2], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        check(case.arguments(torch.float16, device))

    @pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["context alone", "weights alone"])
    @pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
    def test_gradients_of_one_output_alone(self, case, reached, device):
        check(case.arguments(torch.float32, device), reached=reached)

    @pytest.mark.parametrize("wanted", NAMES)
    def test_each_gradient_alone(self, wanted, device):
        arguments = Case(lengths=(20,)).arguments(torch.float32, device)
        for name in NAMES:
            arguments[name].requires_grad_(name == wanted)
        reached = (True, wanted != "memory")  # the weights do not depend on the memory
        check(arguments, reached=reached)
        assert location_attention(**arguments)[1].requires_grad == reached[1]

    @FLOAT32_AND_FLOAT16
    def test_every_configuration(self, dtype, device):
        narrow, wide = Case(attention=34, taps=11), Case(items=1, attention=130)
        for kernel, lists in (
            ("location_attention_fwd", FORWARD_CONFIGS),
            ("location_attention_bwd", BACKWARD_CONFIGS),
        ):
            for case, is_wide in ((narrow, False), (wide, True)):
                for config in lists[dtype.itemsize, is_wide]:
                    with launch.use_config(kernel, config):
                        check(case.arguments(dtype, device))

    def test_positions_beyond_a_length_are_not_read(self, device):
        arguments = Case(lengths=(18,), mask=True).arguments(torch.float32, device)
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]
        clean = differentiate(location_attention, arguments, upstream)
        with torch.no_grad():
            for name in ("memory", "processed_memory"):
                arguments[name][0, 18:] = float("nan")
        dirty = differentiate(location_attention, arguments, upstream)
        assert_same_bits(dirty, clean)

    def test_weights_of_another_dtype(self, device):
        """Loops keep the cumulative weights in float32."""
        arguments = Case(taps=9).arguments(torch.float16, device)
        cat = arguments["attention_weights_cat"]
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]
        narrow = differentiate(location_attention, arguments, upstream)
        arguments["attention_weights_cat"] = cat.detach().float().requires_grad_()
        wide = differentiate(location_attention, arguments, upstream)
        assert_same_bits(wide.outputs, narrow.outputs)
        gradient = wide.gradients["attention_weights_cat"]
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient.half(), narrow.gradients["attention_weights_cat"])

    def test_location_weight_computed_before(self, device):
        arguments = Case().arguments(torch.float32, device)
        folded = fold_location(arguments["location_conv_weight"], arguments["location_dense_weight"], torch.float32)
        with torch.no_grad():
            expected = location_attention(**arguments)
            arguments["location_conv_weight"].zero_()
            assert_same_bits(location_attention(**arguments, location_weight=folded), expected)

    def test_large_energies_do_not_overflow(self, device):
        arguments = Case(lengths=(5,)).arguments(torch.float32, device)
        arguments["v_weight"] = (1e6 * arguments["v_weight"]).detach().requires_grad_()
        contexts, weights = location_attention(**arguments)
        (contexts.sum() + weights.square().sum()).backward()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, device=device))
        assert all(arguments[name].grad.isfinite().all() for name in NAMES)

    def test_autocast(self, device):
        """In autocast's dtype, with float32 weights, as PyTorch's softmax returns under autocast on a GPU."""
        arguments = Case(lengths=(20,), options={"v_bias": True}).arguments(torch.float32, device)
        upstream = [torch.randn(2, 20, device=device), torch.randn(2, 21, device=device)]

        def autocast(function):
            def inside(**arguments):
                with torch.autocast(device, torch.float16):
                    return function(**arguments)

            return inside

        exact, exact_gradients = differentiate(reference, cast(arguments, torch.float64), upstream)
        plain, plain_gradients = perturbed(lambda: differentiate(autocast(reference), arguments, upstream))
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
            assert_same_bits(other, first)

    @pytest.mark.parametrize("sizes", [{"time": 18, "columns": 20}, {"time": 18, "columns": 70}], ids=str)
    def test_results_in_a_batch_equal_those_alone(self, sizes, device):
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
def test_empty_inputs(empty, device, poison):
    arguments = Case(**{empty: 0}, options={"v_bias": True}).arguments(torch.float32, device)
    with backend.use_backend("triton"):
        context, weights = location_attention(**arguments)
        (context.sum() + weights.sum()).backward()
    assert context.shape == (len(arguments["query"]), 20)
    assert weights.shape == arguments["memory"].shape[:2]
    assert not context.any()
    for name in NAMES:
        assert not arguments[name].grad.any(), name


def test_unsupported_calls_fall_back_or_are_refused(device):
    arguments = Case().arguments(torch.float64, device)
    assert location_attention(**arguments)[0].dtype == torch.float64
    assert_kernels_refuse("location_attention: .* float64 is not among", location_attention, **arguments)
    wide = Case(items=1, time=2, attention=257).arguments(torch.float32, device)
    assert_kernels_refuse("attention dimension 257 is above 256", location_attention, **wide)
    assert_same_bits(location_attention(**wide), reference(**wide))


def manual_backward(arguments: dict, d_context: torch.Tensor, d_weights: torch.Tensor) -> dict:
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
        shift = taps // 2 - tap  # from the element's position to the window's
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


def test_manual_backward_matches_autograd_and_the_kernels(device, triton_backend):
    arguments = Case(taps=9).arguments(torch.float32, device)
    exact = {name: x.detach().cpu().double().requires_grad_() for name, x in arguments.items()}
    upstream = [torch.randn(2, 20, dtype=torch.float64), torch.randn(2, 21, dtype=torch.float64)]
    manual = manual_backward(exact, *upstream)
    _, by_autograd = differentiate(reference, exact, upstream)
    _, by_kernels = differentiate(location_attention, arguments, [g.to(device) for g in upstream])
    assert manual.keys() == by_autograd.keys() == by_kernels.keys()
    for name, gradient in manual.items():
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
    @EVERY_DTYPE
    @pytest.mark.parametrize("case", FULL_SIZE, ids=str)
    def test_published_sizes(self, case, dtype):
        check(case.arguments(dtype, "cuda"))

    @pytest.mark.parametrize("case", FULL_SIZE[::2], ids=str)
    def test_published_sizes_in_tf32(self, case, allow_tf32):
        allow_tf32()
        check(case.arguments(torch.float32, "cuda"), CAPS_TF32)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch_in_bfloat16(self, case):
        check(case.arguments(torch.bfloat16, "cuda"))

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
            assert_same_bits(results, step())
