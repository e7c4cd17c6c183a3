"""The LSTM cell: the reference against NumPy and scalar arithmetic, the kernels against the reference in float64."""

import importlib
import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from fastglow.errors import FastglowError
from fastglow.kernels import backend, launch, lstm_cell
from fastglow.kernels.reference.lstm_cell import MASK_STREAM
from fastglow.kernels.reference.lstm_cell import lstm_cell as reference

from .conftest import assert_as_exact_as, recorded
from .rounding import drawn
from .test_philox import philox_in_python

module = importlib.import_module("fastglow.kernels.lstm_cell")

BATCH, N_IN, N = 3, 5, 7

OPTIONS = {
    "plain": {},
    "dropout of h": {"p_dropout_h": 0.3, "seed": 7},
    "dropout of h and c": {"p_dropout_h": 0.1, "p_dropout_c": 0.6, "seed": -(2**40) - 1},
    "zoneout of h": {"p_zoneout_h": 0.4, "seed": 2**63 - 1},
    "zoneout of c": {"p_zoneout_c": 0.4, "seed": 0},
    "everything": {"p_dropout_h": 0.2, "p_dropout_c": 0.3, "p_zoneout_h": 0.4, "p_zoneout_c": 0.5, "seed": 3},
    "everything, not training": {
        "p_dropout_h": 0.2, "p_dropout_c": 0.3, "p_zoneout_h": 0.4, "p_zoneout_c": 0.1, "training": False
    },
}  # fmt: skip


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def inputs(request, leaf):
    state = leaf(BATCH, N_IN), leaf(BATCH, N), leaf(BATCH, N)
    weights = leaf(4 * N, N_IN), leaf(4 * N, N)
    return *state, *weights, *((leaf(4 * N), leaf(4 * N)) if request.param else ())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_against_numpy(inputs):
    x, h, c, weight_ih, weight_hh, *biases = (tensor.detach().numpy() for tensor in inputs)
    gates = x @ weight_ih.T + h @ weight_hh.T + sum(biases)
    i, f, g, o = (gates[:, k * N : (k + 1) * N] for k in range(4))
    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h_next = sigmoid(o) * np.tanh(c_next)
    for actual, expected in zip(lstm_cell(*inputs), (h_next, c_next), strict=True):
        np.testing.assert_allclose(actual.detach(), expected, atol=1e-13)


