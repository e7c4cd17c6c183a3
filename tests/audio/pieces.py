"""Audio in pieces, for what must not depend on where it is split."""

import numpy as np
from hypothesis import strategies as st

# Sizes of pieces, used over again until the audio ends: no samples, a few, or many, and at least one of many.
SIZES = st.tuples(
    st.lists(st.one_of(st.integers(0, 40), st.integers(0, 9000)), max_size=10), st.integers(500, 9000)
).map(lambda drawn: [*drawn[0], drawn[1]])


def pieces(audio, sizes):
    start = i = 0
    while start < len(audio):
        end = start + sizes[i % len(sizes)]
        yield audio[start:end]
        start, i = end, i + 1


def through(stage, audio, sizes=(1 << 62,)):
    """All that a stage returns for the audio, pushed in pieces of these sizes. Fails for results of another dtype."""
    results = [stage.push(piece) for piece in pieces(audio, sizes)]
    results.append(stage.flush())
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    return np.concatenate(results)


def speech_like(n, seed, level=0.1):
    """Noise in syllables of 0 to 200 ms whose levels go from silence to 40 dB above `level`; float32 [n]."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4410, n // 2000 + 2)
    levels = level * rng.choice([0.0, 1e-4, 0.03, 0.5, 1.0, 1.0, 2.0, 100.0], len(lengths))
    envelope = np.resize(np.repeat(levels, lengths), n)
    return (rng.normal(0, 1, n) * envelope).astype(np.float32)


def faded(audio, n_in, n_out):
    """A copy of the whole audio whose first and last samples fade, or share it half and half."""
    room = len(audio) // 2 if n_in and n_out else len(audio)
    gain = np.ones(len(audio), np.float32)
    for side, length in ((gain, min(n_in, room)), (gain[::-1], min(n_out, room))):
        side[:length] *= (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))).astype(np.float32)
    return audio * gain
