"""The prenet: the reference against NumPy and PyTorch's noise, the kernels against the reference in float64."""

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastglow.kernels import backend, launch, prenet, uniform_noise
from fastglow.kernels.reference.prenet import prenet as reference

from .checks import (
    EVERY_DTYPE,
    FLOAT32_AND_FLOAT16,
    assert_fraction,
    assert_kernels_refuse,
    assert_refused,
    assert_same_bits,
    assert_seeded_by_pytorch,
    check_against_fp64,
    differentiate,
    recorded,
    strided,
    zeros_for_shapes,
)

module = importlib.import_module("fastglow.kernels.prenet.kernels")

LEADING = [(), (3,), (2, 3)]


@pytest.fixture(params=LEADING, ids=lambda shape: f"leading {shape}")
def leading(request):
    return request.param


def test_given_noise_against_numpy(leaf, leading):
    x, weights = leaf(*leading, 4), [leaf(5, 4), leaf(5, 5), leaf(5, 5)]
    noise = torch.rand(3, *leading, 5)
    expected = x.detach().numpy()
    for weight, values in zip(weights, noise.numpy(), strict=True):
        expected = np.maximum(expected @ weight.detach().numpy().T, 0)
        expected = np.where(values >= np.float32(0.3), expected / 0.7, 0)
    output = prenet(x, weights, 0.3, noise)
    assert output.shape == (*leading, 5)
    np.testing.assert_allclose(output.detach(), expected, atol=1e-12)


def test_gradients_with_given_noise(leaf, leading):
    noise = torch.rand(2, *leading, 5)

    def function(x, *weights):
        return prenet(x, weights, 0.5, noise)

    assert gradcheck(function, (leaf(*leading, 4), leaf(5, 4), leaf(5, 5)))


def test_gradients_without_dropout(leaf):
    def function(x, *weights):
        return prenet(x, weights, 0.0)

    assert gradcheck(function, (leaf(3, 4), leaf(5, 4), leaf(7, 5)))


def test_a_unit_is_kept_if_its_noise_is_at_least_p_dropout():
    noise = torch.tensor([[0.0, 0.4999999, 0.5, 0.9999999]])
    assert prenet(torch.ones(4), [torch.eye(4)], 0.5, noise).tolist() == [0, 0, 2, 2]


def test_without_dropout_the_noise_does_not_matter():
    x, weights = torch.randn(3, 4), [torch.randn(5, 4), torch.randn(5, 5)]
    expected = F.relu(F.relu(x @ weights[0].T) @ weights[1].T)
    torch.testing.assert_close(prenet(x, weights, 0.0), expected)
    torch.testing.assert_close(prenet(x, weights, 0.0, torch.zeros(2, 3, 5)), expected)


def test_without_noise_it_takes_pytorchs_random_numbers_layer_by_layer():
    x, weights = torch.randn(3, 4), [torch.randn(5, 4), torch.randn(5, 5)]
    torch.manual_seed(1)
    output = prenet(x, weights, 0.3)
    torch.manual_seed(1)
    expected = x
    for weight in weights:
        expected = F.dropout(F.relu(expected @ weight.T), 0.3)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("given", [True, False], ids=["given noise", "own noise"])