def below_in_python(i, word, p, seed):
    """Whether mask `word` of element i is set."""
    seed %= 2**64
    words = philox_in_python((i % 2**32, i // 2**32, 0, MASK_STREAM), (seed % 2**32, seed // 2**32))
    return (words[word] >> 8) * 2.0**-24 < p


@pytest.mark.parametrize("options", list(OPTIONS.values())[1:-1], ids=list(OPTIONS)[1:-1])
def test_masks_one_number_at_a_time(inputs, options):
    """h has masks 0 (dropout) and 2 (zoneout), c has 1 and 3."""
    plain, mixed = lstm_cell(*inputs), lstm_cell(*inputs, **options)
    for k, name in enumerate("hc"):
        p_dropout, p_zoneout = (options.get(f"p_{kind}_{name}", 0.0) for kind in ("dropout", "zoneout"))
        numbers = (x.flatten().tolist() for x in (inputs[1 + k], plain[k], mixed[k]))
        for i, (old, new, actual) in enumerate(zip(*numbers, strict=True)):
            expected = old if below_in_python(i, 2 + k, p_zoneout, options["seed"]) else new
            dropped = below_in_python(i, k, p_dropout, options["seed"])
            assert actual == pytest.approx(0.0 if dropped else expected / (1 - p_dropout), rel=1e-13)


def test_without_training_zoneout_is_its_expectation_and_nothing_is_dropped(inputs):
    _, h, c, *_ = inputs
    next_h, next_c = lstm_cell(*inputs)
    actual = lstm_cell(*inputs, **OPTIONS["everything, not training"])
    torch.testing.assert_close(actual[0], 0.4 * h + 0.6 * next_h, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(actual[1], 0.1 * c + 0.9 * next_c, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients(inputs, options):
    assert gradcheck(lambda *inputs: lstm_cell(*inputs, **options), inputs, fast_mode=True)


def test_takes_the_parameters_of_nn_lstmcell():
    cell = nn.LSTMCell(N_IN, N)
    x, h, c = torch.randn(BATCH, N_IN), torch.randn(BATCH, N), torch.randn(BATCH, N)
    for actual, expected in zip(lstm_cell(x, h, c, *cell.parameters()), cell(x, (h, c)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_probability_has_its_share(p):
    B, n = 200, 500
    state = torch.zeros(B, 1), torch.full((B, n), 2.0), torch.full((B, n), 3.0)
    weights = torch.zeros(4 * n, 1), torch.zeros(4 * n, n)
    dropped = lstm_cell(*state, *weights, p_dropout_h=p, p_dropout_c=p, seed=3)
    kept = lstm_cell(*state, *weights, p_zoneout_h=p, p_zoneout_c=p, seed=3)
    masks = [dropped[0] == 0, dropped[1] == 0, kept[0] == 2, kept[1] == 3]
    deviation = 4 * math.sqrt(p * (1 - p) / (B * n))
    for k, mask in enumerate(masks):
        assert abs(mask.double().mean().item() - p) < deviation
        for other in masks[:k]:  # independent of each other
            assert abs((mask & other).double().mean().item() - p * p) < deviation


def arguments_of(options, dtype=torch.float32, device="cpu"):
    shapes = (BATCH, N_IN), (BATCH, N), (BATCH, N), (4 * N, N_IN), (4 * N, N), (4 * N,), (4 * N,)
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes], options


def check_that_the_seed_is_pytorchs(device):
    inputs, options = arguments_of({"p_dropout_h": 0.5, "p_zoneout_c": 0.5}, device=device)
    torch.manual_seed(1)
    first, second = (lstm_cell(*inputs, **options) for _ in range(2))
    torch.manual_seed(1)
    again = lstm_cell(*inputs, **options)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, c)
        assert not torch.equal(a, b)


def test_without_a_seed_the_masks_come_from_pytorchs_generator():
    check_that_the_seed_is_pytorchs("cpu")


def test_what_draws_nothing_leaves_pytorchs_generator_alone():
    inputs, _ = arguments_of({})
    before = torch.get_rng_state()
    lstm_cell(*inputs)
    lstm_cell(*inputs, p_dropout_h=0.5, p_zoneout_c=0.5, training=False)
    assert torch.equal(torch.get_rng_state(), before)


WRONG = {
    "x has shape \\(5,\\) and h": {"x": (5,)},
    "h has shape \\(2, 7\\), not \\(3, 7\\)": {"h": (2, 7)},
    "c has shape \\(3, 6\\), not \\(3, 7\\)": {"c": (3, 6)},
    "weight_ih has shape \\(28, 6\\), not \\(28, 5\\)": {"weight_ih": (28, 6)},
    "weight_hh has shape \\(7, 7\\), not \\(28, 7\\)": {"weight_hh": (7, 7)},
    "bias_ih has shape \\(7,\\), not \\(28,\\)": {"bias_ih": (7,)},
    "pass both or neither": {"bias_hh": None},
    "p_dropout_h 1.0 is not": {"p_dropout_h": 1.0},
    "p_zoneout_c -0.1 is not": {"p_zoneout_c": -0.1},
    "seed 9223372036854775808 does not fit": {"seed": 2**63},
    "seed is a tensor of shape \\(1,\\)": {"seed": torch.zeros(1, dtype=torch.int64)},
    "torch.float32 on cpu": {"seed": torch.zeros(())},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    shapes = {
        "x": (BATCH, N_IN), "h": (BATCH, N), "c": (BATCH, N), "weight_ih": (4 * N, N_IN), "weight_hh": (4 * N, N),
        "bias_ih": (4 * N,), "bias_hh": (4 * N,),
    }  # fmt: skip
    arguments = {k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in (shapes | WRONG[message]).items()}
    with pytest.raises(FastglowError, match=message) as error:
        lstm_cell(**arguments)
    assert "\n" not in str(error.value)


# From here on: the Triton kernels.


@dataclass(frozen=True)
class Case:
    """One call: sizes, and which optional arguments are there."""

    batch: int = 3
    n_in: int = 21
    n: int = 37
    bias: bool = True
    strided: bool = False
    options: str = "plain"

    def __str__(self) -> str:
        changed = [f"{f.name} {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "default"

    def arguments(self, dtype: torch.dtype, device: str) -> dict:
        """Tensors rounded to `dtype` whose gates are of order 1; strided ones lie apart in both directions."""

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            x = torch.randn(*shape, device=device) * scale
            if self.strided:
                x = torch.stack((x, x, x), dim=0).permute(*range(x.dim(), 0, -1), 0)[..., 1]
                x = x.permute(*reversed(range(x.dim())))
            return x.to(dtype).requires_grad_()

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


# Between them: every option present and absent, sizes that end inside a tile and beyond one, depths that are whole.
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
CAPS_TF32 = (4e-3, 8e-3)


def differentiate(function, arguments: dict, upstream: list) -> tuple[list, dict]:
    """([h', c'], gradients by argument) under the upstream gradients; None counts as not reached."""
    outputs = function(**arguments)
    leaves = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    used = [(x, g) for x, g in zip(outputs, upstream, strict=True) if g is not None]
    gradients = torch.autograd.grad(
        [x for x, _ in used], list(leaves.values()), [g.to(x.dtype) for x, g in used], allow_unused=True
    )
    return [x.detach() for x in outputs], dict(zip(leaves, gradients, strict=True))


def cast(arguments: dict, dtype: torch.dtype) -> dict:
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for name, x in arguments.items()
    }


def check_against_fp64(arguments: dict, caps: tuple[float, float], reached=(True, True)) -> None:
    h = arguments["h"]
    upstream = [torch.randn(h.shape, device=h.device).to(h.dtype) if r else None for r in reached]
    exact, exact_gradients = differentiate(reference, cast(arguments, torch.float64), upstream)
    plain, plain_gradients = drawn(lambda: differentiate(reference, arguments, upstream))
    ours, our_gradients = differentiate(lstm_cell, arguments, upstream)
    for actual, usual, truth in zip(ours, plain, exact, strict=True):
        assert_as_exact_as(actual, usual, truth, factor=2, cap=caps[0])
    for name, truth in exact_gradients.items():
        if truth is None:
            assert our_gradients[name] is None or not our_gradients[name].any(), name
        else:
            assert_as_exact_as(our_gradients[name], plain_gradients[name], truth, factor=3, cap=caps[1])


@pytest.mark.parametrize(
    "case, dtype",
    [*((case, torch.float32) for case in CASES), *((case, torch.float16) for case in CASES[::2])],
    ids=str,
)
def test_kernels_are_as_exact_as_pytorch(case, dtype, device, triton_backend):
    check_against_fp64(case.arguments(dtype, device), CAPS[dtype])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["h alone", "c alone"])
def test_gradients_of_one_output_alone(reached, options, device, triton_backend):
    arguments = Case(n=19, n_in=3, options=options).arguments(torch.float32, device)
    check_against_fp64(arguments, CAPS[torch.float32], reached)


@pytest.mark.parametrize("wanted", ["x", "h", "c", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_each_gradient_alone(wanted, device, triton_backend):
    arguments = Case(options="everything").arguments(torch.float32, device)
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            x.requires_grad_(name == wanted)
    check_against_fp64(arguments, CAPS[torch.float32])


@pytest.mark.parametrize("config", module.FORWARD_CONFIGS[4], ids=str)
def test_every_configuration_forward(config, device, triton_backend):
    with launch.use_config("lstm_cell_fwd", config):
        check_against_fp64(Case(batch=5, options="everything").arguments(torch.float32, device), CAPS[torch.float32])


@pytest.mark.parametrize("config", module.FORWARD_CONFIGS[2], ids=str)
def test_every_configuration_forward_in_float16(config, device, triton_backend):
    with launch.use_config("lstm_cell_fwd", config):
        check_against_fp64(Case(batch=5, options="everything").arguments(torch.float16, device), CAPS[torch.float16])


@pytest.mark.parametrize("config", module.BACKWARD_CONFIGS, ids=str)
def test_every_configuration_backward(config, device, triton_backend):
    with launch.use_config("lstm_cell_bwd", config):
        arguments = Case(n_in=3, n=260, batch=2, options="everything").arguments(torch.float32, device)
        for name in ("x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            arguments[name].requires_grad_(name.startswith("bias"))  # the products have nothing to do with it
        check_against_fp64(arguments, CAPS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_configuration_suits_the_batch(dtype):
    *tiles, of_one = module.FORWARD_CONFIGS[dtype.itemsize]

    def programs(config, items):
        return math.ceil(1024 / config["BU"]) * math.ceil(items / config["BB"])

    for items in (2, 16, 64, 128, 1024):
        picked = module._largest_that_fills(dtype, items, 1024, 768)
        assert programs(picked, items) >= 128
        assert all(programs(config, items) < 128 for config in tiles[: tiles.index(picked)])
    assert module._largest_that_fills(dtype, 2, 7, 5) == tiles[-1]
    assert module._largest_that_fills(dtype, 1, 1024, 768) == of_one
    assert of_one["BB"] == 1


def test_masks_are_the_references(device, triton_backend):
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
    check_that_the_seed_is_pytorchs(device)


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
    monkeypatch.setattr(module._LSTMCell, "apply", None)
    with torch.no_grad():
        h, c = lstm_cell(**arguments)
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
def test_nothing_of_something(sizes, device, poison):
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
    for actual, expected in zip((h, c), lstm_cell(**halves), strict=True):
        assert torch.equal(actual, expected)


def test_backward_inside_autocast_of_a_forward_outside(device, triton_backend):
    arguments = Case().arguments(torch.float32, device)
    h, c = lstm_cell(**arguments)
    outside = torch.autograd.grad(h.sum() + c.sum(), list(arguments.values()), retain_graph=True)
    with torch.autocast(device, torch.bfloat16):
        inside = torch.autograd.grad(h.sum() + c.sum(), list(arguments.values()))
    for actual, expected in zip(inside, outside, strict=True):
        assert torch.equal(actual, expected)


def test_autocast_of_the_reference_is_that_of_torch():
    inputs, _ = arguments_of({})
    with torch.autocast("cpu", torch.bfloat16):
        actual = lstm_cell(*inputs)
        x, h, c, *weights = inputs
        expected = torch.lstm_cell(x, (h, c), *weights)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_what_the_kernels_do_not_serve_falls_back_or_is_refused(device):
    arguments = Case().arguments(torch.float64, device)
    with backend.use_backend("triton"), pytest.raises(FastglowError, match="lstm_cell: .* float64 is not among"):
        lstm_cell(**arguments)
    assert lstm_cell(**arguments)[0].dtype == torch.float64
    arguments["h"] = arguments["h"].float()
    with backend.use_backend("triton"), pytest.raises(FastglowError, match="the dtypes float32, float64"):
        lstm_cell(**arguments)


# The decoder's two LSTMs, an encoder's, and what fits no tile.
FULL_SIZE = [
    Case(batch=1, n_in=768, n=1024),
    Case(batch=16, n_in=1536, n=1024),
    Case(batch=128, n_in=1536, n=1024),
    Case(batch=128, n_in=768, n=1024, options="everything"),
    Case(batch=64, n_in=512, n=256, bias=False),
    Case(batch=37, n_in=769, n=1023, options="everything, not training"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CAPS, ids=str)
@pytest.mark.parametrize("case", FULL_SIZE, ids=str)
def test_published_sizes(case, dtype, triton_backend):
    check_against_fp64(case.arguments(dtype, "cuda"), CAPS[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("case", FULL_SIZE[:3], ids=str)
def test_published_sizes_in_tf32(case, triton_backend, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    check_against_fp64(case.arguments(torch.float32, "cuda"), CAPS_TF32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_as_exact_as_pytorch_in_bfloat16(case, triton_backend):
    check_against_fp64(case.arguments(torch.bfloat16, "cuda"), CAPS[torch.bfloat16])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_configuration_at_a_published_size(dtype, triton_backend):
    for config in module.FORWARD_CONFIGS[dtype.itemsize]:
        with launch.use_config("lstm_cell_fwd", config):
            check_against_fp64(Case(batch=37, n_in=768, n=1024).arguments(dtype, "cuda"), CAPS[dtype])


@pytest.mark.gpu
def test_same_bits_every_time(triton_backend):
    arguments = Case(batch=128, n_in=768, n=1024, options="everything").arguments(torch.float16, "cuda")
    upstream = [torch.randn(128, 1024, device="cuda") for _ in range(2)]
    first, *others = (differentiate(lstm_cell, arguments, upstream) for _ in range(3))
    for outputs, gradients in others:
        assert all(torch.equal(x, y) for x, y in zip(outputs, first[0], strict=True))
        assert all(torch.equal(gradients[name], first[1][name]) for name in gradients)


@pytest.mark.gpu
def test_in_a_graph_with_a_seed_that_changes(triton_backend):
    arguments = Case(batch=16, n_in=768, n=1024).arguments(torch.float16, "cuda")
    options = {"p_dropout_h": 0.1, "p_dropout_c": 0.1, "p_zoneout_h": 0.1, "p_zoneout_c": 0.1}
    upstream = [torch.randn(16, 1024, device="cuda") for _ in range(2)]
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step(seed):
        return differentiate(lstm_cell, arguments | options | {"seed": seed}, upstream)

    graph, (outputs, gradients) = recorded(lambda: step(seed))
    for value in (5, 6):
        seed.fill_(value)
        graph.replay()
        expected_outputs, expected_gradients = step(value)
        assert all(torch.equal(x, y) for x, y in zip(outputs, expected_outputs, strict=True))
        assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


@pytest.mark.gpu
def test_autocast_casts_a_parameter_once(triton_backend):
    arguments = Case(batch=2, n_in=32, n=64).arguments(torch.float32, "cuda")
    weight = arguments["weight_ih"]
    for _ in range(2):
        with torch.autocast("cuda", torch.float16):
            first, second = (module._autocast(weight, torch.float16) for _ in range(2))
            assert first.data_ptr() == second.data_ptr()
            assert torch.equal(first, weight.half())
            h, _ = lstm_cell(**arguments)
            h, _ = lstm_cell(arguments["x"], h, **{k: v for k, v in arguments.items() if k not in "xh"})
        assert torch.autograd.grad(h.float().sum(), weight)[0].dtype == torch.float32
        with torch.no_grad():
            weight.mul_(2)
