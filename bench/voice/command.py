"""The command `python -m bench.voice`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import environment
from fastglow.errors import FastglowError
from fastglow.files import replacing

from . import reading_faults, report, sentences
from .evaluation import SYNTHESIS, Plan, evaluate
from .recognition import Pocketsphinx, Recogniser, Remembering
from .speaking import find_voice


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
@click.option("--seed", default=1, show_default=True, help="Of each sentence's synthesis.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report and the transcripts.")
@click.option("--transcripts", type=click.Path(path_type=Path),
              help="Remembers what was heard, also for other runs. Default: OUT/transcripts.jsonl.")  # fmt: skip
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
def command(
    voices: tuple[str, ...], metadata: Path | None, wavs: Path | None, texts: Path | None, ids: Path | None,
    limit: int | None, hard: bool | None, hard_sentences: Path | None, seed: int, out: Path | None,
    transcripts: Path | None, device: str | None,
) -> None:  # fmt: skip
    """Measure how well VOICE speaks: a bundled voice, a voice's folder, or a Tacotron 2 checkpoint.

    With --metadata and --wavs: word error of the synthesis and of the recordings. With --texts: word error of the
    synthesis alone. Several voices are compared. Beside either, or alone: faults in the reading of hard sentences.
    """
    if metadata and texts:
        raise FastglowError("--metadata and --texts are both sentences: pass one of them")
    if (metadata is None) != (wavs is None):
        raise FastglowError("--metadata and --wavs belong together: pass both")
    if hard is None:
        hard = texts is None
    file = metadata or texts
    if not hard and file is None:
        raise FastglowError("nothing to measure: pass --metadata CSV and --wavs DIR, --texts FILE, or --hard")
    prompts = sentences.choose(sentences.read_prompts(file), ids, limit) if file else []
    plan = Plan(
        prompts,
        sentences.find_recordings(prompts, wavs) if wavs else [],
        reading_faults.read_hard_sentences(hard_sentences or reading_faults.HARD_SENTENCES)[:limit] if hard else [],
        seed,
        device,
        lambda line: click.echo(line, err=True),
    )
    found = [find_voice(name) for name in voices]
    recogniser: Recogniser = Pocketsphinx()
    if out and not transcripts:
        transcripts = out / "transcripts.jsonl"
    if transcripts:
        recogniser = Remembering(recogniser, transcripts)
    results: dict[str, Any] = {
        "seed": seed,
        "machine": environment.describe(),
        "recogniser": recogniser.name,
        "voices": [evaluate(name, voice, plan, recogniser) for name, voice in zip(voices, found, strict=True)],
    }
    if plan.prompts:
        # Of the best voice.
        results["word_error"] = min(of["word_errors"][SYNTHESIS]["rate"] for of in results["voices"])
    text = report.markdown(results)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "report.json", json.dumps(results, indent=1, ensure_ascii=False))
        _write(out / "report.md", text)
    click.echo(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for an error that users can fix, 130 after Ctrl-C."""
    try:
        return command.main(arguments, prog_name="python -m bench.voice", standalone_mode=False) or 0
    except click.ClickException as error:
        message = error.format_message()
    except FastglowError as error:
        message = str(error)
    except click.Abort:
        return 130
    except OSError as error:
        message = f"{error.filename or 'file'}: {error.strerror}"
    click.echo(f"bench.voice: {' '.join(message.split())}", err=True)
    return 2


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
