"""A stack of WaveNet layers on a CPU: channels-last, each convolution and its sum one product of oneDNN's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .processor import packs

PACKED_FOR_ROWS = 1024


@dataclass(frozen=True)
class PackedLayer:
    """One layer's weights, in oneDNN's blocks where the layout is opaque.

    With tanh(x) = 2 sigmoid(2x) - 1 one sigmoid serves both halves, three to six times as fast as tanh: the filter's
    rows are doubled. What reads the gated activation is negated, because g - 2 f g is one operation.
    """

    conditioning: Tensor  # [2C, D], opaque
    bias: Tensor  # [2C], of the convolution and the conditioning
    convolution: Tensor  # [2C, C, 1, k], opaque
    padding: int
    dilation: int
    residual: Tensor | None  # [C, C], opaque, negated; the last layer has none
    residual_bias: Tensor | None  # [C]
    skip: Tensor  # [C, S], negated


@dataclass(frozen=True)
class PackedWaveNet:
    """
    Attributes:
        start, start_bias: [n_in, C] and [C], float32.
        skip_bias: the sum of skips without the layers, [S] float32.
    """

    start: Tensor
    start_bias: Tensor
    layers: tuple[PackedLayer, ...]
    skip_bias: Tensor
    dtype: torch.dtype


def supports(dtype: torch.dtype) -> bool:
    """Whether `pack_wavenet` takes this dtype here."""
    return packs(dtype)


@torch.no_grad()
def pack_wavenet(
    start: tuple[Tensor, Tensor],
    in_layers: Sequence[tuple[Tensor, Tensor]],
    cond_layers: Sequence[tuple[Tensor, Tensor]],
    res_skip_layers: Sequence[tuple[Tensor, Tensor]],
    skip_bias: Tensor,
    dtype: torch.dtype,
) -> PackedWaveNet:
    """The weights that `run_wavenet` reads; keep them until a parameter changes.

    Args:
        start: weight [C, n_in, 1] and bias [C].
        in_layers, cond_layers, res_skip_layers: weight and bias of each layer, as for `kernels.wavenet_layer`.
        skip_bias: [S], where the sum of skips begins.
        dtype: of the computation, float32 or bfloat16.
    """
    layers = []
    for i, ((in_weight, in_bias), (cond_weight, cond_bias), (weight, bias)) in enumerate(
        zip(in_layers, cond_layers, res_skip_layers, strict=True)
    ):
        rows, C, taps = in_weight.shape
        scale = in_bias.new_ones(rows)
        scale[:C] = 2
        dilation, n_residual = 2**i, len(weight) - len(skip_bias)
        padding = dilation * (taps // 2)
        convolution = (in_weight.float() * scale.view(-1, 1, 1)).to(dtype).unsqueeze(2)
        layers.append(
            PackedLayer(
                conditioning=_packed(cond_weight[:, :, 0].float() * scale.unsqueeze(1), dtype),
                bias=((in_bias.float() + cond_bias.float()) * scale).to(dtype),
                convolution=torch.ops.mkldnn._reorder_convolution_weight(
                    convolution, [0, padding], [1, 1], [1, dilation], 1, [1, C, 1, PACKED_FOR_ROWS]
                ),
                padding=padding,
                dilation=dilation,
                residual=_packed(-weight[:n_residual, :, 0], dtype) if n_residual else None,
                residual_bias=bias[:n_residual].to(dtype) if n_residual else None,
                skip=-weight[n_residual:, :, 0].to(dtype).t(),
            )
        )
    weight, bias = start
    return PackedWaveNet(weight[:, :, 0].float().t(), bias.float(), tuple(layers), skip_bias.float(), dtype)


def _packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), PACKED_FOR_ROWS)


def run_wavenet(audio: Tensor, conditioning: Tensor, weights: PackedWaveNet) -> Tensor:
    """`start`, the layers, and the sum of skips of one item.

    Args:
        audio: [T, n_in].
        conditioning: [T, D].
        weights: packed ones.

    Returns:
        [T, S] float32.
    """
    onednn = torch.ops.mkldnn
    conditioning = conditioning.to(weights.dtype).contiguous()
    h = torch.addmm(weights.start_bias, audio.float(), weights.start).to(weights.dtype)
    skip = weights.skip_bias.expand(len(audio), -1).clone()
    acts = torch.empty_like(h)
    for layer in weights.layers:
        x = onednn._linear_pointwise(conditioning, layer.conditioning, layer.bias, "none", [], "")
        onednn._convolution_pointwise_.binary(
            _as_image(x), _as_image(h), layer.convolution, None,
            [0, layer.padding], [1, 1], [1, layer.dilation], 1, "add", 1.0, None, [], None,
        )  # fmt: skip
        filtered, gate = x.sigmoid_().chunk(2, dim=1)
        torch.addcmul(gate, filtered, gate, value=-2, out=acts)
        if layer.residual is not None:
            h = onednn._linear_pointwise.binary(acts, h, layer.residual, layer.residual_bias, "add")
        skip += acts @ layer.skip
    return skip


def _as_image(x: Tensor) -> Tensor:
    """[T, C] -> the same memory as a channels-last image, [1, C, 1, T]: PyTorch has no such layout for signals."""
    return x.view(1, 1, *x.shape).permute(0, 3, 1, 2)
