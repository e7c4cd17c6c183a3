"""The gated activation unit of WaveNet: one pass over memory forward, one backward.

The backward pass recomputes the gate and the dropout mask. Maths, layout and cost: kernels/README.md.
"""

from torch import Tensor

from fastglow.errors import FastglowError

from ..arguments import (
    check_choice,
    check_floats,
    check_probability,
    check_seed,
    check_shape,
    operator_seed,
)
from ..backend import picks_triton
from ..reference import gated_activation as reference
from ..reference.philox import random_seed
from .kernels import OP, gated_activation_operator


def _check(a: Tensor, b: Tensor | None, bias: Tensor | None, channels_last: bool, dropout: str | None) -> None:
    check_shape("a", a, ("B", "T", "2C") if channels_last else ("B", "2C", "T"))
    channel, time = (2, 1) if channels_last else (1, 2)
    if (channels := a.shape[channel]) % 2:
        raise FastglowError(f"a has {channels} channels, must be an even number")
    if b is not None:
        fits = b.dim() == 3 and all(b.shape[dim] in (1, a.shape[dim]) for dim in (0, time))
        if not fits or b.shape[channel] != channels:
            raise FastglowError(f"b has shape {list(b.shape)}, must be {list(a.shape)}, or 1 for B or T")
    check_shape("bias", bias, (channels,))
    check_floats(a=a, b=b, bias=bias)
    check_choice("dropout", dropout, (None, "before", "after"))


def gated_activation(
    a: Tensor,
    b: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_last: bool = False,
    gate_first: bool = False,
    dropout: str | None = None,
    p_dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """tanh of one half of the channels of `a + bias + b`, times the sigmoid of the other half.

    van den Oord et al. 2016, "WaveNet", section 2.3. Any strides; the result has the memory order of `a`.

    Args:
        a: [B, 2C, T].
        b: [B, 2C, T], or absent; its B and T may be 1, to broadcast.
        bias: [2C], or absent.
        channels_last: a, b and the result have their last two dimensions swapped, [B, T, 2C].
        gate_first: the first half is under the sigmoid, as in DiffWave and DiffSinger. Default: the first half is
            under the tanh, as in WaveGlow, Glow-TTS, VITS, FreeVC and coqui.
        dropout: None; 'before': of `a + bias`, before b is added, as in Glow-TTS and coqui; 'after': of the
            product, as in VITS and FreeVC.
        p_dropout: probability of dropping an element, in [0, 1); the others are divided by 1 - p_dropout.
        seed: of the dropout mask: an integer, or a 0-d int64 tensor on the device of `a`, which must not change
            until the backward pass is done; None: drawn from PyTorch's generator. One seed gives one mask, in
            both layouts and on every device.

    Returns:
        [B, C, T], or [B, T, C] if channels_last; in the dtype that the inputs promote to.

    Raises:
        FastglowError: a shape, `dropout`, `p_dropout` or `seed` is not as above, or a dtype is not floating-point.
    """
    _check(a, b, bias, channels_last, dropout)
    check_probability("p_dropout", p_dropout)
    check_seed(seed, a.device)
    if dropout is None or p_dropout == 0:
        dropout, p_dropout, seed = None, 0.0, 0
    elif seed is None:
        seed = random_seed(a.device)
    if not picks_triton(OP, a, b, bias, seed if isinstance(seed, Tensor) else None):
        return reference.gated_activation(
            a, b, bias, channels_last=channels_last,
            gate_first=gate_first, dropout=dropout, p_dropout=p_dropout, seed=seed,
        )  # fmt: skip
    if channels_last:
        a, b = a.transpose(1, 2), None if b is None else b.transpose(1, 2)
    y = gated_activation_operator(a, b, bias, *operator_seed(seed), gate_first, dropout, p_dropout)
    return y.transpose(1, 2) if channels_last else y
