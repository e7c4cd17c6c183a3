"""Tacotron 2's encoder."""

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cudnn.rnn import get_cudnn_mode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastglow.errors import FastglowError
from fastglow.kernels.launch import uncompiled
from fastglow.modules import ConvNorm
from fastglow.modules.bypassing import may_bypass
from fastglow.modules.convolution import Gain
from fastglow.modules.parameter_cache import ParameterCache, Refreshable, parameters_of
from fastglow.modules.recomputing import recomputed

from .tacotron2_config import Tacotron2Config

_LSTM: frozenset[type[nn.Module]] = frozenset({nn.LSTM})


def conv_block(in_channels: int, out_channels: int, kernel_size: int, w_init_gain: Gain) -> nn.Sequential:
    """Convolution and batch normalisation, [B, in_channels, T] -> [B, out_channels, T]."""
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, kernel_size, w_init_gain=w_init_gain),
        nn.BatchNorm1d(out_channels),
    )


class Encoder(Refreshable):
    """Convolutions over the symbols, then a bidirectional LSTM.

    Attributes:
        gradient_checkpointing: see `Tacotron2`.
    """

    gradient_checkpointing: bool = False

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        dim = config.encoder_embedding_dim
        self.p_dropout = config.p_encoder_dropout
        self.convolutions = nn.ModuleList(
            conv_block(dim, dim, config.encoder_kernel_size, "relu") for _ in range(config.encoder_n_convolutions)
        )
        self.lstm = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self._directions: ParameterCache[tuple[nn.LSTM, nn.LSTM]] = ParameterCache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_directions": ParameterCache(), **state})  # absent in pickles of older versions

    def forward(self, x: Tensor, input_lengths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a padded batch.

        Args:
            x: embedded symbols, [B, dim, T].
            input_lengths: [B], in any order.
            mask: [B, 1, T], 1 inside an item, for inference. With a mask, padding stays zero between the convolutions,
                as for an item alone, and the lengths are read on the device; without it the padding's embedding and
                biases leak into the item, as in the reference.

        Returns:
            [B, T, dim], zero past each length.

        Raises:
            FastglowError: no text, or an empty one; not with a mask.
        """
        if mask is not None:
            return self._lstm(self._convolve(x * mask, mask).transpose(1, 2), input_lengths, mask.transpose(1, 2))
        lengths = input_lengths.cpu()
        if not len(lengths) or not x.shape[2]:
            raise _no_text(lengths)
        if self.gradient_checkpointing:
            return recomputed(self, lambda x: self._packed_lstm(self._convolve(x).transpose(1, 2), lengths), x)
        return self._packed_lstm(self._convolve(x).transpose(1, 2), lengths)

    @uncompiled  # the compiler traces neither packed sequences nor LSTMs
    def _packed_lstm(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, dim], lengths [B] on the CPU -> [B, T, dim]."""
        if int(lengths.min()) < 1:
            raise _no_text(lengths)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = self.lstm(packed)
        return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0]

    def inference(self, x: Tensor) -> Tensor:
        """NVIDIA/tacotron2's, for texts without padding: [B, dim, T] -> [B, T, dim]."""
        lengths = torch.full((len(x),), x.shape[2], device=x.device)
        return self.forward(x, lengths, x.new_ones(len(x), 1, x.shape[2]))

    def infer(self, x: Tensor, input_lengths: Tensor) -> Tensor:
        """DeepLearningExamples', in which the padding leaks into the items: `forward` without a mask."""
        return self.forward(x, input_lengths)

    def _convolve(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for conv in self.convolutions:
            x = F.dropout(F.relu(conv(x)), self.p_dropout, self.training)
            if mask is not None:
                x = x * mask
        return x

    def _lstm(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """[B, T, dim], mask [B, T, 1] -> [B, T, dim].

        A packed sequence needs the lengths on the host. Here the second direction reads each item reversed, from its
        own end, and what comes after the end cannot reach it.
        """
        if not may_bypass((self.lstm,), _LSTM):
            packed = pack_padded_sequence(x, lengths.cpu().clamp(min=1), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0] * mask
        forwards, backwards = self._directions.get(parameters_of(self.lstm), self._split_directions)
        position = torch.arange(x.shape[1], device=x.device)
        reversal = torch.where(mask[:, :, 0] > 0, lengths.unsqueeze(1) - 1 - position, position).unsqueeze(2)
        after, _ = backwards(x.gather(1, reversal.expand_as(x)))
        before, _ = forwards(x)
        return torch.cat((before, after.gather(1, reversal.expand_as(after))), dim=2) * mask

    @torch.no_grad()
    def _split_directions(self) -> tuple[nn.LSTM, nn.LSTM]:
        """Two LSTMs of one direction, each with its weights in one block of memory, as cuDNN wants them."""
        weight = parameters_of(self.lstm)[0]
        found = []
        for suffix in ("", "_reverse"):
            one = nn.LSTM(
                self.lstm.input_size, self.lstm.hidden_size, batch_first=True, device="meta", dtype=weight.dtype
            )
            # Copies, which cuDNN's layout then moves. Filling memory of the module's own, by to_empty, loads sympy.
            state = {name: getattr(self.lstm, name + suffix).detach().clone() for name, _ in one.named_parameters()}
            one.load_state_dict(state, assign=True)
            if weight.is_cuda:  # now, because the first forward pass may be recorded
                _flatten(one)
            found.append(one.eval())
        return found[0], found[1]


def _no_text(lengths: Tensor) -> FastglowError:
    return FastglowError(f"input_lengths={lengths.tolist()} must have at least one text, each of at least 1 symbol")


def _flatten(lstm: nn.LSTM) -> None:
    """`flatten_parameters`, also in bfloat16, which Python's list of cuDNN's dtypes lacks: cuDNN would copy the weights
    together at every call, with a warning."""
    if next(lstm.parameters()).dtype != torch.bfloat16:
        lstm.flatten_parameters()
        return
    sizes = lstm.input_size, get_cudnn_mode(lstm.mode), lstm.hidden_size, lstm.proj_size, lstm.num_layers
    with suppress(RuntimeError):  # a cuDNN without bfloat16
        torch._cudnn_rnn_flatten_weight(list(lstm.parameters()), 4, *sizes, lstm.batch_first, lstm.bidirectional)
