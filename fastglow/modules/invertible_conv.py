"""WaveGlow's invertible 1x1 convolution."""

import torch
from torch import Tensor, nn

from fastglow import kernels

from .bypassing import may_bypass
from .parameter_cache import ParameterCache, Refreshable

_CONVOLUTION: frozenset[type[nn.Module]] = frozenset({nn.Conv1d})


class InvertibleConv1x1(Refreshable):
    """Drop-in for the reference's Invertible1x1Conv; parameter `conv.weight` [c, c, 1]."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv1d(c, c, kernel_size=1, bias=False)
        rotation = torch.linalg.qr(torch.randn(c, c))[0]
        rotation[:, 0] *= torch.linalg.det(rotation).sign()  # an `if` would fail on the meta device
        with torch.no_grad():
            self.conv.weight.copy_(rotation.unsqueeze(2))

        self._inverse: ParameterCache[Tensor] = ParameterCache()

    def forward(
        self, z: Tensor, reverse: bool = False, *, log_det: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The convolution, or its inverse.

        Args:
            z: [B, c, T].
            reverse: give what `infer` gives, as in NVIDIA/waveglow.
            log_det: log|det W|, if known.

        Returns:
            (W z [B, c, T], B * T * log|det W|, a scalar); in reverse W^-1 z [B, c, T].
        """
        if reverse:
            return self.infer(z)
        batch_size, _, n_of_groups = z.shape
        weight = self.conv.weight
        if may_bypass((self.conv,), _CONVOLUTION):
            z, log_det = kernels.invertible_conv1x1(z, weight, log_det)
        else:
            z = self.conv(z)
            log_det = kernels.invertible_conv1x1_factors([weight])[1][0] if log_det is None else log_det
        return z, batch_size * n_of_groups * log_det

    def infer(self, z: Tensor) -> Tensor:
        """[B, c, T] -> W^-1 z [B, c, T]."""
        inverse = None if torch.is_grad_enabled() else self.inverse()
        return kernels.invertible_conv1x1_inverse(z, self.conv.weight, inverse)

    @torch.no_grad()
    def inverse(self) -> Tensor:
        """W^-1, [c, c] float32, cached until the weight changes or `refresh()`."""
        weight = self.conv.weight
        return self._inverse.get([weight], lambda: kernels.invertible_conv1x1_factors([weight])[0][0])
