"""Tacotron 2's prenet."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.kernels.reference.prenet import prenet_noise
from fastglow.modules import LinearNorm
from fastglow.modules.bypassing import may_bypass
from fastglow.modules.module_lists import modules_of_type

_LAYERS: frozenset[type[nn.Module]] = frozenset({nn.ModuleList, LinearNorm, nn.Linear})


class Prenet(nn.Module):
    """Two bottleneck layers whose dropout is always on; parameters `layers.N.linear_layer.weight`."""

    def __init__(self, in_dim: int, sizes: Sequence[int], p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.layers = nn.ModuleList(
            LinearNorm(n_in, n_out, bias=False) for n_in, n_out in zip([in_dim, *sizes[:-1]], sizes, strict=True)
        )

    def forward(self, x: Tensor, noise: Tensor | None = None, *, seeds: Tensor | None = None, start: int = 0) -> Tensor:
        """[..., in_dim] -> [..., sizes[-1]]; `noise`, or `seeds` and `start`, as in `kernels.prenet`."""
        if may_bypass(self._modules.values(), _LAYERS):
            return kernels.prenet(x, self.weights(), self.p_dropout, noise, seeds=seeds, start=start)
        given: Sequence[Tensor] | Tensor | None = noise
        if seeds is not None:
            steps, sizes = x.shape[1] if x.dim() == 3 else 1, [len(weight) for weight in self.weights()]
            given = [layer.view(*x.shape[:-1], -1) for layer in prenet_noise(seeds, sizes, start, steps)]
        for i, linear in enumerate(self.layers):
            x = F.relu(linear(x))
            if given is None:
                x = F.dropout(x, self.p_dropout, training=True)
            else:
                x = x * (given[i] >= self.p_dropout) / (1 - self.p_dropout)
        return x

    def weights(self) -> list[Tensor]:
        """The weight of each layer, [n_out, n_in]."""
        return [layer.linear_layer.weight for layer in modules_of_type(LinearNorm, self.layers)]
