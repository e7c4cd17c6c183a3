"""Runs every operation of Tacotron 2's decoder once, at small odd sizes: the program that compute-sanitizer checks."""

import sys
import warnings

import torch

from fastglow import Tacotron2
from fastglow.kernels import backend

SIZES = {
    "n_mel_channels": 5,
    "n_symbols": 11,
    "symbols_embedding_dim": 18,
    "encoder_embedding_dim": 18,
    "attention_rnn_dim": 27,
    "attention_dim": 19,
    "attention_location_n_filters": 3,
    "attention_location_kernel_size": 5,
    "decoder_rnn_dim": 29,
    "prenet_dim": 21,
    "max_decoder_steps": 3,
    "postnet_embedding_dim": 7,
}


def main(device: str) -> None:
    torch.manual_seed(0)
    model = Tacotron2(**SIZES).to(device)
    text = torch.randint(11, (3, 9), device=device)
    lengths = torch.tensor([9, 4, 7], device=device)
    mels, mel_lengths = torch.randn(3, 5, 4, device=device), torch.tensor([4, 2, 3], device=device)
    with backend.use_backend("triton"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = model((text, lengths, mels, 9, mel_lengths))
        sum(output.square().sum() for output in outputs).backward()
        model.eval()
        # One batch for the persistent kernel, and one that is too large for it.
        for batch in ((text, lengths), (text.repeat(4, 1), lengths.repeat(4))):
            mel, _, _ = model.infer(*batch, seed=1)
            assert mel.isfinite().all()
    assert {"teacher_forced_loop", "decode_loop", "prenet"} <= {op for op, n in backend.launches.items() if n}


if __name__ == "__main__":
    main(sys.argv[1])
