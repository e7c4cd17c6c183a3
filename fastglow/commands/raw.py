"""`fastglow synth --raw`: samples as soon as they are made."""

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from fastglow.outputs import opened

from .reports import computed_with, nothing_spoken

if TYPE_CHECKING:
    from fastglow.engine import Synthesizer


def stream_raw(
    text: str, output: str, synthesizer: "Synthesizer", keywords: dict[str, Any], announce: bool
) -> dict[str, Any]:
    """Writes 16-bit little-endian mono PCM without a header, each chunk of `Synthesizer.stream` once it is there.

    Args:
        text: what to speak.
        output: a path that `check_output` accepted.
        synthesizer: speaks it.
        keywords: of `Synthesizer.stream`.
        announce: say the sampling rate on standard error before the first chunk.

    Returns:
        the report.

    Raises:
        FastglowError: there is nothing to speak, or `output` cannot be written.
        ClosedPipeError: the reader of a pipe has left.
    """
    from fastglow.audio.io import write_pcm16
    from fastglow.engine.seeds import random_seed

    rate = synthesizer.audio.sampling_rate
    if announce:
        click.echo(f"fastglow: raw: {rate} Hz, 16-bit, mono", err=True)
    keywords = {"seed": random_seed(), **keywords}
    n_samples, seconds, first = 0, 0.0, 0.0
    with closing(synthesizer.stream(text, **keywords)) as chunks, opened(output) as stream:
        while True:
            # Without the time that a player takes to read.
            started = time.perf_counter()
            chunk = next(chunks, None)
            seconds += time.perf_counter() - started
            if chunk is None:
                break
            first = first or seconds
            n_samples += len(chunk)
            write_pcm16(stream, chunk)
            stream.flush()
        if not n_samples:
            raise nothing_spoken(text)
    return {
        "output": output,
        "sample_rate": rate,
        "audio_seconds": n_samples / rate,
        "compute_seconds": seconds,
        "first_audio_seconds": first,
        "times_real_time": n_samples / rate / seconds,
        "seed": keywords["seed"],
        **computed_with(synthesizer),
    }
