"""A stand-in for Tacotron2 whose utterances are written down: where the attention goes, when the gate fires."""

from types import SimpleNamespace

import torch
from torch import nn

from .conftest import TACOTRON2


def reading(n_symbols, at_end=5):
    """Steps of a right utterance: two a symbol, then a rest on the last."""
    return [i for i in range(n_symbols) for _ in range(2)] + [n_symbols - 1] * (at_end - 2)


class ScriptedTacotron2(nn.Module):
    """`script(symbols, seed)` -> symbols looked at, one a step, with the gate firing after the last; None at the end
    for a gate that never fires: then the last symbol is looked at for ever. -1 is a look at nothing in particular.

    Its mel tells seed and step, so that a test sees which attempt it has before it.
    """

    def __init__(self, script, r=3, max_decoder_steps=400, n_symbols=148):
        super().__init__()
        self.script = script
        sizes = {**TACOTRON2, "n_frames_per_step": r, "max_decoder_steps": max_decoder_steps}
        self.config = SimpleNamespace(**sizes, n_symbols=n_symbols, n_mel_channels=80)
        self.embedding = nn.Embedding(n_symbols, 1)
        self.calls = []

    def infer(self, text, input_lengths, *, seed, max_steps):
        assert len(text) == len(input_lengths) == len(seed) == len(max_steps)
        self.calls.append((list(seed), list(max_steps)))
        items = []
        for ids, length, own_seed, limit in zip(text, input_lengths.tolist(), seed, max_steps, strict=True):
            assert 1 <= limit <= self.config.max_decoder_steps
            path = list(self.script(ids[:length].tolist(), own_seed))
            if None in path:
                path = path[: path.index(None)]
                path += path[-1:] * self.config.max_decoder_steps
            items.append((path[:limit], own_seed))
        r, longest = self.config.n_frames_per_step, max(len(path) for path, _ in items) + 1
        mel = torch.zeros(len(items), 80, longest * r)
        alignments = torch.zeros(len(items), longest, text.shape[1])
        for i, (path, own_seed) in enumerate(items):
            mel[i] = mel_of(own_seed, longest * r)
            for step, symbol in enumerate(path):
                if symbol < 0:
                    alignments[i, step] = 1 / text.shape[1]
                else:
                    alignments[i, step, symbol] = 0.9
        return mel, torch.tensor([len(path) * r for path, _ in items]), alignments


def mel_of(seed, n_frames):
    """[80, n_frames]: of speech about as loud as any."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(80, 2000, generator=generator)[:, :n_frames] - 4
