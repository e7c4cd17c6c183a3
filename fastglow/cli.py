"""The `fastglow` command. An error that users can fix is one line on standard error and exit code 2."""

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from fastglow._version import __version__
from fastglow.audio.formats import FORMATS
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.outputs import check_output, check_writable, draws_progress, is_standard_output, write_speech
from fastglow.text_files import decode_argument, decode_text, read_text
from fastglow.voices import DEFAULT_VOICE, VOCODERS, Voice, list_voices

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer

# Commands whose modules are slow to import and are loaded on use.
_ELSEWHERE = {
    "prepare": "fastglow.train.command",
    "train": "fastglow.train.command",
    "plot": "fastglow.train.run_command",
    "export-voice": "fastglow.train.run_command",
}

PLOTTED_SENTENCES = 10
DTYPES = ("float32", "bfloat16", "float16")


class Invocation(NamedTuple):
    """What every command can read as `click.get_current_context().obj`."""

    arguments: list[str]
    warnings: list[str]  # shown so far


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE:
            return getattr(importlib.import_module(_ELSEWHERE[name]), name.replace("-", "_"))
        return super().get_command(ctx, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastglow")
def cli() -> None:
    """Tacotron 2 + WaveGlow speech synthesis."""


@cli.command()
@click.argument("text", nargs=-1)
@click.option("-i", "--input", "input_files", type=click.Path(), multiple=True,
              help="Read the text from a file; - is standard input (repeatable: one after the other). UTF-8, UTF-16 or "
                   "UTF-32 with a byte order mark, or Windows-1252.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(),
              help="File to write, in the format of its suffix; - is standard output.")  # fmt: skip
@click.option("--format", type=click.Choice(list(FORMATS), case_sensitive=False),
              help="Audio format. Default: --output's suffix; wav for standard output. Opus is at 24 kHz.")  # fmt: skip
@click.option("-v", "--voice", help=f"Bundled voice, or a voice's folder. Default: {DEFAULT_VOICE}.")
@click.option("--list-voices", is_flag=True, help="List the bundled voices and exit.")
@click.option("--tacotron2", type=click.Path(), help="Acoustic model of any published format.")
@click.option("--waveglow", type=click.Path(), help="WaveGlow of any published format.")
@click.option("--vocoder", type=click.Choice(VOCODERS), help="Default: the voice's, or waveglow if one is given.")
@click.option("--cleaners", multiple=True,
              help="Text cleaner (repeatable). Default: the voice's or checkpoint's, or english_cleaners.")  # fmt: skip
@click.option("--lexicon", "lexicons", type=click.Path(), multiple=True,
              help="Pronunciations in CMUdict's format, for a model trained on ARPAbet (repeatable; the first that has "
                   "a word counts, the voice's or checkpoint's own is last).")  # fmt: skip
@click.option("--seed", type=int, help="Same seed, same audio. Default: a new one each time, which is printed.")
@click.option("--sigma", type=float, help="Standard deviation of WaveGlow's noise. Default: the voice's, or 0.6.")
@click.option("--denoise", type=float, help="Strength of WaveGlow's denoiser. Default: the voice's, or 0 (off).")
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True,
              help="Type of the weights.")  # fmt: skip
