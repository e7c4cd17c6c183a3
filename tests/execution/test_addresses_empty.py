"""No items, no positions, items of length 0, and one of each: on the kernels as on the references."""

from dataclasses import replace

import pytest
import torch

from fastglow import Tacotron2, WaveGlow
from fastglow.kernels import backend
from tests.kernels.checks import assert_refused
from tests.kernels.exercise import SIZES

from .address_calls import CALLS, Call, results

SIGNALS = ("a", "b", "x", "y", "z", "h", "c", "b_log_s", "kept", "changed", "entering", "conditioning", "mask", "skip")
OVER_ITEMS = (*SIGNALS, "query", "memory", "processed", "cat")
RESIZED = {
    # name of the call: dimension of the items and of the positions, by the tensor's name
    "gated_activation, channels last": ({"a": 0, "b": 0}, {"a": 1, "b": 1}),
    "prenet": ({"x": 0}, {"x": 1}),
    "prenet with noise": ({"x": 0, "noise": 1}, {"x": 1, "noise": 2}),
    "location_attention": (
        {n: 0 for n in ("query", "memory", "processed", "cat")},
        {"memory": 1, "processed": 1, "cat": 2},
    ),
    "teacher_forced_loop": ({"inputs": 1, "memory": 0, "processed": 0}, {"memory": 1, "processed": 1}),
    "decode_loop": ({"memory": 0, "processed": 0}, {"memory": 1, "processed": 1}),
    "lstm_cell": ({n: 0 for n in "xhc"}, {}),
    "lstm_cell of one item": ({n: 0 for n in "xhc"}, {}),
}
FIXED = {"weight_norm", "weight_norm_packed", "invertible_conv1x1_factors"}  # no items, no positions


def resized(call: Call, dims: dict[str, int], n: int, **integers: tuple[int, ...]) -> Call:
    shapes = {
        name: tuple(n if dims.get(name) == dim else size for dim, size in enumerate(shape))
        for name, shape in call.shapes.items()
    }
    return replace(call, name=f"{call.name}, {n}", shapes=shapes, integers={**call.integers, **integers})


def small_calls():
    for call in CALLS:
        if call.name in FIXED:
            continue
        signals = {name for name in call.shapes if name in SIGNALS}
        items, positions = RESIZED.get(call.name, (dict.fromkeys(signals, 0), dict.fromkeys(signals, 2)))
        for n in (0, 1):
            few = {name: values[:n] for name, values in call.integers.items()}
            yield pytest.param(resized(call, items, n, **few), id=f"{call.name}, {n} items")
            if positions and (n or call.name != "decode_loop"):
                short = {k: tuple(min(v, n) for v in values) for k, values in call.integers.items() if k == "lengths"}
                yield pytest.param(resized(call, positions, n, **short), id=f"{call.name}, {n} positions")
        if "lengths" in call.integers:
            yield pytest.param(
                replace(call, integers={**call.integers, "lengths": (0, 0, 0)}), id=f"{call.name}, lengths 0"
            )
        if call.name == "teacher_forced_loop":
            for n in (0, 1):
                yield pytest.param(resized(call, {"inputs": 0}, n), id=f"{call.name}, {n} frames")


@pytest.mark.parametrize("call", list(small_calls()))
def test_kernels_as_references(call):
    tensors = call.tensors(torch.float32)
    found = []
    for implementation in ("triton", "reference"):
        with backend.use_backend(implementation):
            found.append(results(call, tensors))
    actual, expected = found
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


