"""The LSTM cell's kernels against the reference in float64."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch

from fastglow.kernels import backend, launch, lstm_cell
from fastglow.kernels.lstm_cell import cast_as_autocast
from fastglow.kernels.lstm_cell.kernels import BACKWARD_CONFIGS, FORWARD_CONFIGS, largest_that_fills
from fastglow.kernels.reference.lstm_cell import lstm_cell as reference

from .checks import (
    EVERY_DTYPE,
    FLOAT32_AND_FLOAT16,
    assert_kernels_refuse,
    assert_same_bits,
    changed_fields,
    check_against_fp64,
    differentiate,
    recorded,
    strided,
)
from .test_lstm_cell import OPTIONS, check_seeded_by_pytorch


@dataclass(frozen=True)
class Case:
    """One call: sizes, and which optional arguments are given."""

    batch: int = 3
    n_in: int = 21
    n: int = 37
    bias: bool = True
    strided: bool = False
    options: str = "plain"

    def __str__(self) -> str:
        return changed_fields(self)

    def arguments(self, dtype: torch.dtype, device: str) -> dict:
        """Tensors of `dtype` whose gates are of order 1."""

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            x = torch.randn(*shape, device=device).mul_(scale).to(dtype)
            return (strided(x) if self.strided else x).requires_grad_()

        B, n_in, n = self.batch, self.n_in, self.n
        return {
            "x": draw(B, n_in),
            "h": draw(B, n),
            "c": draw(B, n),
            "weight_ih": draw(4 * n, n_in, scale=max(1, n_in) ** -0.5),
            "weight_hh": draw(4 * n, n, scale=n**-0.5),
            "bias_ih": draw(4 * n) if self.bias else None,
            "bias_hh": draw(4 * n) if self.bias else None,
            **OPTIONS[self.options],
        }


# Together: every option present and absent, sizes that end inside a tile and beyond one, depths that fill tiles.
CASES = [
    Case(),
    Case(batch=1),
    Case(batch=17, n_in=256, n=128),
    Case(batch=2, n_in=1, n=1),
    Case(batch=33, n_in=5, n=3, bias=False),
    Case(strided=True),
    Case(strided=True, bias=False, options="everything"),
    *(Case(batch=5, n_in=3, n=19, options=name) for name in OPTIONS if name != "plain"),
]
CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 8e-3), torch.bfloat16: (2e-2, 6e-2)}
CAPS_TF32 = {torch.float32: (4e-3, 8e-3)}


def check(arguments, caps=CAPS, **options) -> None:
    check_against_fp64(lstm_cell, reference, arguments, caps, **options)


@pytest.mark.parametrize(
    "case, dtype",
    [*((case, torch.float32) for case in CASES), *((case, torch.float16) for case in CASES[::2])],
    ids=str,
)
def test_kernels_are_as_exact_as_pytorch(case, dtype, device, triton_backend):
    check(case.arguments(dtype, device))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["h alone", "c alone"])
def test_gradients_of_one_output_alone(reached, options, device, triton_backend):
    arguments = Case(n=19, n_in=3, options=options).arguments(torch.float32, device)
    check(arguments, reached=reached)


@pytest.mark.parametrize("wanted", ["x", "h", "c", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_each_gradient_alone(wanted, device, triton_backend):
    arguments = Case(options="everything").arguments(torch.float32, device)
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            x.requires_grad_(name == wanted)
    check(arguments)


@pytest.mark.parametrize("config", FORWARD_CONFIGS[4], ids=str)
def test_every_configuration_forward(config, device, triton_backend):
    with launch.use_config("lstm_cell_fwd", config):
        check(Case(batch=5, options="everything").arguments(torch.float32, device))


@pytest.mark.parametrize("config", FORWARD_CONFIGS[2], ids=str)
def test_every_configuration_forward_in_float16(config, device, triton_backend):
    with launch.use_config("lstm_cell_fwd", config):
        check(Case(batch=5, options="everything").arguments(torch.float16, device))


@pytest.mark.parametrize("config", BACKWARD_CONFIGS, ids=str)
def test_every_configuration_backward(config, device, triton_backend):
    with launch.use_config("lstm_cell_bwd", config):
        arguments = Case(n_in=3, n=260, batch=2, options="everything").arguments(torch.float32, device)
        for name in ("x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            arguments[name].requires_grad_(name.startswith("bias"))  # the products have nothing to do with it
        check(arguments)


@FLOAT32_AND_FLOAT16
def test_the_configuration_depends_on_the_batch(dtype):
    *tiles, of_one = FORWARD_CONFIGS[dtype.itemsize]

    def programs(config, items):
        return math.ceil(1024 / config["BU"]) * math.ceil(items / config["BB"])

    for items in (2, 16, 64, 128, 1024):
        picked = largest_that_fills(dtype, items, 1024, 768)
        assert programs(picked, items) >= 128
        assert all(programs(config, items) < 128 for config in tiles[: tiles.index(picked)])
    assert largest_that_fills(dtype, 2, 7, 5) == tiles[-1]
    assert largest_that_fills(dtype, 1, 1024, 768) == of_one
    assert of_one["BB"] == 1


def test_masks_match_the_references(device, triton_backend):
    """With gates of one half and a state that is not zero, an element is zero only where it was dropped."""
    B, n = 4, 33
    state = torch.ones(B, 2, device=device), torch.full((B, n), 2.0, device=device), torch.ones(B, n, device=device)
    weights = torch.zeros(4 * n, 2, device=device), torch.zeros(4 * n, n, device=device)
    for seed in (torch.tensor(1, device=device), 2**62 + 1):
        options = {"p_dropout_h": 0.5, "p_dropout_c": 0.4, "p_zoneout_h": 0.3, "p_zoneout_c": 0.2, "seed": seed}
        for actual, expected in zip(
            lstm_cell(*state, *weights, **options), reference(*state, *weights, **options), strict=True
        ):
            assert 10 < (expected == 0).sum() < 120
            torch.testing.assert_close(actual, expected)


def test_without_a_seed_kernels_take_one_from_pytorchs_generator(device, triton_backend):
    check_seeded_by_pytorch(device)


def test_backward_refuses_a_seed_that_changed(device, triton_backend):
    arguments = Case(n=5, n_in=3).arguments(torch.float32, device)
    seed = torch.tensor(1, device=device)
    h, _ = lstm_cell(**arguments, p_dropout_h=0.5, seed=seed)
    seed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_leaves_do_not_share_their_gradients(device, triton_backend):
    arguments = Case(n=5, n_in=3).arguments(torch.float32, device)
    lstm_cell(**arguments)[0].sum().backward()
    ours, other = arguments["bias_ih"].grad, arguments["bias_hh"].grad
    assert torch.equal(ours, other)
    ours.zero_()
    assert other.abs().sum() > 0


def test_without_gradients_nothing_is_kept_or_changed(device, triton_backend, monkeypatch):
    arguments = Case().arguments(torch.float32, device)
    before = {name: x.clone() for name, x in arguments.items()}
    kept = []
    package = sys.modules["fastglow.kernels.lstm_cell"]  # the function has its name
    forward = package.lstm_cell_fwd
    monkeypatch.setattr(package, "lstm_cell_fwd", lambda *x: kept.append(forward(*x)) or kept[-1])
    with torch.no_grad():
        h, c = lstm_cell(**arguments)
    assert [outputs.gates for outputs in kept] == [None]
    assert not h.requires_grad
    assert not c.requires_grad
    for name, x in arguments.items():
        assert torch.equal(x, before[name])


def test_second_order_gradients_are_refused(device, triton_backend):
    arguments = Case(n=5, n_in=3).arguments(torch.float32, device)
    h, _ = lstm_cell(**arguments)
    upstream = torch.randn_like(h).requires_grad_()
    (gradient,) = torch.autograd.grad(h, arguments["x"], upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_expanded_gradients(device, triton_backend):
    arguments = Case(n=5, n_in=3).arguments(torch.float32, device)
    gradients = []
    for function in (lstm_cell, reference):
        h, c = function(**arguments)
        gradients.append(torch.autograd.grad(h.sum() + 2 * c.sum(), arguments["x"])[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, under the interpreter
def test_saturates_without_nan(device, triton_backend):
    arguments = Case(n=5, n_in=3).arguments(torch.float32, device)
    with torch.no_grad():
        arguments["bias_ih"][::2] = 1e30
        arguments["bias_ih"][1::2] = -1e30
        arguments["c"][0] = 1e30
    outputs = lstm_cell(**arguments)
    sum(x.sum() for x in outputs).backward()
    for x in (*outputs, *(x.grad for x in arguments.values())):
        assert x.isfinite().all()


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=["items", "inputs", "units"])
def test_sizes_of_zero(sizes, device, poison):
    batch, n_in, n = sizes
    shapes = (batch, n_in), (batch, n), (batch, n), (4 * n, n_in), (4 * n, n), (4 * n,), (4 * n,)
    inputs = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    with backend.use_backend("triton"):
        h, c = lstm_cell(*inputs, p_zoneout_h=0.5, seed=1)
    assert h.shape == c.shape == (batch, n)
    gradients = torch.autograd.grad(h.sum() + c.sum(), inputs)
    expected = [
        torch.autograd.grad(h.sum() + c.sum(), inputs, allow_unused=True)
        for h, c in [reference(*inputs, p_zoneout_h=0.5, seed=1)]
    ][0]
    for x, actual, truth in zip(inputs, gradients, expected, strict=True):
        torch.testing.assert_close(actual, torch.zeros_like(x) if truth is None else truth)


def test_autocast_computes_in_its_dtype(device, triton_backend):
    arguments = Case(options="everything").arguments(torch.float32, device)
    with torch.autocast(device, torch.float16):
        h, c = lstm_cell(**arguments)
    (h.float().sum() + c.float().sum()).backward()
    assert h.dtype == c.dtype == torch.float16
    for x in (arguments["x"], arguments["c"], arguments["weight_hh"], arguments["bias_ih"]):
        assert x.grad.dtype == torch.float32
    halves = {name: x.detach().half() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    assert_same_bits((h, c), lstm_cell(**halves))


def test_backward_inside_autocast_of_a_forward_outside(device, triton_backend):
    arguments = Case().arguments(torch.float32, device)
    h, c = lstm_cell(**arguments)
    outside = torch.autograd.grad(h.sum() + c.sum(), list(arguments.values()), retain_graph=True)
    with torch.autocast(device, torch.bfloat16):
        inside = torch.autograd.grad(h.sum() + c.sum(), list(arguments.values()))
    assert_same_bits(inside, outside)


def test_unsupported_calls_fall_back_or_are_refused(device):
    arguments = Case().arguments(torch.float64, device)
    assert_kernels_refuse("lstm_cell: .* float64 is not among", lstm_cell, **arguments)
    assert lstm_cell(**arguments)[0].dtype == torch.float64


# The decoder's two LSTMs, an encoder's, and sizes that fit no tile.
FULL_SIZE = [
    Case(batch=1, n_in=768, n=1024),
    Case(batch=16, n_in=1536, n=1024),
    Case(batch=128, n_in=1536, n=1024),
    Case(batch=128, n_in=768, n=1024, options="everything"),
    Case(batch=64, n_in=512, n=256, bias=False),
    Case(batch=37, n_in=769, n=1023, options="everything, not training"),
]


@pytest.mark.gpu
@EVERY_DTYPE
@pytest.mark.parametrize("case", FULL_SIZE, ids=str)
def test_published_sizes(case, dtype, triton_backend):
    check(case.arguments(dtype, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", FULL_SIZE[:3], ids=str)
def test_published_sizes_in_tf32(case, triton_backend, allow_tf32):
    allow_tf32()
    check(case.arguments(torch.float32, "cuda"), CAPS_TF32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_as_exact_as_pytorch_in_bfloat16(case, triton_backend):
    check(case.arguments(torch.bfloat16, "cuda"))


@pytest.mark.gpu
@EVERY_DTYPE
def test_every_configuration_at_a_published_size(dtype, triton_backend):
    for config in FORWARD_CONFIGS[dtype.itemsize]:
        with launch.use_config("lstm_cell_fwd", config):
            check(Case(batch=37, n_in=768, n=1024).arguments(dtype, "cuda"))


@pytest.mark.gpu
def test_same_bits_every_time(triton_backend):
    arguments = Case(batch=128, n_in=768, n=1024, options="everything").arguments(torch.float16, "cuda")
    upstream = [torch.randn(128, 1024, device="cuda") for _ in range(2)]
    first, *others = (differentiate(lstm_cell, arguments, upstream) for _ in range(3))
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.gpu
def test_in_a_graph_with_a_seed_that_changes(triton_backend):
    arguments = Case(batch=16, n_in=768, n=1024).arguments(torch.float16, "cuda")
    options = {"p_dropout_h": 0.1, "p_dropout_c": 0.1, "p_zoneout_h": 0.1, "p_zoneout_c": 0.1}
    upstream = [torch.randn(16, 1024, device="cuda") for _ in range(2)]
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step(seed):
        return differentiate(lstm_cell, arguments | options | {"seed": seed}, upstream)

    graph, results = recorded(lambda: step(seed))
    for value in (5, 6):
        seed.fill_(value)
        graph.replay()
        assert_same_bits(results, step(value))


@pytest.mark.gpu
def test_autocast_casts_a_parameter_once(triton_backend):
    arguments = Case(batch=2, n_in=32, n=64).arguments(torch.float32, "cuda")
    weight = arguments["weight_ih"]
    for _ in range(2):
        with torch.autocast("cuda", torch.float16):
            first, second = (cast_as_autocast(weight, torch.float16) for _ in range(2))
            assert first.data_ptr() == second.data_ptr()
            assert torch.equal(first, weight.half())
            h, _ = lstm_cell(**arguments)
            h, _ = lstm_cell(arguments["x"], h, **{k: v for k, v in arguments.items() if k not in "xh"})
        assert torch.autograd.grad(h.float().sum(), weight)[0].dtype == torch.float32
        with torch.no_grad():
            weight.mul_(2)
