"""The `fastglow` command. What a user can mend is one line on standard error and exit code 2."""

import importlib
import json
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import click

from fastglow._version import __version__
from fastglow.errors import FastglowError
from fastglow.voices import DEFAULT_VOICE, VOCODERS, Voice, list_voices

# Commands whose modules are slow to import, and only loaded when called for.
_ELSEWHERE = {"prepare": "fastglow.train.command", "train": "fastglow.train.command"}

DTYPES = ("float32", "bfloat16", "float16")


class _Commands(click.Group):
    def list_commands(self, ctx):
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx, name):
        if name in _ELSEWHERE:
            return getattr(importlib.import_module(_ELSEWHERE[name]), name)
        return super().get_command(ctx, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastglow")
def cli():
    """Tacotron 2 + WaveGlow speech synthesis."""


@cli.command()
@click.argument("text", nargs=-1)
@click.option("-i", "--input", "input_file", type=click.Path(), help="Read the text from a file; - is standard input.")
@click.option("-o", "--output", type=click.Path(), help="WAV or FLAC file to write; - is WAV to standard output.")
@click.option("-v", "--voice", default=DEFAULT_VOICE, show_default=True, help="Bundled voice, or a voice's folder.")
@click.option("--list-voices", is_flag=True, help="List the bundled voices and exit.")
@click.option(
    "--tacotron2",
    type=click.Path(),
    help="Acoustic model of any published format.",
)
@click.option("--waveglow", type=click.Path(), help="WaveGlow of any published format.")
@click.option("--vocoder", type=click.Choice(VOCODERS), help="Default: the voice's, or waveglow where one is given.")
@click.option("--cleaners", multiple=True, help="Text cleaner (repeatable). Default: the voice's, or english_cleaners.")
@click.option("--seed", type=int, help="Same seed, same audio. Default: a new one each time, which is printed.")
@click.option("--sigma", type=float, help="Standard deviation of WaveGlow's noise. Default: the voice's, or 0.6.")
@click.option("--denoise", type=float, help="Strength of WaveGlow's denoiser. Default: the voice's, or 0 (off).")
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True,
              help="Type of the weights.")  # fmt: skip
@click.option("--sentence-silence", default=0.2, show_default=True, help="Seconds of silence between sentences.")
@click.option("--plot", type=click.Path(), help="Save alignment and mel spectrogram as PNG (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object, on standard output if it is free.")
@click.option("-q", "--quiet", is_flag=True, help="No report and no progress bar; warnings are still printed.")
def synth(text, input_file, output, list_voices, plot, as_json, quiet, seed, sentence_silence, **options):
    """Speak TEXT, or --input, or standard input."""
    if list_voices:
        _print_voices()
        return
    text = _read_text(text, input_file)
    if output is None:
        raise FastglowError("no output given: pass -o FILE.wav, or -o - for standard output")
    for path in (output, plot):
        _check_writable(path)
    if not text.strip():
        raise FastglowError("the text is empty: pass some words, -i FILE, or text on standard input")

    from fastglow.audio import write_audio

    with _warnings_as_lines() as caught:
        synthesizer = _build_synthesizer(**options)
        speech = synthesizer.synthesize(text, seed, sentence_silence=sentence_silence, progress=not quiet)
        if not speech.sentences:
            raise FastglowError(f"there is nothing to speak in {text.strip()[:60]!r}: pass some words")
        if plot:
            _save_plot(speech, plot)
        if output == "-":
            write_audio(sys.stdout.buffer, speech.audio, speech.sample_rate)
            sys.stdout.buffer.flush()
        else:
            write_audio(output, speech.audio, speech.sample_rate)
    report = _report(speech, output, synthesizer, caught)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False), err=output == "-")
    elif not quiet:
        click.echo(
            "{output}: {audio_seconds:.2f} s of audio in {compute_seconds:.2f} s, {times_real_time:.1f} x real time "
            "(text to mel {acoustic_seconds:.2f} s, vocoder {vocoder_seconds:.2f} s), {mel_frames} mel frames, "
            "{n_sentences} sentence(s), {device}, seed {seed}".format(**report, n_sentences=len(report["sentences"])),
            err=True,
        )