def test_units_are_dropped_with_the_given_probability(given):
    n = 40_000
    output = prenet(torch.ones(n, 1), [torch.ones(1, 1)], 0.2, torch.rand(1, n, 1) if given else None)
    assert set(output.unique().tolist()) == {0.0, 1.25}
    assert_fraction(output == 0, 0.2, deviations=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    output = prenet(torch.randn(2, 3, dtype=dtype), [torch.randn(4, 3, dtype=dtype)], 0.5, torch.rand(1, 2, 4))
    assert output.dtype == dtype


@pytest.mark.parametrize("steps", [None, 4], ids=["one step", "many steps"])
def test_seeds_draw_noise_for_every_item_layer_step_and_unit(steps):
    x = torch.randn(*((3,) if steps is None else (3, steps)), 5)
    weights, seeds, start = [torch.randn(7, 5), torch.randn(6, 7)], torch.tensor([3, -(2**40), 3]), 2**32 - 2
    expected = x
    for layer, weight in enumerate(weights):
        noise = uniform_noise(seeds, layer, start, steps or 1, len(weight)).view(*x.shape[:-1], -1)
        expected = F.relu(F.linear(expected, weight)) * (noise >= 0.3) / 0.7
    assert torch.equal(prenet(x, weights, 0.3, seeds=seeds, start=start), expected)


def test_an_items_steps_do_not_depend_on_chunks_and_batches():
    x, weights = torch.ones(2, 6, 3), [torch.rand(40, 3), torch.rand(40, 40)]
    seeds = torch.tensor([8, 9])
    whole = prenet(x, weights, 0.5, seeds=seeds, start=10)
    parts = [prenet(x[:, t], weights, 0.5, seeds=seeds, start=10 + t) for t in range(6)]
    torch.testing.assert_close(torch.stack(parts, dim=1), whole)
    alone = prenet(x[1:], weights, 0.5, seeds=seeds[1:], start=10)
    torch.testing.assert_close(alone, whole[1:])
    assert not torch.equal(whole[0] == 0, whole[1] == 0)
    assert not torch.equal(whole[:, 1:] == 0, whole[:, :-1] == 0)


def test_gradients_with_seeds(leaf):
    seeds = torch.tensor([1, 2])

    def function(x, *weights):
        return prenet(x, weights, 0.5, seeds=seeds)

    assert gradcheck(function, (leaf(2, 3, 4), leaf(6, 4), leaf(5, 6)))


WRONG = {
    r"weights\[1\] has shape \[5, 4\], must be \[n_out, 5\]": {"weights": [(5, 4), (5, 4)]},
    r"weights\[0\] has shape \[4\], must be \[n_out, 4\]": {"weights": [(4,)]},
    "weights is empty": {"weights": []},
    "p_dropout=1.0 must be at least 0 and below 1": {"p_dropout": 1.0},
    r"noise has shape \[1, 2, 3, 5\], must be \[2, 2, 3, 5\]": {"noise": (1, 2, 3, 5)},
    r"layers of one width, these have \[5, 6\]": {"weights": [(5, 4), (6, 5)], "noise": (2, 2, 3, 6)},
    "both noise and seeds": {"noise": (2, 2, 3, 5), "seeds": torch.zeros(2, dtype=torch.int64)},
    r"seeds has shape \[3\], must be \[2\]": {"seeds": torch.zeros(3, dtype=torch.int64)},
    "seeds have dtype int32, must be int64": {"seeds": torch.zeros(2, dtype=torch.int32)},
    r"with seeds, x has shape \[1, 2, 3, 4\]": {"x": (1, 2, 3, 4), "seeds": torch.zeros(1, dtype=torch.int64)},
    "start=-1 must be at least 0": {"seeds": torch.zeros(2, dtype=torch.int64), "start": -1},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    arguments = {"x": (2, 3, 4), "weights": [(5, 4), (5, 5)], "p_dropout": 0.5, **WRONG[message]}
    arguments["weights"] = [torch.zeros(shape) for shape in arguments["weights"]]
    assert_refused(message, prenet, **zeros_for_shapes(arguments))


# From here on: the Triton kernels. Rows, units and sums end inside a tile, or take several.


def by_name(function):
    """The prenet with a keyword per weight, after the other arguments."""

    def call(x, p_dropout, noise=None, seeds=None, start=0, **weights):
        return function(x, list(weights.values()), p_dropout, noise, seeds=seeds, start=start)

    return call


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        leading: the shape of x without n_in.
        dropout: the source of its noise.
        strided: x, weights and noise are laid out as `checks.strided` does.
        signs: x and weights are -1, 0 and 1, so that the input of a ReLU has no rounding error: among millions of
            units, some would be so close to 0 that rounding decides whether they have a gradient.
    """

    leading: tuple[int, ...] = (2, 9)
    n_in: int = 20
    widths: tuple[int, ...] = (40, 40)
    dropout: str = "seeds"  # or "noise", "none"
    strided: bool = False
    signs: bool = False

    def draw(self, *shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        x = torch.randn(shape, device=device)
        x = (x.clamp(-1, 1).round() if self.signs else x).to(dtype)
        return strided(x) if self.strided else x

    def arguments(self, dtype: torch.dtype, device: str, wanted: tuple[bool, ...] | None = None) -> dict:
        """Of `by_name`; sums stay of order 1. `wanted`: whether x and each weight require a gradient; default: all."""
        options = {"dtype": dtype, "device": device}
        tensors = {"x": self.draw(*self.leading, self.n_in, **options)}
        for i, (n, n_out) in enumerate(zip((self.n_in, *self.widths[:-1]), self.widths, strict=True)):
            tensors[f"weight{i}"] = self.draw(n_out, n, **options) * (1.0 if self.signs else (2 / n) ** 0.5)
        for tensor, want in zip(tensors.values(), wanted or (True,) * len(tensors), strict=True):
            tensor.requires_grad_(want)
        others = {"p_dropout": 0.0}
        if self.dropout != "none":
            others["p_dropout"] = 0.5 if self.signs else 0.3
        if self.dropout == "noise":
            shape = (len(self.widths), *self.leading, self.widths[-1])
            noise = torch.rand(*shape[:-1], 2 * shape[-1] if self.strided else shape[-1], device=device)
            others["noise"] = noise[..., ::2] if self.strided else noise
        if self.dropout == "seeds":
            seeds = torch.randint(-(2**62), 2**62, (self.leading[0], 2), device=device)
            others |= {"seeds": seeds[:, 0] if self.strided else seeds[:, 0].contiguous(), "start": 2**32 - 3}
        return tensors | others

    def check(self, dtype: torch.dtype, device: str, wanted: tuple[bool, ...] | None = None) -> None:
        arguments = self.arguments(dtype, device, wanted)
        layout = strided if self.strided else lambda d: d
        check_against_fp64(by_name(prenet), by_name(reference), arguments, CAPS, layout=layout)


CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 4e-3), torch.bfloat16: (3e-2, 3e-2)}

CASES = [
    Case(),
    Case((3,), n_in=5, widths=(7, 7), dropout="noise"),
    Case((2, 9), widths=(33, 70), strided=True),
    Case((2, 3, 5), dropout="noise", strided=True),
    Case((1, 40), n_in=64, widths=(64, 32), dropout="none"),
    Case((4,), n_in=33, widths=(8,)),
    Case((2, 9), widths=(300, 8)),
    Case((2, 3), widths=(16, 24, 40)),
    Case((2, 5), 80, (24, 24), signs=True),
    Case((2, 3), widths=(16, 16, 16, 16), dropout="noise"),
]


@pytest.mark.usefixtures("triton_backend")
class TestKernels:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch(self, case, device):
        case.check(torch.float32, device)

    @pytest.mark.parametrize("case", CASES[::3], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        case.check(torch.float16, device)

    @pytest.mark.parametrize(
        "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)], ids=str
    )
    def test_only_wanted_gradients(self, wanted, device):
        Case().check(torch.float32, device, wanted)

    @FLOAT32_AND_FLOAT16
    def test_every_configuration(self, dtype, device):
        for configs in zip(
            module.FORWARD_CONFIGS[dtype.itemsize], module.BACKWARD_CONFIGS[dtype.itemsize], strict=True
        ):
            with launch.use_config("prenet_fwd", configs[0]), launch.use_config("prenet_bwd", configs[1]):
                Case((2, 9), widths=(20, 136)).check(dtype, device)

    def test_masks_match_the_references(self, device):
        # Nothing but dropout makes a unit zero.
        x, weights = (
            torch.ones(2, 5, 3, device=device),
            [torch.ones(9, 3, device=device), torch.ones(33, 9, device=device)],
        )
        for seeds, start in (([0, -1], 0), ([2**63 - 1, -(2**63)], 2**32 - 2)):
            options = {"p_dropout": 0.4, "seeds": torch.tensor(seeds, device=device), "start": start}
            kept = reference(x, weights, **options) != 0
            assert 100 < kept.sum() < 300
            assert torch.equal(prenet(x, weights, **options) != 0, kept)
            one = prenet(x[:, 0].contiguous(), weights, **options)
            assert torch.equal(one != 0, kept[:, 0])

    def test_a_unit_is_kept_if_its_noise_is_at_least_p_dropout(self, device):
        noise = torch.tensor([[0.0, 0.4999999, 0.5, 0.9999999]], device=device)
        assert prenet(torch.ones(4, device=device), [torch.eye(4, device=device)], 0.5, noise).tolist() == [0, 0, 2, 2]

    def test_without_noise_or_seeds_a_seed_comes_from_pytorchs_generator(self, device):
        x, weights = torch.ones(30, 4, device=device), [torch.ones(9, 4, device=device)]
        output = assert_seeded_by_pytorch(lambda: prenet(x, weights, 0.75))
        assert set(output.unique().tolist()) == {0, 16}
        assert_fraction(output == 0, 0.75)

    def test_no_dropout_takes_no_random_numbers(self, device):
        before = torch.random.get_rng_state()
        prenet(torch.ones(3, 4, device=device), [torch.ones(9, 4, device=device)], 0.0)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_backward_uses_the_mask_of_forward(self, device):
        x = torch.ones(20, 4, device=device, requires_grad=True)
        y = prenet(x, [torch.ones(9, 4, device=device)], 0.5)
        y.sum().backward()
        torch.testing.assert_close(x.grad, ((y > 0).sum(1, keepdim=True) * 2.0).expand(-1, 4))

    def test_expanded_gradient(self, device):
        arguments = Case().arguments(torch.float32, device, (True, False, False))
        (gradient,) = torch.autograd.grad(by_name(prenet)(**arguments).sum(), arguments["x"])
        (expected,) = torch.autograd.grad(by_name(reference)(**arguments).sum(), arguments["x"])
        torch.testing.assert_close(gradient, expected)

    def test_nan_is_not_hidden(self, device):
        x = torch.ones(2, 4, device=device)
        x[1, 2] = float("nan")
        y = prenet(x, [torch.ones(9, 4, device=device), torch.ones(3, 9, device=device)], 0.0)
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(y[1]).all()

    def test_autocast_computes_in_its_dtype(self, device):
        arguments = Case().arguments(torch.float32, device, (False, True, True))
        with torch.autocast(device, torch.float16):
            y = by_name(prenet)(**arguments)
        assert y.dtype == torch.float16
        y.float().sum().backward()
        with backend.use_backend("reference"), torch.autocast(device, torch.float16):
            expected = by_name(prenet)(**arguments)
        torch.testing.assert_close(y, expected, atol=5e-3, rtol=5e-3)
        assert all(arguments[name].grad.dtype == torch.float32 for name in ("weight0", "weight1"))

    def test_backward_inside_autocast_of_a_forward_outside(self, device):
        arguments = Case().arguments(torch.float32, device, (False, True, True))
        weights = [arguments["weight0"], arguments["weight1"]]
        y = by_name(prenet)(**arguments)
        outside = torch.autograd.grad(y.sum(), weights, retain_graph=True)
        with torch.autocast(device, torch.bfloat16):
            inside = torch.autograd.grad(y.sum(), weights)
        assert_same_bits(inside, outside)


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4), (2, 0, 4)])
def test_empty_inputs(shape, device, poison):
    x = torch.randn(shape, device=device, requires_grad=True)
    weights = [torch.randn(5, 4, device=device, requires_grad=True), torch.randn(6, 5, device=device)]
    with backend.use_backend("triton"):
        y = prenet(x, weights, 0.5, seeds=torch.zeros(shape[0], dtype=torch.int64, device=device))
    y.sum().backward()
    assert y.shape == (*shape[:-1], 6)
    assert not weights[0].grad.any()


def test_unsupported_calls_fall_back_or_are_refused(device):
    arguments = Case(dropout="noise").arguments(torch.float64, device)
    call = by_name(prenet)
    assert_kernels_refuse("prenet: .* float64 is not among", call, **arguments)
    assert call(**arguments).dtype == torch.float64
    arguments["x"] = arguments["x"].float()
    assert_kernels_refuse("have the dtypes float32, float64", call, **arguments)
    arguments |= {"weight0": arguments["weight0"].float(), "weight1": arguments["weight1"].float()}
    arguments["noise"] = arguments["noise"].half()
    assert_kernels_refuse("noise has dtype float16, must be float32", call, **arguments)


@pytest.mark.gpu
@pytest.mark.usefixtures("triton_backend")
class TestOnGPU:
    @EVERY_DTYPE
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch(self, dtype, case):
        case.check(dtype, "cuda")

    @EVERY_DTYPE
    @pytest.mark.parametrize("leading", [(1,), (64,), (5, 801), (64, 801)], ids=str)
    @pytest.mark.parametrize("dropout", ["seeds", "noise"])
    def test_published_size(self, dtype, leading, dropout):
        Case(leading, 80, (256, 256), dropout, signs=True).check(dtype, "cuda")

    def test_same_bits_every_time(self):
        arguments = Case((8, 801), 80, (256, 256)).arguments(torch.float16, "cuda")
        dy = torch.randn(8, 801, 256, device="cuda").half()
        first, *others = (differentiate(by_name(prenet), arguments, [dy]) for _ in range(5))
        for other in others:
            assert_same_bits(other, first)

    def test_in_a_graph_with_seeds_that_change(self):
        arguments = Case((2, 50), 80, (256, 256)).arguments(torch.float16, "cuda", (True, False, False))
        seeds = torch.zeros(2, dtype=torch.int64, device="cuda")
        dy = torch.randn(2, 50, 256, device="cuda").half()

        def step(seeds):
            return differentiate(by_name(prenet), arguments | {"seeds": seeds}, [dy])

        graph, results = recorded(lambda: step(seeds))
        for value in (5, 6):
            seeds.fill_(value)
            graph.replay()
            assert_same_bits(results, step(torch.full_like(seeds, value)))

    def test_a_graph_draws_other_masks_at_every_replay(self):
        x, weights = torch.ones(50, 80, device="cuda"), [torch.ones(256, 80, device="cuda")]
        prenet(x, weights, 0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = prenet(x, weights, 0.5)
        masks = []
        for _ in range(2):
            graph.replay()
            masks.append(y != 0)
        assert not torch.equal(*masks)
