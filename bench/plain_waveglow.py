"""WaveGlow in plain PyTorch on the parameters of a `fastglow.WaveGlow`: nothing folded, fused, cached or dispatched.

What torch.compile gets, and the independent result that every other implementation is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastglow import WaveGlow
from fastglow.kernels.reference.affine_coupling import affine_coupling, affine_coupling_inverse
from fastglow.kernels.reference.invertible_conv1x1 import invertible_conv1x1
from fastglow.kernels.reference.wavenet_layer import wavenet_layer
from fastglow.kernels.reference.weight_norm import weight_norm
from fastglow.modules import WN

Layer = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]
"""The dilated, the conditioning and the res/skip convolution: (weight, bias), or (v, g, bias) under weight norm."""

RunLayers = Callable[[Tensor, Tensor, Sequence[Layer]], Tensor]


def run_layers(h: Tensor, spect: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The layers of one WN on h [B, C, T] and spect [B, D, T] -> the sum of their skips [B, C, T]."""
    total = None
    for i, (dilated, conditioning, res_skip) in enumerate(layers):
        h, skip = wavenet_layer(h, spect, *dilated, *conditioning, *res_skip, dilation=2**i)
        total = skip if total is None else total + skip
    return total


def run_normalised_layers(h: Tensor, spect: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The same for layers under weight norm."""
    return run_layers(h, spect, [tuple((weight_norm(v, g), bias) for v, g, bias in layer) for layer in layers])


def forward(
    model: WaveGlow, mel: Tensor, audio: Tensor, run: RunLayers = run_normalised_layers
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`WaveGlow.forward`."""
    config = model.config
    spect = _group(model.upsample(mel)[:, :, : audio.shape[1]], config.n_group)
    z = _group(audio.unsqueeze(1), config.n_group)
    leaving, log_s_list, log_det_list = [], [], []
    for k, (convinv, wn) in enumerate(zip(model.convinv, model.WN, strict=True)):
        if config.is_early(k):
            leaving.append(z[:, : config.n_early_size])
            z = z[:, config.n_early_size :]
        z, log_det = invertible_conv1x1(z, convinv.conv.weight)
        kept, changed = z.chunk(2, dim=1)
        start, *layers = _normalised(wn)
        h = torch.nn.functional.conv1d(kept, weight_norm(*start[:2]), start[2])
        changed, log_s = affine_coupling(changed, wn.end(run(h, spect, layers)))
        z = torch.cat((kept, changed), dim=1)
        log_s_list.append(log_s)
        log_det_list.append(z.shape[0] * z.shape[2] * log_det)
    return torch.cat([*leaving, z], dim=1), log_s_list, log_det_list


@dataclass(frozen=True)
class Speaker:
    """A WaveGlow with what does not change from one sentence to the next computed once: weight norm, W^-1."""

    model: WaveGlow
    starts: list[tuple[Tensor, Tensor]]
    layers: list[list[Layer]]
    inverses: list[Tensor]

    @staticmethod
    @torch.no_grad()
    def of(model: WaveGlow) -> "Speaker":
        starts, layers = [], []
        for wn in model.WN:
            start, *rest = _normalised(wn)
            starts.append((weight_norm(*start[:2]), start[2]))
            layers.append([tuple((weight_norm(v, g), bias) for v, g, bias in layer) for layer in rest])
        matrices = [convinv.conv.weight for convinv in model.convinv]
        inverses = [torch.linalg.inv(w.squeeze(2).float()).unsqueeze(2).to(w.dtype) for w in matrices]
        return Speaker(model, starts, layers, inverses)

    @torch.no_grad()
    def infer(self, mel: Tensor, noise: Tensor, sigma: float, run: RunLayers = run_layers) -> Tensor:
        """`WaveGlow.infer`."""
        config = self.model.config
        spect = self.model.upsample(mel)[:, :, : mel.shape[2] * config.upsample_stride]
        spect = _group(spect, config.n_group)
        n = config.n_remaining_channels
        z, entering = sigma * noise[:, :n], sigma * noise[:, n:]
        for k in reversed(range(config.n_flows)):
            kept, changed = z.chunk(2, dim=1)
            h = torch.nn.functional.conv1d(kept, *self.starts[k])
            b_log_s = self.model.WN[k].end(run(h, spect, self.layers[k]))
            changed = affine_coupling_inverse(changed, b_log_s)
            z = torch.nn.functional.conv1d(torch.cat((kept, changed), dim=1), self.inverses[k])
            if config.is_early(k):
                z = torch.cat((entering[:, : config.n_early_size], z), dim=1)
                entering = entering[:, config.n_early_size :]
        return z.transpose(1, 2).reshape(mel.shape[0], -1)


def _normalised(wn: WN) -> list:
    """(v, g, bias) of `start`, then one `Layer` after the other."""
    layers = zip(wn.in_layers, wn.cond_layers, wn.res_skip_layers, strict=True)
    return [_parameters(wn.start), *(tuple(_parameters(convolution) for convolution in layer) for layer in layers)]


def _parameters(convolution: torch.nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    return convolution.weight_v, convolution.weight_g, convolution.bias


def _group(x: Tensor, n_group: int) -> Tensor:
    """[B, C, N] -> [B, C * n_group, N // n_group]."""
    B, C, N = x.shape
    x = x[:, :, : N - N % n_group].reshape(B, C, N // n_group, n_group)
    return x.transpose(2, 3).flatten(1, 2)
