"""The command `python -m bench.voice`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import environment
from fastglow.engine import Synthesizer
from fastglow.errors import FastglowError
from fastglow.files import replacing

from . import evaluation, report, sentences
from .recognition import Pocketsphinx, Recogniser, Remembering
from .speaking import find_voice


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("voices", nargs=-1, required=True, metavar="VOICE...")
@click.option("--metadata", type=click.Path(path_type=Path), help="Sentences: id|text|normalised text.")
@click.option("--wavs", type=click.Path(path_type=Path), help="Their recordings: <id>.wav, .flac or .ogg.")
@click.option("--texts", type=click.Path(path_type=Path),
              help="Sentences without recordings: id|text, or a text a line. Compares voices.")  # fmt: skip
@click.option("--ids", type=click.Path(path_type=Path), help="Take the sentences that this file names, one id a line.")
@click.option("--limit", type=click.IntRange(1), help="Take the first N sentences.")
@click.option("--seed", default=1, show_default=True, help="Of each sentence's synthesis.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report and the transcripts.")
@click.option("--transcripts", type=click.Path(path_type=Path),
              help="Remembers what was heard, also for other runs. Default: OUT/transcripts.jsonl.")  # fmt: skip
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
def command(
    voices: tuple[str, ...], metadata: Path | None, wavs: Path | None, texts: Path | None, ids: Path | None,
    limit: int | None, seed: int, out: Path | None, transcripts: Path | None, device: str | None,
) -> None:  # fmt: skip
    """Measure how well VOICE speaks: a bundled voice, a voice's folder, or a Tacotron 2 checkpoint.

    With --metadata and --wavs: word error of the synthesis and of the recordings. With --texts: word error of each
    voice, one row each.
    """
    if (metadata is None) == (texts is None):
        raise FastglowError("pass either --metadata CSV and --wavs DIR, or --texts FILE")
    if (metadata is None) != (wavs is None):
        raise FastglowError("--metadata and --wavs belong together: pass both")
    if metadata and len(voices) > 1:
        raise FastglowError(f"--metadata takes one voice, not {len(voices)}: pass --texts to compare several")
    file = metadata or texts
    assert file is not None
    prompts = sentences.choose(sentences.read_prompts(file), ids, limit)
    recordings = sentences.find_recordings(prompts, wavs) if wavs else None
    found = [find_voice(name) for name in voices]
    recogniser: Recogniser = Pocketsphinx()
    if out and not transcripts:
        transcripts = out / "transcripts.jsonl"
    if transcripts:
        recogniser = Remembering(recogniser, transcripts)

    results: dict[str, Any] = {"seed": seed, "machine": environment.describe(), "recogniser": recogniser.name}
    if recordings is None:
        results["candidates"] = []
        for name, voice in zip(voices, found, strict=True):
            synthesizer = Synthesizer.from_voice(voice, device)
            heard = {
                evaluation.SYNTHESIS: evaluation.hear_voice(synthesizer, prompts, seed, recogniser, lambda _: None)
            }
            row = {"voice": name, **evaluation.summarise(heard)[evaluation.SYNTHESIS]}
            results["candidates"].append(row | {"sentences": evaluation.rows(prompts, heard)})
            click.echo(report.candidate_line(row), err=True)
        results["word_error"] = min(row["rate"] for row in results["candidates"])
    else:
        synthesizer = Synthesizer.from_voice(found[0], device)
        heard = {
            evaluation.ORIGINALS: evaluation.hear_recordings(recordings, prompts, recogniser),
            evaluation.SYNTHESIS: evaluation.hear_voice(synthesizer, prompts, seed, recogniser, lambda _: None),
        }
        results["voice"] = voices[0]
        results["word_errors"] = evaluation.summarise(heard)
        results["word_error"] = results["word_errors"][evaluation.SYNTHESIS]["rate"]
        results["sentences"] = evaluation.rows(prompts, heard)
    text = report.markdown(results)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (("report.json", json.dumps(results, indent=1, ensure_ascii=False)), ("report.md", text)):
            with replacing(out / name) as temporary:
                temporary.write_text(content + "\n", encoding="utf-8")
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
