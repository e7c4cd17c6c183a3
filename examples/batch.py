"""Speak every line of a text file together, one WAV file per line.

    python examples/batch.py lines.txt --out spoken --seed 7

The decoder reads its weights once per step for all sentences of a batch, which is much faster than text by text.
"""

from pathlib import Path

import click

from fastglow import Synthesizer
from fastglow.audio import write_audio
from fastglow.voices import DEFAULT_VOICE


@click.command()
@click.argument("texts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("spoken"), show_default=True)
@click.option("--voice", default=DEFAULT_VOICE, show_default=True, help="Bundled voice, or a voice's folder.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same audio.")
@click.option("--limit", type=int, help="Speak only the first lines.")
def main(texts: Path, out: Path, voice: str, seed: int, limit: int | None) -> None:
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    synthesizer = Synthesizer.from_voice(voice)
    speeches = synthesizer.synthesize_batch(lines, seed=seed)

    out.mkdir(parents=True, exist_ok=True)
    for number, (line, speech) in enumerate(zip(lines, speeches, strict=True), start=1):
        if not speech.sentences:
            click.echo(f"{number:03}: nothing to speak in {line!r}")
            continue
        path = out / f"{number:03}.wav"
        write_audio(path, speech.audio, speech.sample_rate)
        unfinished = [sentence.text for sentence in speech.sentences if not sentence.stopped]
        click.echo(f"{path}: {speech.seconds:.2f} s" + (f", look at {unfinished}" if unfinished else ""))

    if speeches:
        seconds = sum(speech.seconds for speech in speeches)
        total = speeches[0].timings["total"]  # of the whole batch
        click.echo(f"{seconds:.1f} s of audio in {total:.1f} s, {seconds / total:.1f} x real time")


if __name__ == "__main__":
    main()
