"""Voices: a folder with voice.json and the files that it names. The bundled ones are in this folder."""

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError
from fastglow.text import Lexicon

BUNDLED = Path(__file__).parent
DEFAULT_VOICE = "heart"
VOCODERS = ("griffin-lim", "waveglow")
MIN_LEVEL = -80
"""Of a voice's speech, in dBFS."""


class AsTrained(Enum):
    """The type of `AS_TRAINED`."""

    AS_TRAINED = "as trained"


AS_TRAINED: Final = AsTrained.AS_TRAINED
"""The lexicon that the acoustic model's checkpoint records, which may be none; None stands for no lexicon."""


@dataclass(frozen=True)
class Voice:
    """The contents of voice.json; the defaults are for checkpoints without one.

    Attributes:
        tacotron2: path of the acoustic model.
        waveglow: path of the neural vocoder, or None.
        vocoder: the default vocoder, one of `VOCODERS`.
        text_cleaners: the acoustic model's; None: those that its checkpoint records, else english_cleaners.
        lexicon: path of the pronunciations that the acoustic model reads as ARPAbet, or a `Lexicon` of several
            files; None: none; `AS_TRAINED`: the one that its checkpoint records, if any.
        audio: parameters of the mel that the models share; None: those that a checkpoint records, else those of the
            published models.
        sigma: default standard deviation of WaveGlow's noise.
        denoise: default strength of WaveGlow's denoiser.
        level: of the voice's speech, -80 to 0 dBFS, as `fastglow.audio.loudness.mel_level` measures it; None: unknown.
        name, language, description: for people; language is a BCP 47 tag.
    """

    tacotron2: Path
    waveglow: Path | None = None
    vocoder: str = "griffin-lim"
    text_cleaners: tuple[str, ...] | None = None
    lexicon: Path | Lexicon | AsTrained | None = AS_TRAINED
    audio: MelConfig | None = None
    sigma: float = 0.6
    denoise: float = 0.0
    level: float | None = None
    name: str = ""
    language: str = ""
    description: str = ""

    @classmethod
    def load(cls, name_or_folder: str | Path) -> "Voice":
        """Reads a voice, given the name of a bundled one, a folder, or the path of a voice.json.

        Raises:
            FastglowError: no such voice, or voice.json is incomplete or names missing files.
        """
        folder = _find(name_or_folder)
        path = folder / "voice.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            voice = cls(
                name=str(values["name"]),
                language=str(values["language"]),
                description=str(values["description"]),
                tacotron2=folder / values["tacotron2"],
                waveglow=folder / values["waveglow"] if values.get("waveglow") else None,
                vocoder=values["vocoder"],
                text_cleaners=tuple(values["text_cleaners"]),
                lexicon=_lexicon(folder, values),
                audio=MelConfig.from_dict(values["audio"]),
                sigma=float(values.get("sigma", cls.sigma)),
                denoise=float(values.get("denoise", cls.denoise)),
                level=values.get("level"),
            )
        except KeyError as error:
            raise FastglowError(f"{path} lacks {error}: add it") from error
        except FastglowError:
            raise
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FastglowError(f"{path} cannot be read as a voice description: {error}") from error
        if isinstance(values["text_cleaners"], str):
            raise FastglowError(f"{path}: text_cleaners must be a list of names")
        if voice.vocoder not in VOCODERS:
            raise FastglowError(f"{path}: vocoder {voice.vocoder!r} must be one of {', '.join(VOCODERS)}")
        level = voice.level
        if level is not None and (
            isinstance(level, bool) or not isinstance(level, int | float) or not MIN_LEVEL <= level <= 0
        ):
            raise FastglowError(f"{path}: level={level!r} must be {MIN_LEVEL} to 0 dBFS, or null where it is not known")
        for file in (voice.tacotron2, voice.waveglow, voice.lexicon):
            if isinstance(file, Path) and not file.is_file():
                raise FastglowError(f"{path} names {file.name}, which is not in {folder}: put it there")
        return voice


def list_voices() -> list[str]:
    """Names of the bundled voices."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/voice.json"))


def _lexicon(folder: Path, values: dict) -> Path | AsTrained | None:
    """The lexicon that voice.json names; none if it says null; the acoustic model's if it has no such entry."""
    if "lexicon" not in values:
        return AS_TRAINED
    return folder / values["lexicon"] if values["lexicon"] else None


def _find(name_or_folder: str | Path) -> Path:
    path = Path(name_or_folder)
    if path.name == "voice.json":
        path = path.parent
    for folder in (path, BUNDLED / path):
        if (folder / "voice.json").is_file():
            return folder
    raise FastglowError(
        f"unknown voice {str(name_or_folder)!r}: use a bundled one ({', '.join(list_voices()) or 'none'}) "
        "or a folder with a voice.json"
    )
