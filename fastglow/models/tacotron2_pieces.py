"""Tacotron 2's mel spectrogram as a stream."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from fastglow.devices import move
from fastglow.kernels import DecodePiece
from fastglow.kernels.arguments import sizes_of_pieces
from fastglow.modules.convolution import length_mask

from .calling import Call
from .tacotron2_decoder import Decoder


class MelPiece(NamedTuple):
    """
    Attributes:
        mel: consecutive frames after the postnet, [B, n_mel_channels, n]; zeros past the step on which an item's gate
            fired or its limit.
        alignments: attention weights of the steps that the decoder took meanwhile, [B, k, T_in]. It runs ahead of the
            mel by the postnet's receptive field.
        lengths: [B] int32, how many frames of each item were handed out so far, without those of the step on which its
            gate fired.
        finished: whether this is the last piece.
    """

    mel: Tensor
    alignments: Tensor
    lengths: Tensor
    finished: bool


def mel_pieces(
    decoder: Decoder,
    add_residual: Callable[..., Tensor],
    held: int,
    inputs: tuple[Tensor, Tensor, Tensor, int],
    limits: Tensor,
    piece_frames: int | Iterable[int],
    call: Call,
) -> Generator[MelPiece, None, None]:
    """The mel of a batch, piece by piece.

    Args:
        add_residual: `Tacotron2.add_residual`, a frame of which depends on `held` frames on either side.
        inputs: of `Decoder.infer`.
        limits: step limit of each item, [B] int64 on the CPU.
        piece_frames, call: as of `Tacotron2.decode_pieces`.
    """
    steps = _piece_steps(piece_frames, held, decoder.n_frames_per_step)
    return _with_postnet(decoder.infer_pieces(*inputs, piece_steps=steps), decoder, add_residual, held, limits, call)


def _piece_steps(piece_frames: int | Iterable[int], held: int, r: int) -> Iterator[int]:
    """Decoder steps of r frames for each piece of mel, of which the last `held` frames are held back."""
    for n_frames in sizes_of_pieces("piece_frames", piece_frames):
        yield -(-(n_frames + held) // r)
        held = 0


@torch.no_grad()
def _with_postnet(
    pieces: Generator[DecodePiece, None, None],
    decoder: Decoder,
    add_residual: Callable[..., Tensor],
    held: int,
    limits: Tensor,
    call: Call,
) -> Generator[MelPiece, None, None]:
    r, most = decoder.n_frames_per_step, int(limits.max())
    n_steps = n_frames = 0  # taken by the decoder; of the mel handed out
    window, first = None, 0  # the decoder's mel from frame `first` on
    with closing(pieces):
        for frames, steps, alignments, running in pieces:
            # The decoder's own limit may be larger than the items'.
            alignments = alignments[:, : most - n_steps]
            mel = decoder.mel_of(frames)[:, :, : (most - n_steps) * r]
            window = mel if window is None else torch.cat((window, mel), dim=2)
            limits = move(limits, steps.device)
            ends = torch.minimum(steps + 1, limits)
            alignments = alignments * length_mask(ends - n_steps, alignments.shape[1]).unsqueeze(2)
            n_steps += alignments.shape[1]
            finished = n_steps == most or (decoder.early_stopping and not running)
            start, n_frames = n_frames, n_steps * r - (0 if finished else held)
            refined = call(add_residual, *call.padded(window, ends * r - first))
            mel = refined[: len(window), :, start - first : n_frames - first]
            window, first = window[:, :, max(0, n_frames - held) - first :], max(0, n_frames - held)
            lengths = (torch.minimum(steps, limits) * r).clamp(max=n_frames).int()
            yield MelPiece(mel, alignments, lengths, finished)
            if finished:
                return