@click.option("--normalize/--no-normalize", default=None, help="Bring speech to a fixed loudness. Default: yes.")
@click.option("--volume", type=float, help="Factor on the loudness; loud peaks are lowered, not clipped. Default: 1.")
@click.option("--sentence-silence", default=0.2, show_default=True, help="Seconds of silence between sentences.")
@click.option(
    "--plot", type=click.Path(), help="Save alignment and mel of the first 10 sentences as PNG (needs matplotlib)."
)
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object, on standard output if it is free.")
@click.option("-q", "--quiet", is_flag=True, help="No report and no progress bar; warnings are still printed.")
@click.pass_obj
def synth(
    invocation: Invocation, text: tuple[str, ...], input_files: tuple[str, ...], output: str | None, format: str | None,
    list_voices: bool, plot: str | None, as_json: bool, quiet: bool, seed: int | None, sentence_silence: float,
    normalize: bool | None, volume: float | None, **options: Any,
) -> None:  # fmt: skip
    """Speak TEXT, or --input, or standard input."""
    if list_voices:
        _print_voices()
        return
    from fastglow.threads import let_threads_sleep

    let_threads_sleep()  # before torch is loaded
    from fastglow.plotting import require_matplotlib

    whole_text = _read_text(text, input_files)
    if output is None:
        raise FastglowError("no output given: pass -o FILE.wav, or -o - for standard output")
    format = check_output(output, format)
    if plot:
        check_writable(plot)
        require_matplotlib()
    if not whole_text.strip():
        raise FastglowError("the text is empty: pass some words, -i FILE, or text on standard input")

    synthesizer = _build_synthesizer(**options)
    given = {"normalize": normalize, "volume": volume}
    loudness: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    speech = synthesizer.synthesize(
        whole_text, seed, sentence_silence=sentence_silence, progress=draws_progress(quiet), **loudness
    )
    if not speech.sentences:
        raise FastglowError(
            f"there is nothing to speak in {whole_text.strip()[:60]!r}, or the model returned no speech: pass some "
            "words, or another --seed"
        )
    with _plotted(speech, plot):
        write_speech(speech, output, format)
    report = _report(speech, output, synthesizer, invocation.warnings)
    report["sample_rate"] = FORMATS[format].rate_for(speech.sample_rate)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False), err=is_standard_output(output))
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
@click.option("--to", type=click.Choice(["fastglow", "nvidia"]),
              help="fastglow: safetensors; nvidia: DeepLearningExamples' layout (a torch file). Default: nvidia "
                   "for a TARGET such as x.pt, x.pth, x.ckpt or x.bin, else fastglow.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), help="Type of the weights to write. Default: as they are.")
def convert(source: str, target: str, to: str | None, dtype: str | None) -> None:
    """Convert a checkpoint of any published format."""
    import torch

    from fastglow.checkpoint import convert_checkpoint

    check_writable(target)
    convert_checkpoint(source, target, to=to, dtype=getattr(torch, dtype) if dtype else None)
    click.echo(f"{source} -> {target}")


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: str, as_json: bool) -> None:
    """Describe a checkpoint file."""
    from dataclasses import asdict

    from fastglow.checkpoint import inspect_checkpoint

    info = inspect_checkpoint(file)
    click.echo(json.dumps(asdict(info), default=str) if as_json else str(info))


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `exit_code`."""
    args = sys.argv[1:] if args is None else args

    def call() -> int | None:
        with _warnings_as_lines() as caught:
            obj = Invocation(args, caught)
            return cli.main(args, prog_name="fastglow", standalone_mode=False, obj=obj)

    return exit_code(call, "fastglow")


def exit_code(call: Callable[[], int | None], name: str) -> int:
    """The exit code of a click command `name`: 0, 2 for an error that users can fix, in one line, 130 after Ctrl-C."""
    try:
        return call() or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except click.ClickException as error:
        message = error.format_message()
    except FastglowError as error:
        message = str(error)
    except click.Abort:
        return 130
    except OSError as error:
        message = f"{error.filename or 'file'}: {error.strerror}"
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    return 2


def _print_voices() -> None:
    for name in list_voices():
        voice = Voice.load(name)
        click.echo(f"{name}\t{voice.language}\t{voice.description}")


def _read_text(arguments: tuple[str, ...], input_files: tuple[str, ...]) -> str:
    if arguments and input_files:
        raise FastglowError(f"text given both as an argument and as --input {input_files[0]}: pass one of them")
    if arguments:
        return decode_argument(" ".join(arguments))
    if input_files.count("-") > 1:
        raise FastglowError("--input - is given more than once: standard input can be read only once")
    # A blank line ends a sentence.
    return "\n\n".join(_read_standard_input() if path == "-" else read_text(path) for path in input_files or ("-",))


def _read_standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise FastglowError("no text given: pass it as an argument, with -i FILE, or on standard input")
    try:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    except OSError as error:
        raise FastglowError(f"cannot read standard input: {error.strerror}") from error


def _build_synthesizer(
    voice: str | None, tacotron2: str | None, waveglow: str | None, vocoder: str | None, cleaners: tuple[str, ...],
    lexicons: tuple[str, ...], sigma: float | None, denoise: float | None, device: str | None, dtype: str,
) -> "Synthesizer":  # fmt: skip
    import torch

    from fastglow.engine import Synthesizer
    from fastglow.engine.settings import with_lexicons, with_parts

    given: dict[str, Any] = {
        "tacotron2": tacotron2 and Path(tacotron2),
        "waveglow": waveglow and Path(waveglow),
        "vocoder": vocoder or (waveglow and "waveglow"),
        "text_cleaners": cleaners or None,
        "sigma": sigma,
        "denoise": denoise,
    }
    given = {name: value for name, value in given.items() if value is not None}
    # --tacotron2 without --voice needs no voice; otherwise the given parts replace the voice's.
    base = Voice(**given) if tacotron2 and not voice else with_parts(Voice.load(voice or DEFAULT_VOICE), **given)
    if lexicons:
        base = with_lexicons(base, lexicons)
    return Synthesizer.from_voice(base, device, getattr(torch, dtype))


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


def _report(speech: "Speech", output: str, synthesizer: "Synthesizer", caught: list[str]) -> dict[str, Any]:
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
             "stopped": s.stopped, "attempts": s.attempts, "cut": s.cut}
            for s in speech.sentences
        ],
        "warnings": caught,
    }  # fmt: skip


@contextmanager
def _warnings_as_lines() -> Iterator[list[str]]:
    """Prints each warning as one line on standard error and collects the texts."""
    caught: list[str] = []

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        caught.append(str(message))
        click.echo(f"fastglow: warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield caught
