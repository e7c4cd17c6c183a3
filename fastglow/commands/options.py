"""Options that several commands, and the jobs of `fastglow synth --json-lines`, have in common."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from fastglow.errors import FastglowError
from fastglow.voices import DEFAULT_VOICE, VOCODERS, Voice

if TYPE_CHECKING:
    from fastglow.engine import Synthesizer

DTYPES = ("float32", "bfloat16", "float16")

Command = TypeVar("Command", bound=Callable[..., Any])


class SpeechOption(NamedTuple):
    flag: str
    type: type[bool] | type[int] | type[float]
    help: str


# A line makes an option of the command, a key of the jobs, and a part of what --resume compares.
SPEECH_OPTIONS = {
    "seed": SpeechOption("--seed", int, "Same seed, same audio. Default: a new one each time, which is printed."),
    "normalize": SpeechOption("--normalize/--no-normalize", bool, "Bring speech to a fixed loudness. Default: yes."),
    "volume": SpeechOption(
        "--volume", float, "Factor on the loudness; loud peaks are lowered, not clipped. Default: 1."
    ),
    "sentence_silence": SpeechOption("--sentence-silence", float, "Seconds between sentences. Default: 0.2."),
    "speed": SpeechOption("--speed", float, "0.5 to 4; 2 is twice as fast, at the same pitch. Default: 1."),
    "length_scale": SpeechOption("--length-scale", float, "1 / speed: above 1 is slower."),
    "trim_silence": SpeechOption(
        "--trim-silence/--no-trim-silence", bool, "Remove silence from the ends of sentences. Default: no."
    ),
    "markdown": SpeechOption(
        "--markdown/--no-markdown", bool, "Read Markdown as text: no marks, fenced code, addresses, emoji. Default: no."
    ),
}
"""Keywords of `Synthesizer.synthesize`, `synthesize_batch` and `stream`, passed on only if given; `length_scale` is
passed on as `speed`, and `markdown` changes the text (see `text_to_speak`)."""


def speech_options(command: Command) -> Command:
    """Decorator: one option for each of `SPEECH_OPTIONS`."""
    for name, option in reversed(SPEECH_OPTIONS.items()):
        command = click.option(option.flag, name, type=option.type, default=None, help=option.help)(command)
    return command


def given_keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `SPEECH_OPTIONS` that were given, as keywords of the engine.

    Raises:
        FastglowError: speed and length_scale are both given, or length_scale is out of range.
    """
    keywords = {name: options[name] for name in SPEECH_OPTIONS if options.get(name) is not None}
    scale = keywords.pop("length_scale", None)
    if scale is None:
        return keywords
    if "speed" in keywords:
        raise FastglowError(f"speed={keywords['speed']:g} and length_scale={scale:g} are both given: pass one of them")
    from fastglow.audio.stretch import SPEEDS

    low, high = (1 / speed for speed in reversed(SPEEDS))
    if not low <= scale <= high:
        raise FastglowError(f"length_scale={scale:g} must be a factor from {low:g} to {high:g}; 1 keeps the speed")
    return {**keywords, "speed": 1 / scale}


def text_to_speak(text: str, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text, without Markdown if it is to be read so, and the keywords of the engine."""
    keywords = {**keywords}
    if keywords.pop("markdown", False):
        from fastglow.text.markdown import without_markdown

        text = without_markdown(text)
    return text, keywords


def check_keywords(keywords: dict[str, Any]) -> None:
    """Raises FastglowError for a value out of range, before models are loaded."""
    from fastglow.engine.delivery import Delivery
    from fastglow.engine.seeds import check_seed

    Delivery(**{name: value for name, value in keywords.items() if name not in ("seed", "markdown")})
    check_seed(keywords.get("seed", 0))


_VOICE_OPTIONS = (
    click.option("-v", "--voice", help=f"Bundled voice, or a voice's folder. Default: {DEFAULT_VOICE}."),
    click.option("--tacotron2", type=click.Path(), help="Acoustic model of any published format."),
    click.option("--waveglow", type=click.Path(), help="WaveGlow of any published format."),
    click.option("--vocoder", type=click.Choice(VOCODERS), help="Default: the voice's, or waveglow if one is given."),
    click.option("--cleaners", multiple=True,
                 help="Text cleaner (repeatable). Default: the voice's or checkpoint's, or english_cleaners."),
    click.option("--lexicon", "lexicons", type=click.Path(), multiple=True,
                 help="Pronunciations in CMUdict's format, for a model trained on ARPAbet (repeatable; the first that "
                      "has a word counts, the voice's or checkpoint's own is last)."),
    click.option("--sigma", type=float, help="Standard deviation of WaveGlow's noise. Default: the voice's, or 0.6."),
    click.option("--denoise", type=float, help="Strength of WaveGlow's denoiser. Default: the voice's, or 0 (off)."),
    click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one."),
    click.option("--dtype", type=click.Choice(DTYPES),
                 help="Type of the weights. Default: bfloat16 on a CPU that has instructions for it, else float32."),
    click.option("--cpu-decoder", type=click.Choice(["int8"]),
                 help="On a CPU, read the decoder's LSTMs in 8 bits: less exact, faster for large voices."),
)  # fmt: skip


def voice_options(command: Command) -> Command:
    """Decorator: one option for each field of `VoiceChoice`."""
    for option in reversed(_VOICE_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class VoiceChoice:
    """The values of `voice_options`."""

    voice: str | None
    tacotron2: str | None
    waveglow: str | None
    vocoder: str | None
    cleaners: tuple[str, ...]
    lexicons: tuple[str, ...]
    sigma: float | None
    denoise: float | None
    device: str | None
    dtype: str | None
    cpu_decoder: str | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> "VoiceChoice":
        return cls(**{field.name: options[field.name] for field in fields(cls)})

    def resolve(self) -> Voice:
        """The voice with the chosen parts; loads no weights.

        Raises:
            FastglowError: unknown voice, or unreadable files.
        """
        from fastglow.engine.settings import with_lexicons, with_parts

        parts: dict[str, Any] = {
            "tacotron2": self.tacotron2 and Path(self.tacotron2),
            "waveglow": self.waveglow and Path(self.waveglow),
            "vocoder": self.vocoder or (self.waveglow and "waveglow"),
            "text_cleaners": self.cleaners or None,
            "sigma": self.sigma,
            "denoise": self.denoise,
        }
        parts = {name: value for name, value in parts.items() if value is not None}
        # --tacotron2 without --voice needs no voice; otherwise the given parts replace the voice's.
        if self.tacotron2 and not self.voice:
            voice = Voice(**parts)
        else:
            voice = with_parts(Voice.load(self.voice or DEFAULT_VOICE), **parts)
        return with_lexicons(voice, self.lexicons) if self.lexicons else voice

    def load(self, warmup: bool = False) -> "Synthesizer":
        """Loads the models.

        Args:
            warmup: do beforehand what first calls do.

        Raises:
            FastglowError: as `Synthesizer.from_voice`.
        """
        import torch

        from fastglow.engine import Synthesizer

        dtype = getattr(torch, self.dtype) if self.dtype else None
        synthesizer = Synthesizer.from_voice(self.resolve(), self.device, dtype, self.cpu_decoder)
        if warmup:
            synthesizer.warmup()
        return synthesizer
