"""Tacotron 2's postnet."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.modules.recomputing import recomputed

from .tacotron2_config import Tacotron2Config
from .tacotron2_encoder import conv_block


class Postnet(nn.Module):
    """Convolutions that predict a residual of the decoder's mel spectrogram.

    Attributes:
        gradient_checkpointing: see `Tacotron2`. Each convolution is recomputed by itself: while this backward pass
            runs, which comes first, the decoder's activations are stored.
    """

    gradient_checkpointing: bool = False

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        self.p_dropout = config.p_postnet_dropout
        channels = [
            config.n_mel_channels,
            *[config.postnet_embedding_dim] * (config.postnet_n_convolutions - 1),
            config.n_mel_channels,
        ]
        last = config.postnet_n_convolutions - 1
        self.convolutions = nn.ModuleList(
            conv_block(n_in, n_out, config.postnet_kernel_size, "linear" if i == last else "tanh")
            for i, (n_in, n_out) in enumerate(pairwise(channels))
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, n_mel_channels, T] -> the residual, same shape; `mask` [B, 1, T] as in `Encoder.forward`."""
        last = len(self.convolutions) - 1
        for i, conv in enumerate(self.convolutions):

            def block(x: Tensor, conv: nn.Module = conv, is_last: bool = i == last) -> Tensor:
                x = conv(x)
                x = F.dropout(x if is_last else torch.tanh(x), self.p_dropout, self.training)
                return x if mask is None else x * mask

            x = recomputed(conv, block, x) if self.gradient_checkpointing else block(x)
        return x


def receptive_field(postnet: nn.Module) -> int:
    """Frames on either side of a frame that its residual depends on: those of a chain of all its convolutions."""
    convolutions = [conv for conv in postnet.modules() if isinstance(conv, nn.Conv1d)]
    return sum(conv.dilation[0] * (conv.kernel_size[0] // 2) for conv in convolutions)
