"""WaveGlow in plain PyTorch on the parameters of a `fastglow.WaveGlow`: nothing folded, fused or cached.

The baseline for torch.compile, and the independent result that every implementation is checked against.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow import WaveGlow
from fastglow.kernels.reference.affine_coupling import affine_coupling, affine_coupling_inverse
from fastglow.kernels.reference.invertible_conv1x1 import invertible_conv1x1
from fastglow.kernels.reference.wavenet_layer import wavenet_layer
from fastglow.kernels.reference.weight_norm import weight_norm


class Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor


class NormedConvolution(NamedTuple):
    """A convolution under weight norm."""

    v: Tensor
    g: Tensor
    bias: Tensor


class Layer(NamedTuple):
    dilated: Convolution
    conditioning: Convolution
    res_skip: Convolution


class NormedLayer(NamedTuple):
    dilated: NormedConvolution
    conditioning: NormedConvolution
    res_skip: NormedConvolution


class Flow(NamedTuple):
    """The parameters of one flow.

    Attributes:
        matrix: of the invertible convolution, [c, c, 1].
        start, layers, end: of the WN.
    """

    matrix: Tensor
    start: NormedConvolution
    layers: list[NormedLayer]
    end: Convolution


def run_layers(h: Tensor, spect: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The layers of one WN on h [B, C, T] and spect [B, D, T] -> the sum of their skips [B, C, T]."""
    skips = None
    for i, (dilated, conditioning, res_skip) in enumerate(layers):
        next_h, skip = wavenet_layer(h, spect, *dilated, *conditioning, *res_skip, dilation=2**i)
        skips = skip if skips is None else skips + skip
        h = h if next_h is None else next_h
    assert skips is not None
    return skips


def run_normed_layers(h: Tensor, spect: Tensor, layers: Sequence[NormedLayer]) -> Tensor:
    """`run_layers` under weight norm."""
    return run_layers(h, spect, [normalise_layer(layer) for layer in layers])


RunNormedLayers = Callable[[Tensor, Tensor, Sequence[NormedLayer]], Tensor]
RunLayers = Callable[[Tensor, Tensor, Sequence[Layer]], Tensor]


def forward(
    model: WaveGlow, mel: Tensor, audio: Tensor, run: RunNormedLayers = run_normed_layers
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`WaveGlow.forward`."""
    config = model.config
    spect = _spect(model, mel, audio.shape[1])
    z = _group(audio.unsqueeze(1), config.n_group)
    leaving, log_s_list, log_det_list = [], [], []
    for k, flow in enumerate(flows_of(model)):
        if config.is_early(k):
            leaving.append(z[:, : config.n_early_size])
            z = z[:, config.n_early_size :]
        z, log_det = invertible_conv1x1(z, flow.matrix)
        kept, changed = z.chunk(2, dim=1)
        h = F.conv1d(kept, *normalise(flow.start))
        changed, log_s = affine_coupling(changed, F.conv1d(run(h, spect, flow.layers), *flow.end))
        z = torch.cat((kept, changed), dim=1)
        log_s_list.append(log_s)
        log_det_list.append(z.shape[0] * z.shape[2] * log_det)
    return torch.cat([*leaving, z], dim=1), log_s_list, log_det_list


@dataclass(frozen=True)
class Speaker:
    """A WaveGlow with weight norm and W^-1 computed once for all sentences."""

    model: WaveGlow
    starts: list[Convolution]
    layers: list[list[Layer]]
    ends: list[Convolution]
    inverses: list[Tensor]

    @staticmethod
    @torch.no_grad()
    def of(model: WaveGlow) -> "Speaker":
        flows = list(flows_of(model))
        return Speaker(
            model,
            [normalise(flow.start) for flow in flows],
            [[normalise_layer(layer) for layer in flow.layers] for flow in flows],
            [flow.end for flow in flows],
            [torch.linalg.inv(w.squeeze(2).float()).unsqueeze(2).to(w.dtype) for w, *_ in flows],
        )

    @torch.no_grad()
    def infer(self, mel: Tensor, noise: Tensor, sigma: float, run: RunLayers = run_layers) -> Tensor:
        """`WaveGlow.infer`."""
        config = self.model.config
        spect = _spect(self.model, mel, mel.shape[2] * config.upsample_stride)
        n = config.n_remaining_channels
        z, entering = sigma * noise[:, :n], sigma * noise[:, n:]
        for k in reversed(range(config.n_flows)):
            kept, changed = z.chunk(2, dim=1)
            h = F.conv1d(kept, *self.starts[k])
            b_log_s = F.conv1d(run(h, spect, self.layers[k]), *self.ends[k])
            changed = affine_coupling_inverse(changed, b_log_s)
            z = F.conv1d(torch.cat((kept, changed), dim=1), self.inverses[k])
            if config.is_early(k):
                z = torch.cat((entering[:, : config.n_early_size], z), dim=1)
                entering = entering[:, config.n_early_size :]
        return z.transpose(1, 2).reshape(mel.shape[0], -1)


def flows_of(model: WaveGlow) -> Iterator[Flow]:
    """Every flow's parameters, by their published names."""
    parameters = dict(model.named_parameters())

    def normed(name: str) -> NormedConvolution:
        return NormedConvolution(*(parameters[f"{name}.{part}"] for part in ("weight_v", "weight_g", "bias")))

    for k in range(model.config.n_flows):
        layers = [
            NormedLayer(*(normed(f"WN.{k}.{kind}_layers.{i}") for kind in ("in", "cond", "res_skip")))
            for i in range(model.config.WN_config["n_layers"])
        ]
        end = Convolution(parameters[f"WN.{k}.end.weight"], parameters[f"WN.{k}.end.bias"])
        yield Flow(parameters[f"convinv.{k}.conv.weight"], normed(f"WN.{k}.start"), layers, end)


def normalise(convolution: NormedConvolution) -> Convolution:
    return Convolution(weight_norm(convolution.v, convolution.g), convolution.bias)


def normalise_layer(layer: NormedLayer) -> Layer:
    return Layer(*map(normalise, layer))


def _spect(model: WaveGlow, mel: Tensor, n_samples: int) -> Tensor:
    """The upsampled mel of complete groups of samples."""
    per_group = model.config.frames_per_group
    return _group(model.upsample(mel)[:, :, : n_samples // model.config.n_group * per_group], per_group)


def _group(x: Tensor, n_group: int) -> Tensor:
    """[B, C, N] -> [B, C * n_group, N // n_group]."""
    B, C, N = x.shape
    x = x[:, :, : N - N % n_group].reshape(B, C, N // n_group, n_group)
    return x.transpose(2, 3).flatten(1, 2)