@cli.command()
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@click.option("--to", type=click.Choice(["fastglow", "nvidia"]), default="fastglow", show_default=True,
              help="fastglow: safetensors; nvidia: DeepLearningExamples' layout.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), help="Type of the weights to write. Default: as they are.")
def convert(source, target, to, dtype):
    """Convert a checkpoint of any published format."""
    import torch

    from fastglow.checkpoint import convert_checkpoint

    _check_writable(target)
    convert_checkpoint(source, target, to=to, dtype=dtype and getattr(torch, dtype))
    click.echo(f"{source} -> {target}")


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file, as_json):
    """Print what a checkpoint file is."""
    from dataclasses import asdict

    from fastglow.checkpoint import inspect_checkpoint

    info = inspect_checkpoint(file)
    click.echo(json.dumps(asdict(info), default=str) if as_json else str(info))


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for what a user can mend, 130 after Ctrl-C."""
    try:
        return cli.main(args, prog_name="fastglow", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except click.ClickException as error:
        message = error.format_message()
    except FastglowError as error:
        message = str(error)
    except click.Abort:
        return 130
    except BrokenPipeError:
        # Nobody reads standard output any more; the interpreter's own flush at exit must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    click.echo(f"fastglow: {' '.join(message.split())}", err=True)
    return 2


def _print_voices() -> None:
    for name in list_voices():
        voice = Voice.load(name)
        click.echo(f"{name}\t{voice.language}\t{voice.description}")


def _read_text(arguments: tuple[str, ...], input_file: str | None) -> str:
    if arguments and input_file:
        raise FastglowError(f"text given both as an argument and as --input {input_file}: pass one of them")
    if arguments:
        return " ".join(arguments)
    try:
        if input_file and input_file != "-":
            data = Path(input_file).read_bytes()
        elif sys.stdin is None or sys.stdin.isatty():
            raise FastglowError("no text given: pass it as an argument, with -i FILE, or on standard input")
        else:
            data = sys.stdin.buffer.read()
    except OSError as error:
        raise FastglowError(f"cannot read {input_file or 'standard input'}: {error.strerror}") from error
    return data.decode("utf-8-sig", errors="replace")


def _check_writable(path: str | None) -> None:
    """Raises before the work is done what would be raised after it."""
    if path is None or path == "-":
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise FastglowError(f"cannot write {path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise FastglowError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK):
        raise FastglowError(f"cannot write {path}: no permission in {folder}")


def _build_synthesizer(voice, tacotron2, waveglow, vocoder, cleaners, sigma, denoise, device, dtype):
    import torch

    from fastglow.checkpoint import load_checkpoint
    from fastglow.engine.synthesizer import DEFAULT_SIGMA, Synthesizer

    dtype = getattr(torch, dtype)
    if tacotron2 is None and waveglow is None:
        return Synthesizer.from_voice(
            voice,
            device,
            dtype,
            vocoder=vocoder,
            sigma=sigma,
            denoise=denoise,
            text_cleaners=cleaners or None,
        )
    # A model given beside a voice takes the place of the voice's; both together need no voice.
    base = None if tacotron2 else Voice.load(voice)
    return Synthesizer(
        load_checkpoint(tacotron2 or base.tacotron2, expect="tacotron2"),
        vocoder or ("waveglow" if waveglow else "griffin-lim"),
        load_checkpoint(waveglow, expect="waveglow") if waveglow and vocoder != "griffin-lim" else None,
        audio=base.audio if base else None,
        text_cleaners=cleaners or (base.text_cleaners if base else ("english_cleaners",)),
        sigma=DEFAULT_SIGMA if sigma is None else sigma,
        denoise=denoise or 0.0,
        device=device,
        dtype=dtype,
    )


def _save_plot(speech, path) -> None:
    from fastglow.plotting import plot_synthesis

    title = " ".join(sentence.text for sentence in speech.sentences)
    figure = plot_synthesis({"mel": speech.mel}, speech.alignment, title)
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=100)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _report(speech, output, synthesizer, caught) -> dict:
    compute = speech.timings["total"]
    return {
        "output": output,
        "sample_rate": speech.sample_rate,
        "audio_seconds": speech.seconds,
        "compute_seconds": compute,
        "acoustic_seconds": speech.timings["acoustic"],
        "vocoder_seconds": speech.timings["vocoder"],
        "times_real_time": speech.seconds / compute,
        "mel_frames": speech.mel.shape[1],
        "seed": speech.seed,
        "device": str(synthesizer.device),
        "sentences": [
            {"text": s.text, "mel_frames": s.mel.shape[1], "audio_seconds": len(s.audio) / speech.sample_rate,
             "stopped": s.stopped}
            for s in speech.sentences
        ],
        "warnings": caught,
    }  # fmt: skip


@contextmanager
def _warnings_as_lines():
    """Prints each warning as one line on standard error and collects their texts."""
    caught: list[str] = []

    def show(message, category, filename, lineno, file=None, line=None):
        caught.append(str(message))
        click.echo(f"fastglow: warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield caught
