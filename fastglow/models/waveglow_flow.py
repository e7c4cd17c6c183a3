"""One of WaveGlow's flows."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastglow.modules import WN, InvertibleConv1x1
from fastglow.modules.bypassing import accepts, may_bypass

_CONVOLUTION: frozenset[type[nn.Module]] = frozenset({InvertibleConv1x1, nn.Conv1d})


class Flow(NamedTuple):
    """
    Attributes:
        convinv: its 1x1 convolution.
        wn: its coupling network.
        n_early: channels that leave (forward) or enter (inverse) at this flow.
        swap: the coupling changes the first half of the channels, not the second.
    """

    convinv: InvertibleConv1x1
    wn: WN
    n_early: int
    swap: bool

    @property
    def plainly_mixes(self) -> bool:
        """Whether its convolution is ours, without hooks: then its weight is all that there is to know."""
        return may_bypass((self.convinv,), _CONVOLUTION)

    def mix(self, audio: Tensor, log_det: Tensor | None) -> tuple[Tensor, Tensor]:
        """(W audio [B, c, T], log|det W| times B * T); log_det: log|det W|, None if the convolution computes it."""
        return self.convinv(audio) if log_det is None else self.convinv(audio, log_det=log_det)

    def unmix(self, audio: Tensor) -> Tensor:
        """W^-1 audio, [B, c, T]."""
        reverses = accepts(self.convinv, InvertibleConv1x1, audio, reverse=True)
        return self.convinv(audio, reverse=True) if reverses else self.convinv.infer(audio)

    def split(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(the half that conditions the coupling, the half that the coupling changes)."""
        first, second = audio.chunk(2, dim=1)
        return (second, first) if self.swap else (first, second)

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Inverse of `split`."""
        return torch.cat((changed, kept) if self.swap else (kept, changed), dim=1)
