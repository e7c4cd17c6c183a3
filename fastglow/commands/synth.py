"""The command `fastglow synth`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastglow.audio.formats import FORMATS
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.outputs import (
    CLOSED_PIPE,
    ClosedPipeError,
    check_output,
    check_writable,
    draws_progress,
    is_standard_output,
    output_format,
    write_speech,
)
from fastglow.voices import Voice, list_voices

from . import Invocation
from .inputs import read_whole
from .loading import load_engine
from .options import VoiceChoice, check_keywords, given_keywords, speech_options, text_to_speak, voice_options
from .ray_cluster import LOCAL, Cluster
from .reports import computed_with, nothing_spoken, sentence_reports
from .signals import ending_cleanly

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer

    from .batches import Spread

PLOTTED_SENTENCES = 10


@click.command()
@click.argument("text", nargs=-1)
@click.option("-i", "--input", "inputs", type=click.Path(), multiple=True,
              help="Read the text from a file; - is standard input (repeatable: one after the other). UTF-8, UTF-16 or "
                   "UTF-32 with a byte order mark, or Windows-1252.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(),
              help="File to write, in the format of its suffix; - is standard output. With --json-lines: folder to "
                   "write to, made if there is none.")  # fmt: skip
@click.option("--format", type=click.Choice(list(FORMATS), case_sensitive=False),
              help="Audio format. Default: --output's suffix; wav for standard output. Opus is at 24 kHz.")  # fmt: skip
@click.option("--raw", is_flag=True,
              help="Write 16-bit little-endian mono samples without a header, as soon as they are made.")  # fmt: skip
@click.option(
    "--chunk-frames", type=int, help="With --raw: mel frames of the first chunk; later ones grow. Default: 16."
)
@click.option("--warmup", is_flag=True,
              help="Before the first text, load, compile and on a GPU record all that speaking needs.")  # fmt: skip
@click.option("--json-lines", is_flag=True,
              help="Speak many texts into many files. The input has a JSON object a line: text, out (the file), and "
                   "format, voice or the like instead of the options'. Exit code 1 if one fails.")  # fmt: skip
@click.option(
    "--resume", is_flag=True, help="With --json-lines: leave out what an earlier run has made of these lines."
)
@click.option("--shard", metavar="I/N",
              help="With --json-lines: speak every N-th line only, from line I on, which counts from 0: other "
                   "processes speak the rest.")  # fmt: skip
@click.option("--ray", is_flag=False, flag_value=LOCAL, metavar="[ADDRESS]",
              help="With --json-lines: speak on the GPUs, or CPUs, of a Ray cluster: auto, HOST:PORT or "
                   "ray://HOST:PORT. Default: one that is started on this machine.")  # fmt: skip
@click.option(
    "--ray-workers", type=click.IntRange(1), help="Processes that speak with --ray. Default: one a GPU, or one a CPU."
)
@voice_options
@click.option("--list-voices", is_flag=True, help="List the bundled voices and exit.")
@speech_options
@click.option("--plot", type=click.Path(),
              help="Save alignment and mel of the first 10 sentences as PNG (needs matplotlib).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="Report as one JSON object, on standard output if free; with --json-lines, one a job.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No report and no progress bar; warnings are still printed.")
@click.pass_obj
def synth(
    invocation: Invocation, text: tuple[str, ...], inputs: tuple[str, ...], output: str | None, format: str | None,
    raw: bool, chunk_frames: int | None, warmup: bool, json_lines: bool, resume: bool, list_voices: bool,
    plot: str | None, as_json: bool, quiet: bool, **options: Any,
) -> int | None:  # fmt: skip
    """Speak TEXT, or --input, or standard input."""
    if list_voices:
        _print_voices()
        return None
    with ending_cleanly():
        return _synth(
            invocation, text, inputs, output, format, raw, chunk_frames, warmup, json_lines, resume, plot, as_json,
            quiet, options,
        )  # fmt: skip


def _synth(
    invocation: Invocation, text: tuple[str, ...], inputs: tuple[str, ...], output: str | None, format: str | None,
    raw: bool, chunk_frames: int | None, warmup: bool, json_lines: bool, resume: bool, plot: str | None, as_json: bool,
    quiet: bool, options: dict[str, Any],
) -> int | None:  # fmt: skip
    if invocation.owns_process:
        load_engine()
    voice, keywords = VoiceChoice.of(options), given_keywords(options)
    if json_lines:
        _refuse("--json-lines", {"TEXT": text, "--raw": raw, "--plot": plot, "--chunk-frames": chunk_frames})
        check_keywords(keywords)
        from .batches import speak_jobs
        from .jobs import Defaults

        spread = _spread(options)
        try:
            return speak_jobs(inputs, output, Defaults(voice, format, keywords), spread, resume, warmup, as_json, quiet)
        except ClosedPipeError:
            return CLOSED_PIPE
    for name, value in {"resume": resume or None, **options}.items():
        if name in ("resume", "shard", "ray", "ray_workers") and value is not None:
            raise FastglowError(f"--{name.replace('_', '-')} is for --json-lines: leave it out")
    whole_text = read_whole(text, inputs)
    if output is None:
        raise FastglowError("no output given: pass -o FILE.wav, or -o - for standard output")
    check_output(output)
    if raw:
        _refuse("--raw", {"--plot": plot, "--format": format})
        if Path(output).suffix[1:].lower() in FORMATS:
            raise FastglowError(f"--raw writes no header, which {output} needs: name it .pcm, or leave --raw out")
    elif chunk_frames is not None:
        raise FastglowError(f"--chunk-frames {chunk_frames} is for --raw: leave it out")
    else:
        format = output_format(output, format)
    if plot:
        from fastglow.plotting import require_matplotlib

        check_writable(plot)
        require_matplotlib()
    if not whole_text.strip():
        raise FastglowError("the text is empty: pass some words, -i FILE, or text on standard input")

    check_keywords(keywords)
    whole_text, keywords = text_to_speak(whole_text, keywords)
    if format is None:
        from .raw import stream_raw

        if chunk_frames is not None:
            if chunk_frames < 1:
                raise FastglowError(f"--chunk-frames {chunk_frames} must be at least 1")
            keywords["chunk_frames"] = chunk_frames
        try:
            report = stream_raw(whole_text, output, voice.load(warmup), keywords, announce=not quiet)
        except ClosedPipeError:
            return CLOSED_PIPE
    else:
        keywords["progress"] = draws_progress(quiet)
        report = _speak(whole_text, output, format, plot, voice.load(warmup), keywords)
    report["warnings"] = invocation.warnings
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False), err=is_standard_output(output))
    elif not quiet:
        click.echo(_line(report), err=True)
    return None


def _spread(options: dict[str, Any]) -> "Spread":
    from .batches import Spread
    from .inputs import EVERY_LINE, Shard

    shard, address, workers = options["shard"], options["ray"], options["ray_workers"]
    if workers is not None and address is None:
        raise FastglowError(f"--ray-workers {workers} is for --ray: leave it out")
    return Spread(
        Shard.parse(shard) if shard is not None else EVERY_LINE,
        Cluster(address, workers) if address is not None else None,
    )


def _refuse(option: str, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value not in (None, ()) and value is not False:  # 0 was given, too
            raise FastglowError(f"{option} does not go with {name}: leave one of them out")


def _print_voices() -> None:
    for name in list_voices():
        voice = Voice.load(name)
        click.echo(f"{name}\t{voice.language}\t{voice.description}")


def _speak(
    text: str, output: str, format: str, plot: str | None, synthesizer: "Synthesizer", keywords: dict[str, Any]
) -> dict[str, Any]:
    """Speaks a text into a file or stream, and returns the report."""
    speech = synthesizer.synthesize(text, **keywords)
    if not speech.mel.shape[1]:
        raise nothing_spoken(text)
    with _plotted(speech, plot):
        write_speech(speech, output, format)
    compute = speech.timings["total"]
    return {
        "output": output,
        "sample_rate": FORMATS[format].rate_for(speech.sample_rate),
        "audio_seconds": speech.seconds,
        "compute_seconds": compute,
        "acoustic_seconds": speech.timings["acoustic"],
        "vocoder_seconds": speech.timings["vocoder"],
        "times_real_time": speech.seconds / compute,
        "mel_frames": speech.mel.shape[1],
        "seed": speech.seed,
        **computed_with(synthesizer),
        "sentences": sentence_reports(speech),
    }


def _line(report: dict[str, Any]) -> str:
    how = (
        "(first audio after {first_audio_seconds:.2f} s)"
        if "first_audio_seconds" in report
        else "(text to mel {acoustic_seconds:.2f} s, vocoder {vocoder_seconds:.2f} s), {mel_frames} mel frames, "
        "{n_sentences} sentence(s)"
    )
    line = "{output}: {audio_seconds:.2f} s of audio in {compute_seconds:.2f} s, {times_real_time:.1f} x real time "
    return (line + how + ", {device}, {dtype}, seed {seed}").format(
        **report, n_sentences=len(report.get("sentences", ()))
    )


@contextmanager
def _plotted(speech: "Speech", path: str | None) -> Iterator[None]:
    """Saves the plot to `path`, if any, once the block, which saves the audio, has succeeded."""
    if not path:
        yield
        return
    from fastglow.plotting import plot_synthesis

    # The alignment's size grows with the square of the text's length.
    shown = replace(speech, sentences=speech.sentences[:PLOTTED_SENTENCES])
    title = " ".join(sentence.text for sentence in shown.sentences)
    figure = plot_synthesis({"mel": shown.mel}, shown.alignment, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
        yield
