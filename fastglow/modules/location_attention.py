"""Tacotron 2's location-sensitive attention."""

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.location_attention import fold_location
from fastglow.kernels.reference.location_attention import NORMALIZATIONS

from .bypassing import may_bypass
from .convolution import ConvNorm, LinearNorm, length_mask
from .parameter_cache import ParameterCache, Refreshable


class LocationLayer(nn.Module):
    """The convolution over the previous and cumulative weights, and its projection."""

    def __init__(self, n_filters: int, kernel_size: int, attention_dim: int):
        super().__init__()
        self.location_conv = ConvNorm(2, n_filters, kernel_size, bias=False)
        self.location_dense = LinearNorm(n_filters, attention_dim, bias=False, w_init_gain="tanh")

    def forward(self, attention_weights_cat: Tensor) -> Tensor:
        """[B, 2, T] -> [B, T, attention_dim]."""
        return self.location_dense(self.location_conv(attention_weights_cat).transpose(1, 2))


_PARTS: frozenset[type[nn.Module]] = frozenset({LinearNorm, nn.Linear, LocationLayer, ConvNorm, nn.Conv1d})

_MINUS_INFINITY = -1e4
"""A score below this has no weight, whatever the others are."""


class LocationAttention(Refreshable):
    """Drop-in for the Attention of NVIDIA, torchaudio and SpeechBrain: same names, same call.

    Args:
        attention_rnn_dim: size of the query.
        embedding_dim: size of the memory.
        attention_dim: size of the space in which they are compared.
        attention_location_n_filters, attention_location_kernel_size: of the location convolution; the size is odd.
        v_bias: whether the last projection has a bias, as in coqui (`v.linear_layer.bias`) and ESPnet.
        sharpening: factor of the energies, ESPnet's `scaling`.
        normalization: 'softmax', or 'sigmoid' divided by the sum of the sigmoids, as in coqui.

    Raises:
        FastglowError: an even kernel size or an unknown normalization.

    Attributes:
        score_mask_value: energy of the padding; NVIDIA's scripts set the lowest float16. Settable.
    """

    score_mask_value = float("-inf")

    def __init__(
        self,
        attention_rnn_dim: int,
        embedding_dim: int,
        attention_dim: int,
        attention_location_n_filters: int,
        attention_location_kernel_size: int,
        *,
        v_bias: bool = False,
        sharpening: float = 1.0,
        normalization: str = "softmax",
    ):
        super().__init__()
        if attention_location_kernel_size % 2 == 0:
            raise FastglowError(
                f"attention_location_kernel_size={attention_location_kernel_size} must be odd, to keep the length"
            )
        if normalization not in NORMALIZATIONS:
            raise FastglowError(f"normalization={normalization!r} must be 'softmax' or 'sigmoid'")
        self.sharpening = sharpening
        self.normalization = normalization
        self.query_layer = LinearNorm(attention_rnn_dim, attention_dim, bias=False, w_init_gain="tanh")
        self.memory_layer = LinearNorm(embedding_dim, attention_dim, bias=False, w_init_gain="tanh")
        self.v = LinearNorm(attention_dim, 1, bias=v_bias)
        self.location_layer = LocationLayer(attention_location_n_filters, attention_location_kernel_size, attention_dim)
        self._folded: ParameterCache[Tensor] = ParameterCache()

    def forward(
        self,
        attention_hidden_state: Tensor,
        memory: Tensor,
        processed_memory: Tensor,
        attention_weights_cat: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            attention_hidden_state: [B, attention_rnn_dim].
            memory: [B, T, embedding_dim].
            processed_memory: `memory_layer(memory)`, [B, T, attention_dim].
            attention_weights_cat: previous and cumulative weights, [B, 2, T].
            mask: [B, T] bool, True in padding, or None.
            lengths: [B] integers; positions beyond them are padding too, and cost nothing.

        Returns:
            (context [B, embedding_dim], attention weights [B, T]).
        """
        if not (self._masks_padding and may_bypass(self._modules.values(), _PARTS)):
            return self._by_module(
                attention_hidden_state, memory, processed_memory, attention_weights_cat, mask, lengths
            )
        conv = self.location_layer.location_conv.conv.weight
        dense = self.location_layer.location_dense.linear_layer.weight
        dtype = kernels.backend.autocast_dtype(conv) or conv.dtype
        location_weight = None
        if not torch.is_grad_enabled():
            location_weight = self._folded.get((conv, dense), lambda: fold_location(conv, dense, dtype), dtype)
        return kernels.location_attention(
            attention_hidden_state,
            memory,
            processed_memory,
            attention_weights_cat,
            self.query_layer.linear_layer.weight,
            conv,
            dense,
            self.v.linear_layer.weight,
            mask,
            lengths=lengths,
            v_bias=self.v.linear_layer.bias,
            sharpening=self.sharpening,
            normalization=self.normalization,
            location_weight=location_weight,
        )

    def get_alignment_energies(self, query: Tensor, processed_memory: Tensor, attention_weights_cat: Tensor) -> Tensor:
        """The scores before the softmax, in calls of the parts; arguments as `forward`.

        Returns:
            [B, T].
        """
        location = self.location_layer(attention_weights_cat.to(query.dtype))
        energies = self.v(torch.tanh(self.query_layer(query.unsqueeze(1)) + location + processed_memory)).squeeze(2)
        return energies if self.sharpening == 1.0 else self.sharpening * energies

    def is_nvidias(self) -> bool:
        """Whether it has none of the options that NVIDIA's model lacks, as the decoder's loops take it."""
        plain = self.sharpening == 1.0 and self.normalization == "softmax" and self.v.linear_layer.bias is None
        return plain and self._masks_padding

    @property
    def _masks_padding(self) -> bool:
        return self.score_mask_value <= _MINUS_INFINITY

    def _by_module(
        self,
        query: Tensor,
        memory: Tensor,
        processed_memory: Tensor,
        attention_weights_cat: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` in calls of the parts, which have hooks, or which other code has replaced."""
        energies = self.get_alignment_energies(query, processed_memory, attention_weights_cat)
        if lengths is not None:
            beyond = ~length_mask(lengths, memory.shape[1])
            mask = beyond if mask is None else mask | beyond
        if mask is not None:  # -inf would make the softmax of an item that is all padding NaN
            energies = energies.masked_fill(mask, max(self.score_mask_value, torch.finfo(energies.dtype).min))
        sigmoid = self.normalization == "sigmoid"
        weights = torch.sigmoid(energies) if sigmoid else torch.softmax(energies, dim=1)
        if mask is not None and self._masks_padding:
            weights = weights.masked_fill(mask, 0.0)
        if sigmoid:
            total = weights.sum(dim=1, keepdim=True)
            weights = weights / total.masked_fill(total == 0, 1.0)
        return torch.bmm(weights.unsqueeze(1).to(memory.dtype), memory).squeeze(1), weights
