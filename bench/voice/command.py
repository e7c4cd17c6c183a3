"""The command `python -m bench.voice`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import environment
from fastglow.cli import exit_code
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.plotting import require_matplotlib
from fastglow.voices import VOCODERS

from . import reading_faults, report, sentences
from .distances import missing_scores
from .evaluation import SYNTHESIS, Plan, evaluate
from .page import draw_page, draw_sounds
from .recognition import Pocketsphinx, Remembering
from .speaking import find_voice

TRANSCRIPTS = "transcripts.jsonl"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("voices", nargs=-1, required=True, metavar="VOICE...")
@click.option("--metadata", type=click.Path(path_type=Path), help="Sentences: id|text|normalised text.")
@click.option("--wavs", type=click.Path(path_type=Path), help="Their recordings: <id>.wav, .flac or .ogg.")
@click.option("--texts", type=click.Path(path_type=Path),
              help="Sentences without recordings: id|text, or a text a line.")  # fmt: skip
@click.option("--ids", type=click.Path(path_type=Path), help="Take the sentences that this file names, one id a line.")
@click.option("--limit", type=click.IntRange(1), help="Take the first N sentences; of the hard ones too.")
@click.option("--hard/--no-hard", default=None,
              help="Search the reading of hard sentences for faults. Default: unless --texts is given.")  # fmt: skip
@click.option("--hard-sentences", type=click.Path(path_type=Path),
              help="Hard sentences of your own: category|text.")  # fmt: skip
@click.option("--vocoder", "vocoders", multiple=True, type=click.Choice(VOCODERS),
              help="Speaks, and copies the recordings (repeatable). Default: all that the voice has.")  # fmt: skip
@click.option("--copies-only", is_flag=True, help="Only copy the recordings: neither speak nor recognise.")
@click.option("--waveglow", type=click.Path(path_type=Path), help="A checkpoint in place of each voice's WaveGlow.")
@click.option("--sigma", "sigmas", multiple=True, type=click.FloatRange(0),
              help="Compare WaveGlow at this standard deviation of its noise (repeatable).")  # fmt: skip
@click.option("--denoise", "denoises", multiple=True, type=click.FloatRange(0),
              help="Compare WaveGlow at this strength of its denoiser (repeatable).")  # fmt: skip
@click.option("--plots", type=click.IntRange(0), help="Sentences on the page of plots. Default: 3, with --texts 0.")
@click.option("--seed", default=1, show_default=True, help="Of each sentence's synthesis.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report and the transcripts.")
@click.option("--transcripts", type=click.Path(path_type=Path),
              help="Remembers what was heard, also for other runs. Default: OUT/transcripts.jsonl.")  # fmt: skip
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
def command(
    voices: tuple[str, ...], metadata: Path | None, wavs: Path | None, texts: Path | None, ids: Path | None,
    limit: int | None, hard: bool | None, hard_sentences: Path | None, plots: int | None, seed: int, out: Path | None,
    transcripts: Path | None, **models: Any,
) -> None:  # fmt: skip
    """Measure how well VOICE speaks: a bundled voice, a voice's folder, or a Tacotron 2 checkpoint.

    With --metadata and --wavs: word error of the synthesis, of the recordings and of their copies by each vocoder;
    distances of the copies, also of those made of predicted mels; how smooth these are; pace, pauses and pitch; hiss,
    buzz and clicks. With --texts: word error of the synthesis alone. Several voices are compared. Beside either, or
    alone: faults in the reading of hard sentences.
    """
    if metadata and texts:
        raise FastglowError("--metadata and --texts are both sentences: pass one of them")
    if (metadata is None) != (wavs is None):
        raise FastglowError("--metadata and --wavs belong together: pass both")
    copies_only = models["copies_only"]
    if wavs is None and (models["sigmas"] or models["denoises"] or copies_only):
        raise FastglowError("--sigma, --denoise and --copies-only need recordings: pass --metadata and --wavs too")
    if copies_only and (hard or plots):
        raise FastglowError("--copies-only leaves out what --hard and --plots show: pass it without them")
    if hard is None:
        hard = texts is None and not copies_only
    if plots is None:
        plots = 0 if texts or copies_only else 3
    file = metadata or texts
    if not hard and file is None:
        raise FastglowError("nothing to measure: pass --metadata CSV and --wavs DIR, --texts FILE, or --hard")
    prompts = sentences.choose(sentences.read_prompts(file), ids, limit) if file else []
    plan = Plan(
        prompts,
        sentences.find_recordings(prompts, wavs) if wavs else [],
        reading_faults.read_hard_sentences(hard_sentences or reading_faults.HARD_SENTENCES)[:limit] if hard else [],
        seed,
        models["vocoders"],
        models["sigmas"],
        models["denoises"],
        models["device"],
        lambda line: click.echo(line, err=True),
    )
    found = [find_voice(name, models["waveglow"]) for name in voices]
    if out and prompts and (plots or copies_only):
        require_matplotlib()
    if out:
        out.mkdir(parents=True, exist_ok=True)
    remembered = transcripts or (out / TRANSCRIPTS if out else None)
    recogniser = None if copies_only else Remembering(Pocketsphinx(), remembered)
    results: dict[str, Any] = {
        "seed": seed,
        "machine": {**environment.describe(), **environment.processor()},
        "recogniser": recogniser.name if recogniser else "no recogniser",
        "missing": missing_scores() if plan.recordings else [],
        "voices": [],
    }
    for i, (name, voice) in enumerate(zip(voices, found, strict=True), 1):
        of, audio = evaluate(name, voice, plan, recogniser)
        if out and prompts and plots:
            of["page"] = f"page{i}.png"
            draw_page(out / of["page"], of["sentences"], plots, audio)
        if out and audio.sounds and (plots or copies_only):
            of["sounds"] = f"sounds{i}.png"
            draw_sounds(out / of["sounds"], audio.sounds, audio.rate)
        results["voices"].append(of)
    if prompts and not copies_only:
        # Of the best voice.
        results["word_error"] = min(of["word_errors"][SYNTHESIS]["rate"] for of in results["voices"])
    text = report.markdown(results)
    if out:
        _write(out / "report.json", json.dumps(_finite(results), indent=1, ensure_ascii=False, allow_nan=False))
        _write(out / "report.md", text)
    click.echo(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `exit_code`."""
    return exit_code(lambda: command.main(arguments, "python -m bench.voice", standalone_mode=False), "bench.voice")


def _finite(value: Any) -> Any:
    """For JSON, which has neither infinity nor NaN: null instead, as of a ratio to originals without an error."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
