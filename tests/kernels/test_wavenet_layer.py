"""One WaveNet layer: the reference against a loop in NumPy, the kernels against the reference in float64."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow.kernels import backend, launch, wavenet_layer
from fastglow.kernels.wavenet_layer import backward, forward

from . import checks

BATCH, CHANNELS, CONDITIONING, TIME = 2, 3, 5, 7
LENGTHS = torch.tensor([7, 4])
MASK = (torch.arange(TIME) < LENGTHS.unsqueeze(1)).unsqueeze(1).double()  # [B, 1, T]


@pytest.fixture(params=[True, False], ids=["last", "not last"])
def last(request):
    return request.param


@pytest.fixture(params=[(1, 1), (3, 1), (3, 2), (5, 3), (3, 8)], ids=lambda p: f"kernel {p[0]} dilation {p[1]}")
def layer(request, leaf, last):
    """(conditioning and parameters, dilation); dilation 8 reaches past both ends from everywhere."""
    kernel_size, dilation = request.param
    n_res_skip = CHANNELS if last else 2 * CHANNELS
    return (
        leaf(BATCH, CONDITIONING, TIME),
        leaf(2 * CHANNELS, CHANNELS, kernel_size),
        leaf(2 * CHANNELS),
        leaf(2 * CHANNELS, CONDITIONING, 1),
        leaf(2 * CHANNELS),
        leaf(n_res_skip, CHANNELS, 1),
        leaf(n_res_skip),
    ), dilation


def position(h, t, conditioning, in_weight, in_bias, cond_weight, cond_bias, rs_weight, rs_bias, dilation):
    """The 1x1 convolutions' output at position `t` of one item, [n_res_skip]."""
    kernel_size = in_weight.shape[2]
    activation = in_bias + cond_weight[:, :, 0] @ conditioning[:, t] + cond_bias
    for tap in range(kernel_size):
        source = t + (tap - kernel_size // 2) * dilation
        if 0 <= source < h.shape[1]:
            activation = activation + in_weight[:, :, tap] @ h[:, source]
    n = len(h)
    gated = np.tanh(activation[:n]) / (1 + np.exp(-activation[n:]))
    return rs_weight[:, :, 0] @ gated + rs_bias


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_against_a_loop(leaf, layer, last, mask):
    arguments, dilation = layer
    h = leaf(BATCH, CHANNELS, TIME)
    h_next, skip = wavenet_layer(h, *arguments, dilation, mask)
    assert skip.shape == h.shape
    signal, conditioning, *parameters = (x.detach().numpy() for x in (h, *arguments))
    for item in range(BATCH):
        for t in range(TIME):
            res_skip = position(signal[item], t, conditioning[item], *parameters, dilation)
            np.testing.assert_allclose(skip[item, :, t].detach(), res_skip[-CHANNELS:], atol=1e-13)
            if not last:
                expected = res_skip[:CHANNELS] + signal[item, :, t]
                if mask is not None:
                    expected = expected * mask[item, 0, t].item()
                np.testing.assert_allclose(h_next[item, :, t].detach(), expected, atol=1e-13)
    assert (h_next is None) == last


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_gradients(leaf, layer, mask):
    arguments, dilation = layer

    def function(*inputs):
        return tuple(x for x in wavenet_layer(*inputs, dilation, mask) if x is not None)

    assert gradcheck(function, (leaf(BATCH, CHANNELS, TIME), *arguments), fast_mode=True)


def test_masked_results_in_a_batch_equal_those_alone(leaf, layer, last):
    (conditioning, *parameters), dilation = layer
    h = leaf(BATCH, CHANNELS, TIME).detach() * MASK
    h_next, skip = wavenet_layer(h, conditioning, *parameters, dilation, MASK)
    for item, length in enumerate(LENGTHS.tolist()):
        alone = (x[item : item + 1, :, :length] for x in (h, conditioning))
        expected_h, expected_skip = wavenet_layer(*alone, *parameters, dilation)
        torch.testing.assert_close(skip[item : item + 1, :, :length], expected_skip, atol=1e-13, rtol=0)
        if not last:
            torch.testing.assert_close(h_next[item : item + 1, :, :length], expected_h, atol=1e-13, rtol=0)
            assert not h_next[item, :, length:].any()


# From here on: the Triton kernels. Small tiles and channels beyond them cross every block boundary.


@dataclass(frozen=True)
class Case:
    """One call: sizes, and which optional arguments are present."""

    channels: int = 40
    time: int = 37
    kernel_size: int = 3
    dilation: int = 2
    conditioning: str = "projected"  # or "full", "over time", "over items and time", "none"
    n_skip: int = 40
    last: bool = False
    biases: bool = True
    mask: bool = False
    lengths: bool = False
    skip: bool = False
    strided: bool = False
    batch: int = 2
    n_conditioning: int = 21

    __str__ = checks.changed_fields

    def arguments(self, dtype: torch.dtype, device: str) -> dict:
        """Tensors rounded to `dtype` whose sums stay of order 1."""

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            x = torch.randn(*shape, device=device) * scale
            if self.strided:
                x = torch.stack((x, x), dim=-1)[..., 0]
            return x.to(dtype).requires_grad_()

        B, C, T, D, k, S = (
            self.batch, self.channels, self.time, self.n_conditioning, self.kernel_size, self.n_skip
        )  # fmt: skip
        shapes = {"full": (B, 2 * C, T), "over time": (B, 2 * C, 1), "over items and time": (1, 2 * C, 1)}
        projected = self.conditioning == "projected"
        rows = S if self.last else C + S
        return {
            "h": draw(B, C, T),
            "conditioning": draw(B, D, T)
            if projected
            else draw(*shapes[self.conditioning])
            if self.conditioning in shapes
            else None,
            "in_weight": draw(2 * C, C, k, scale=(C * k) ** -0.5),
            "in_bias": draw(2 * C) if self.biases else None,
            "cond_weight": draw(2 * C, D, 1, scale=D**-0.5) if projected else None,
            "cond_bias": draw(2 * C) if projected and self.biases else None,
            "res_skip_weight": draw(rows, C, 1, scale=C**-0.5),
            "res_skip_bias": draw(rows) if self.biases else None,
            "dilation": self.dilation,
            "mask": (torch.arange(T, device=device) < torch.tensor([[T], [T // 2]], device=device))
            .unsqueeze(1)
            .to(dtype)
            if self.mask
            else None,
            "lengths": torch.tensor([T // 2, T], device=device) if self.lengths else None,
            "skip": draw(B, S, T) if self.skip else None,
        }


CASES = [
    Case(),
    Case(channels=16, n_skip=16, time=1),
    Case(channels=32, n_skip=32, time=65, batch=1),
    Case(channels=64, n_skip=64, time=7, dilation=8, batch=1),
    Case(channels=5, n_skip=3, time=9),
    Case(kernel_size=1, dilation=1, conditioning="none"),
    Case(kernel_size=5, dilation=3, conditioning="full"),
    Case(conditioning="over time", mask=True, batch=2, time=9),
    Case(conditioning="over items and time", mask=True, strided=True, time=9),
    Case(last=True, skip=True),
    Case(n_skip=8, skip=True),
    Case(n_skip=8, last=True, skip=True, lengths=True),
    Case(biases=False, skip=True, time=9),
    Case(lengths=True, mask=True, skip=True, dilation=8, strided=True),
]


CAPS = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 8e-3), torch.bfloat16: (3e-2, 6e-2)}


def check_against_fp64(arguments: dict, caps=CAPS, reached=None) -> None:
    checks.check_against_fp64(wavenet_layer, wavenet_layer, arguments, caps, reached=reached)


@pytest.fixture
def two_kernels() -> Iterator[None]:
    """The forward pass never fuses its two GEMMs."""
    with launch.use_config("wavenet_layer_form", forward.TWO_KERNELS):
        yield


@pytest.mark.parametrize("fused", [True, False], ids=["one kernel", "two kernels"])
@pytest.mark.parametrize(
    "case, dtype",
    [*((case, torch.float32) for case in CASES), *((case, torch.float16) for case in CASES[::3])],
    ids=str,
)
def test_kernels_are_as_exact_as_pytorch(case, dtype, fused, device, triton_backend, request):
    if not fused:
        request.getfixturevalue("two_kernels")
    check_against_fp64(case.arguments(dtype, device))


@pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["h alone", "skip alone"])
@pytest.mark.parametrize("skip", [True, False])
def test_gradients_of_one_output_alone(reached, skip, device, triton_backend):
    check_against_fp64(Case(skip=skip).arguments(torch.float32, device), reached=reached)


@pytest.mark.parametrize("wanted", ["h", "conditioning", "in_weight", "in_bias", "cond_weight", "res_skip_weight"])
def test_each_gradient_alone(wanted, device, triton_backend):
    arguments = Case().arguments(torch.float32, device)
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            x.requires_grad_(name == wanted)
    check_against_fp64(arguments)


@pytest.mark.parametrize(
    "config",
    [config for (width, _), configs in forward.FUSED_CONFIGS.items() if width == 4 for config in configs],
    ids=str,
)
def test_every_configuration_of_the_fused_kernel(config, device, triton_backend):
    with torch.no_grad(), launch.use_config("wavenet_layer_fwd", config):
        check_outputs(Case().arguments(torch.float32, device))


@pytest.mark.parametrize(
    "kernel, config",
    [
        *(("wavenet_gate_fwd", config) for config in forward.GATE_CONFIGS[4]),
        *(("wavenet_res_skip_fwd", config) for config in forward.RES_SKIP_CONFIGS[4]),
    ],
    ids=str,
)
def test_every_configuration_of_the_two_kernels(kernel, config, device, triton_backend, two_kernels):
    with torch.no_grad(), launch.use_config(kernel, config):
        check_outputs(Case().arguments(torch.float32, device))


@pytest.mark.parametrize(
    "kernel, config",
    [
        *(("wavenet_gate_bwd", config) for config in backward.GATE_BACKWARD_CONFIGS[4]),
        *(("wavenet_input_bwd", config) for config in backward.INPUT_BACKWARD_CONFIGS[4]),
    ],
    ids=str,
)
def test_every_configuration_of_the_backward_kernels(kernel, config, device, triton_backend):
    with launch.use_config(kernel, config):
        check_against_fp64(Case().arguments(torch.float32, device))


WIDE = {"num_warps": 8, "num_stages": 3, "BT": 16, "BK": 64}
"""With 128 or 256 columns; the gate's backward kernel takes its 128 in two halves."""


@pytest.mark.parametrize("n_skip, dtype", [(136, torch.float16), (8, torch.float32)], ids=str)
def test_wide_tiles(n_skip, dtype, device, triton_backend, two_kernels):
    """Columns end inside a half; few skip rows have narrow tiles of their own."""
    case = Case(channels=136, n_skip=n_skip, n_conditioning=8, time=20, mask=True, lengths=True, skip=True)
    columns = {"gate_fwd": 128, "res_skip_fwd": 256, "gate_bwd": 128, "input_bwd": 256}
    with ExitStack() as forced:
        for kernel, BN in columns.items():
            forced.enter_context(launch.use_config(f"wavenet_{kernel}", WIDE | {"BN": BN}))
        check_against_fp64(case.arguments(dtype, device))


def check_outputs(arguments: dict) -> None:
    with backend.use_backend("reference"):
        expected = wavenet_layer(**checks.cast(arguments, torch.float64))
    for actual, truth in zip(wavenet_layer(**arguments), expected, strict=True):
        torch.testing.assert_close(actual.double(), truth, atol=1e-5, rtol=1e-5)


def test_positions_beyond_a_length_are_not_read(device, triton_backend):
    arguments = Case(lengths=True, skip=True).arguments(torch.float32, device)
    upstream = [torch.ones_like(arguments["h"])] * 2
    clean = checks.differentiate(wavenet_layer, arguments, upstream)
    for name in ("h", "conditioning", "skip"):
        with torch.no_grad():
            arguments[name][0, :, 18:] = float("nan")
    checks.assert_same_bits(checks.differentiate(wavenet_layer, arguments, upstream), clean)


def test_a_layer_reads_the_results_of_another_in_place(device, triton_backend):
    arguments = Case().arguments(torch.float32, device)
    for x in wavenet_layer(**arguments):
        assert x.transpose(1, 2).is_contiguous()
        next_h, _ = wavenet_layer(**arguments | {"h": x})
        layer = next_h.grad_fn.next_functions[0][0]
        assert x.data_ptr() in [saved.data_ptr() for saved in layer.saved_tensors if saved is not None]


def mirrored_backward(arguments: dict, dnext: torch.Tensor, dskip: torch.Tensor) -> dict:
    """The kernels' backward pass step by step in PyTorch, channels-last."""
    h, conditioning = (arguments[name].detach().transpose(1, 2) for name in ("h", "conditioning"))
    w_in, w_cond, w_out = (arguments[name].detach() for name in ("in_weight", "cond_weight", "res_skip_weight"))
    dilation, (_, T, C), taps = arguments["dilation"], h.shape, w_in.shape[2]

    def shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
        """Row t is row t + shift of x, or zero."""
        rows = torch.arange(T) + shift
        inside = (rows >= 0) & (rows < T)
        return x[:, rows.clamp(0, T - 1)] * inside.view(1, -1, 1)

    shifts = [(tap - taps // 2) * dilation for tap in range(taps)]
    u = conditioning @ w_cond[:, :, 0].T + arguments["in_bias"] + arguments["cond_bias"]
    for tap, shift in enumerate(shifts):
        u = u + shifted(h, shift) @ w_in[:, :, tap].T
    tanh, sigmoid = torch.tanh(u[..., :C]), torch.sigmoid(u[..., C:])

    d_out = torch.cat((dnext, dskip), dim=1).transpose(1, 2)  # [B, T, C + S]
    da = d_out @ w_out[:, :, 0]
    du = torch.cat((da * sigmoid * (1 - tanh**2), da * tanh * sigmoid * (1 - sigmoid)), dim=2)
    dh = d_out[..., :C] + sum(shifted(du, -shift) @ w_in[:, :, tap] for tap, shift in enumerate(shifts))
    d_in = torch.stack([torch.einsum("bto,bti->oi", du, shifted(h, shift)) for shift in shifts], dim=2)
    return {
        "h": dh.transpose(1, 2),
        "conditioning": (du @ w_cond[:, :, 0]).transpose(1, 2),
        "in_weight": d_in,
        "in_bias": du.sum((0, 1)),
        "cond_weight": torch.einsum("bto,bti->oi", du, conditioning).unsqueeze(2),
        "cond_bias": du.sum((0, 1)),
        "res_skip_weight": torch.einsum("bto,bti->oi", d_out, tanh * sigmoid).unsqueeze(2),
        "res_skip_bias": d_out.sum((0, 1)),
    }


@pytest.mark.parametrize("case", [Case(), Case(kernel_size=5, dilation=3, time=11)], ids=str)
def test_hand_written_backward_matches_autograd_and_the_kernels(case, device, triton_backend):
    arguments = case.arguments(torch.float32, device)
    exact = checks.cast({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}, torch.float64)
    upstream = [torch.randn(exact["h"].shape, dtype=torch.float64) for _ in range(2)]
    by_hand = mirrored_backward(exact, *upstream)
    with backend.use_backend("reference"):
        _, by_autograd = checks.differentiate(wavenet_layer, exact, upstream)
    _, by_kernels = checks.differentiate(wavenet_layer, arguments, [d.float().to(device) for d in upstream])
    assert by_hand.keys() == by_autograd.keys() == by_kernels.keys()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(gradient, by_autograd[name], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient, by_kernels[name].double().cpu(), atol=2e-5, rtol=2e-5)


@pytest.mark.gpu
@checks.EVERY_DTYPE
@pytest.mark.parametrize("channels", [64, 192, 256, 512])
@pytest.mark.parametrize("dilation", [1, 128])
def test_published_shapes(channels, dilation, dtype, triton_backend):
    case = Case(channels=channels, n_skip=channels, time=1003, dilation=dilation, n_conditioning=640, lengths=True)
    # On a GPU PyTorch's convolutions, and so the kernels, take TF32 unless torch.backends.cudnn.allow_tf32 is off.
    check_against_fp64(case.arguments(dtype, "cuda"), CAPS | {torch.float32: (4e-3, 8e-3)})