ONE_UNIT = {
    "gated_activation": {"a": (1, 2, 1), "b": (1, 2, 1), "bias": (2,)},
    "affine_coupling": {"x": (1, 1, 1), "b_log_s": (1, 2, 1)},
    "affine_coupling_inverse": {"y": (1, 1, 1), "b_log_s": (1, 2, 1)},
    "flow_step_inverse": {
        "kept": (1, 1, 1), "changed": (1, 1, 1), "b_log_s": (1, 2, 1), "inverse": (2, 2), "entering": (1, 1, 1),
    },
    "weight_norm": {"v": (1, 1, 1), "g": (1, 1, 1)},
    "invertible_conv1x1": {"z": (1, 1, 1), "w": (1, 1, 1)},
    "invertible_conv1x1_inverse": {"z": (1, 1, 1), "w": (1, 1, 1)},
    "lstm_cell of one item": {
        "x": (1, 1), "h": (1, 1), "c": (1, 1), "weight_ih": (4, 1), "weight_hh": (4, 1),
    },
    "prenet with noise": {"x": (1, 1, 1), "w1": (1, 1), "w2": (1, 1), "noise": (2, 1, 1, 1)},
    "wavenet_layer, conditioning added": {
        "h": (1, 1, 1), "in_weight": (2, 1, 1), "in_bias": (2,), "res_skip_weight": (2, 1, 1), "res_skip_bias": (2,),
        "conditioning": (1, 2, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_UNIT)
def test_one_unit(name):
    call = replace(next(call for call in CALLS if call.name == name), shapes=ONE_UNIT[name])
    tensors = call.tensors(torch.float32)
    found = []
    for implementation in ("triton", "reference"):
        with backend.use_backend(implementation):
            found.append(results(call, tensors))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_tacotron2(implementation):
    model = Tacotron2(**SIZES, gate_threshold=1.0)
    text, mels = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 5, 1)
    one = torch.ones(1, dtype=torch.int64)
    with backend.use_backend(implementation):
        # One symbol and one frame; the batch normalisation of training needs two values.
        outputs = model.eval()((text, one, mels, 1, one))
        assert [list(x.shape) for x in outputs] == [[1, 5, 1], [1, 5, 1], [1, 1], [1, 1, 1]]
        assert all(x.isfinite().all() for x in outputs)
        assert_refused(r"input_lengths=\[\] must", model, (text[:0], one[:0], mels[:0], 1, one[:0]))
        assert_refused(r"input_lengths=\[0\] must", model, (text, 0 * one, mels, 1, one))
        assert_refused("must have at least 1 frame", model, (text, one, mels[:, :, :0], 1, 0 * one))
        with pytest.warns(UserWarning, match="did not fire"):
            mel, lengths, alignments = model.infer(text, one, seed=1)
        assert alignments.shape[2] == 1 and alignments.sum() == alignments.shape[1]
        assert_refused("must be .B, T_in. with B > 0", model.infer, text[:0], one[:0])


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_waveglow(implementation):
    wn = {"n_layers": 2, "n_channels": 4, "kernel_size": 3}
    model = WaveGlow(
        n_mel_channels=3, n_flows=2, n_group=4, n_early_every=4, n_early_size=2, WN_config=wn,
        upsample_kernel_size=16, upsample_stride=4,
    )  # fmt: skip
    mel = torch.zeros(1, 3, 1)
    with backend.use_backend(implementation):
        z, log_s, log_dets = model((mel, torch.zeros(1, 4)))  # one group
        assert z.shape == (1, 4, 1)
        sum(x.sum() for x in (z, *log_s, *log_dets)).backward()
        assert model.infer(mel, seed=1).shape == (1, 4)
        lengths = torch.tensor([1, 0])
        audio = model.infer(mel.expand(2, 3, 1), lengths=lengths, seed=1)
        assert not audio[1].any() and audio[0].any()
        assert_refused(r"audio has shape \[1, 3\], must", model, (mel, torch.zeros(1, 3)))
        assert_refused(r"audio has shape \[0, 4\], must", model, (mel[:0], torch.zeros(0, 4)))
        assert_refused("with B and T > 0", model.infer, mel[:0])


def test_a_planted_kernel_without_a_guard_for_no_positions_is_found(monkeypatch):
    """A grid of no programs leaves what was in memory: here the launcher writes its buffer without running."""
    call = resized(
        next(call for call in CALLS if call.name == "location_attention"), {"memory": 1, "processed": 1, "cat": 2}, 0
    )
    call = replace(call, integers={"lengths": (0, 0, 0)})
    monkeypatch.setattr(torch.Tensor, "zero_", lambda x: x.fill_(7.0))
    with backend.use_backend("triton"):
        found = results(call, call.tensors(torch.float32))
    monkeypatch.undo()
    with backend.use_backend("reference"):
        expected = results(call, call.tensors(torch.float32))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(found["output 0"], expected["output 0"])
