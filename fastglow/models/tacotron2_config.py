"""Constructor keywords of `Tacotron2`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isnan
from typing import Any

from fastglow.errors import FastglowError


@dataclass
class Tacotron2Config:
    """Constructor keywords of `Tacotron2`; names and defaults are the reference's (arg_parser.py).

    The last three are fastglow's: dropout probabilities that the reference fixes at 0.5.
    """

    mask_padding: bool = False
    n_mel_channels: int = 80
    n_symbols: int = 148
    symbols_embedding_dim: int = 512
    encoder_kernel_size: int = 5
    encoder_n_convolutions: int = 3
    encoder_embedding_dim: int = 512
    attention_rnn_dim: int = 1024
    attention_dim: int = 128
    attention_location_n_filters: int = 32
    attention_location_kernel_size: int = 31
    n_frames_per_step: int = 1
    decoder_rnn_dim: int = 1024
    prenet_dim: int = 256
    max_decoder_steps: int = 2000
    gate_threshold: float = 0.5
    p_attention_dropout: float = 0.1
    p_decoder_dropout: float = 0.1
    postnet_embedding_dim: int = 512
    postnet_kernel_size: int = 5
    postnet_n_convolutions: int = 5
    decoder_no_early_stopping: bool = False
    p_prenet_dropout: float = 0.5
    p_encoder_dropout: float = 0.5
    p_postnet_dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.symbols_embedding_dim != self.encoder_embedding_dim:
            raise FastglowError(
                f"symbols_embedding_dim={self.symbols_embedding_dim} must equal "
                f"encoder_embedding_dim={self.encoder_embedding_dim}: the encoder's convolutions read the embedding"
            )
        if self.encoder_embedding_dim % 2:
            raise FastglowError(
                f"encoder_embedding_dim={self.encoder_embedding_dim} must be even: "
                "the encoder's LSTM has two directions"
            )
        for name in ("encoder_kernel_size", "attention_location_kernel_size", "postnet_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise FastglowError(f"{name}={getattr(self, name)} must be odd, to keep the length")
        for name in (f.name for f in fields(self) if f.name.startswith("p_")):
            if not 0 <= getattr(self, name) <= 1:
                raise FastglowError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.p_prenet_dropout == 1:
            raise FastglowError(
                "p_prenet_dropout=1 must be below 1: this dropout is always on and would drop everything"
            )
        if isnan(self.gate_threshold):
            raise FastglowError("gate_threshold=nan never stops: use a probability, such as 0.5")
        for name in ("n_frames_per_step", "max_decoder_steps"):
            if getattr(self, name) < 1:
                raise FastglowError(f"{name}={getattr(self, name)} must be at least 1")

    @classmethod
    def from_hparams(cls, hparams: object, **kw: Any) -> "Tacotron2Config":
        """The keywords that a mapping or an object with attributes has, as NVIDIA/tacotron2's hparams; others ignored.

        Args:
            hparams: anything with at least one of the keywords.
            kw: keywords that count instead.

        Raises:
            FastglowError: it has none of them.
        """
        found = hparams if isinstance(hparams, Mapping) else _attributes(hparams)
        values = {f.name: found[f.name] for f in fields(cls) if f.name in found}
        if not values:
            raise FastglowError(
                f"Tacotron2 got {type(hparams).__name__}, which has no constructor keyword: pass keywords, a mapping "
                "or an object like NVIDIA/tacotron2's hparams"
            )
        return cls(**{**values, **kw})


def _attributes(hparams: object) -> dict[str, Any]:
    names = [f.name for f in fields(Tacotron2Config)]
    return {name: getattr(hparams, name) for name in names if hasattr(hparams, name)}
