"""Return audio as soon as it is certain, before the whole text is synthesized.

    python examples/streaming.py "First this. Then that." --out out.wav

A service would send each chunk to its client. This example appends it to a file and prints when it was ready.
"""

import time
from pathlib import Path

import click
import soundfile

from fastglow import Synthesizer
from fastglow.voices import DEFAULT_VOICE


@click.command()
@click.argument("text")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("out.wav"), show_default=True)
@click.option("--voice", default=DEFAULT_VOICE, show_default=True, help="Bundled voice, or a voice's folder.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same audio.")
def main(text: str, out: Path, voice: str, seed: int) -> None:
    synthesizer = Synthesizer.from_voice(voice)
    sample_rate = synthesizer.audio.sampling_rate
    spoken = 0.0  # seconds of audio so far
    started = time.perf_counter()
    with soundfile.SoundFile(out, "w", samplerate=sample_rate, channels=1) as file:
        for number, chunk in enumerate(synthesizer.stream(text, seed=seed), start=1):
            ready = time.perf_counter() - started
            file.write(chunk)  # float32 [samples] in [-1, 1]
            spoken += len(chunk) / sample_rate
            click.echo(f"chunk {number}: ready after {ready:.2f} s, {spoken:.2f} s of audio so far")


if __name__ == "__main__":
    main()
