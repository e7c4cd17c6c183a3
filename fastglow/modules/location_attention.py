"""Tacotron 2's location-sensitive attention."""

from torch import Tensor, nn

from fastglow import kernels

from .convolution import ConvNorm, LinearNorm


class LocationLayer(nn.Module):
    """Parameters of the convolution over the previous and cumulative weights, and its projection."""

    def __init__(self, n_filters: int, kernel_size: int, attention_dim: int):
        super().__init__()
        self.location_conv = ConvNorm(2, n_filters, kernel_size, bias=False)
        self.location_dense = LinearNorm(n_filters, attention_dim, bias=False, w_init_gain="tanh")


class LocationAttention(nn.Module):
    """Drop-in for the Attention of NVIDIA, torchaudio and SpeechBrain: same names, same call."""

    def __init__(
        self,
        attention_rnn_dim: int,
        embedding_dim: int,
        attention_dim: int,
        attention_location_n_filters: int,
        attention_location_kernel_size: int,
    ):
        super().__init__()
        self.query_layer = LinearNorm(attention_rnn_dim, attention_dim, bias=False, w_init_gain="tanh")
        self.memory_layer = LinearNorm(embedding_dim, attention_dim, bias=False, w_init_gain="tanh")
        self.v = LinearNorm(attention_dim, 1, bias=False)
        self.location_layer = LocationLayer(attention_location_n_filters, attention_location_kernel_size, attention_dim)

    def forward(
        self,
        attention_hidden_state: Tensor,
        memory: Tensor,
        processed_memory: Tensor,
        attention_weights_cat: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            attention_hidden_state: [B, attention_rnn_dim].
            memory: [B, T, embedding_dim].
            processed_memory: `memory_layer(memory)`, [B, T, attention_dim].
            attention_weights_cat: previous and cumulative weights, [B, 2, T].
            mask: [B, T] bool, True in padding, or None.

        Returns:
            (context [B, embedding_dim], attention weights [B, T]).
        """
        return kernels.location_attention(
            attention_hidden_state,
            memory,
            processed_memory,
            attention_weights_cat,
            self.query_layer.linear_layer.weight,
            self.location_layer.location_conv.conv.weight,
            self.location_layer.location_dense.linear_layer.weight,
            self.v.linear_layer.weight,
            mask,
        )
