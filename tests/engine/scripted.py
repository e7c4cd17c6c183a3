"""A fake Tacotron2 whose utterances are scripted: the path of the attention, the step on which the gate fires."""

from types import SimpleNamespace

import torch
from torch import nn

from fastglow.models.tacotron2 import DecodedBatch
from fastglow.models.tacotron2_pieces import MelPiece

from .conftest import TACOTRON2


def reading(n_symbols, at_end=5):
    """The path of a correct utterance: two steps per symbol, then more on the last."""
    return [i for i in range(n_symbols) for _ in range(2)] + [n_symbols - 1] * (at_end - 2)


class ScriptedTacotron2(nn.Module):
    """`script(symbols, seed)` -> position of the attention at each step; the gate fires after the last. A final None
    stands for a gate that never fires, with the attention staying on the last symbol. -1 is evenly spread attention.

    The mel identifies seed and step, and thereby the attempt.
    """

    def __init__(self, script, r=3, max_decoder_steps=400, n_symbols=148):
        super().__init__()
        self.script = script
        sizes = {**TACOTRON2, "n_frames_per_step": r, "max_decoder_steps": max_decoder_steps}
        self.config = SimpleNamespace(**sizes, n_symbols=n_symbols, n_mel_channels=80)
        self.embedding, self.decoder = nn.Embedding(n_symbols, 1), nn.Module()
        self.decoder.cpu_weights = None
        self.calls = []

    def decode(self, text, input_lengths, *, seed, max_steps, call):
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
        steps = torch.tensor([len(path) for path, _ in items])
        return DecodedBatch(mel, (steps + 1) * r, steps, torch.tensor(max_steps), alignments)

    def refine(self, decoded, call):
        return decoded.mel

    def decode_pieces(self, text, input_lengths, *, seed, piece_frames, call):
        """The mel lags one step behind the alignment, as behind a postnet."""
        r, most = self.config.n_frames_per_step, self.config.max_decoder_steps
        whole = self.decode(text, input_lengths, seed=seed, max_steps=[most], call=call)
        n_steps, taken, spoken = int(whole.steps[0]), 0, 0
        while taken < n_steps + 1:
            before, taken = taken, min(taken + -(-piece_frames // r), n_steps + 1)
            finished = taken == n_steps + 1
            first, spoken = spoken, (taken if finished else taken - 1) * r
            yield MelPiece(
                whole.mel[:, :, first:spoken],
                whole.alignments[:, before:taken],
                torch.tensor([min(spoken, n_steps * r)]),
                finished,
            )


def mel_of(seed, n_frames):
    """[80, n_frames], at the level of speech."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(80, 2000, generator=generator)[:, :n_frames] - 4
