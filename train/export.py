"""Makes a voice of trained models: a folder for `fastglow synth --voice`, independent of the runs' folders."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastglow.audio import MelConfig
from fastglow.checkpoint import (
    LexiconFile,
    audio_differences,
    inspect_checkpoint,
    load_checkpoint,
    save_checkpoint,
    trained_with,
)
from fastglow.checkpoint.provenance import KEY
from fastglow.engine.acoustic import Acoustic
from fastglow.engine.frontend import Frontend
from fastglow.engine.settings import Settings, check_mel_channels, resolve_settings
from fastglow.engine.speaking import Speaker
from fastglow.engine.vocoders import build_vocoder
from fastglow.errors import FastglowError
from fastglow.files import filling
from fastglow.models import Tacotron2, WaveGlow
from fastglow.text import Lexicon
from fastglow.text.cleaners import find_cleaner
from fastglow.voices import AS_TRAINED, MIN_LEVEL

from .checkpointing import BEST, numbered_checkpoints

logger = logging.getLogger(__name__)

_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
TITLES: dict[type, str] = {Tacotron2: "Tacotron 2", WaveGlow: "WaveGlow"}


@dataclass
class VoiceOptions:
    """What voice.json says beyond what the models determine; see `fastglow.voices.Voice`.

    Attributes:
        name: None: the folder's.
        language: a BCP 47 tag.
        description: None: how long the models were trained.
        vocoder: None: waveglow if there is one, else griffin-lim.
        sigma, denoise: of WaveGlow.
        lexicon: file to use instead of the one that the Tacotron 2 was trained with.
        dtype: of the weights in the files.
    """

    name: str | None = None
    language: str = "en-US"
    description: str | None = None
    vocoder: str | None = None
    sigma: float = 0.6
    denoise: float = 0.0
    lexicon: str | os.PathLike | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not _LANGUAGE.fullmatch(self.language):
            raise FastglowError(f"language={self.language!r} must be a BCP 47 tag such as en-US or de")
        for field in ("name", "description"):
            text = getattr(self, field)
            if text is not None and not (text.isprintable() and text.strip()):
                raise FastglowError(f"{field}={text!r} must be one line of text")
        for field in ("sigma", "denoise"):
            if not 0 <= getattr(self, field) < math.inf:
                raise FastglowError(f"{field}={getattr(self, field)} must be finite and not negative")


@dataclass
class Trained:
    """A model from a run.

    Attributes:
        given: the path that the user passed.
        file: the checkpoint, in the run's folder or `given` itself.
        model: its model, in float32 on the CPU.
    """

    given: str
    file: Path
    model: Tacotron2 | WaveGlow

    @property
    def title(self) -> str:
        return TITLES[type(self.model)]

    @property
    def training(self) -> str:
        """How long it was trained, if the file says so."""
        iteration = inspect_checkpoint(self.file).iteration
        return self.title if iteration is None else f"{self.title} after {iteration:,} iterations"


def load_run(run: str | os.PathLike, best: bool = False) -> Trained:
    """The model of a run.

    Args:
        run: a run's folder, of which the newest undamaged checkpoint is read (a warning names the others), or a
            checkpoint file of any published format.
        best: of a folder, read the checkpoint with the lowest validation loss.

    Raises:
        FastglowError: nothing there, or nothing that can be read.
    """
    folder = Path(run)
    if not folder.exists():
        raise FastglowError(f"{run} does not exist: pass the output folder of a `fastglow train`, or a checkpoint file")
    if not folder.is_dir():
        return Trained(str(run), folder, load_checkpoint(folder))
    if best:
        if not (folder / BEST).is_file():
            raise FastglowError(f"{run} holds no {BEST}: leave out --best to take the newest checkpoint")
        return Trained(str(run), folder / BEST, load_checkpoint(folder / BEST))
    numbered = numbered_checkpoints(folder)
    if not numbered:
        raise FastglowError(f"{run} holds no checkpoint_*.pt: pass the output folder of a `fastglow train`, or a file")
    for path in numbered:
        try:
            return Trained(str(run), path, load_checkpoint(path))
        except FastglowError as error:
            logger.warning("skipping %s", error)
    raise FastglowError(f"every checkpoint in {run} is damaged: pass a checkpoint file that can be read")


def export_voice(
    tacotron2: str | os.PathLike,
    waveglow: str | os.PathLike | None,
    out: str | os.PathLike,
    options: VoiceOptions | None = None,
    *,
    best: bool = False,
) -> list[Path]:
    """Writes voice.json, the models as safetensors and, if the Tacotron 2 reads one, the lexicon.

    Args:
        tacotron2, waveglow: runs, see `load_run`; None: without a WaveGlow.
        out: the folder, new or empty. If anything fails it is left as it was.
        options: None: the defaults.
        best: see `load_run`.

    Returns:
        the checkpoints that were read.

    Raises:
        FastglowError: a run that cannot be read or is the other model's, models that do not fit each other, a missing
            lexicon, or a folder that cannot be written or is not empty.

    Warns:
        OtherwiseTrainedWarning: the lexicon has changed since the training.
    """
    options = options or VoiceOptions()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FastglowError(f"{out} exists and is not an empty folder: pass another --out, or remove it")
    given = [run for run in (tacotron2, waveglow) if run is not None]
    if best and not any(Path(run).is_dir() for run in given):
        raise FastglowError(f"--best chooses a checkpoint of a run's folder, {given[0]} is none: leave it out")
    runs = [load_run(run, best) for run in given]
    _check_order(runs)
    _check_audio(runs)
    acoustic, vocoder = runs[0].model, runs[1].model if len(runs) > 1 else None
    assert isinstance(acoustic, Tacotron2) and (vocoder is None or isinstance(vocoder, WaveGlow))
    settings = resolve_settings(acoustic, vocoder, None, None, options.lexicon or AS_TRAINED)
    name = options.vocoder or ("griffin-lim" if vocoder is None else "waveglow")
    speaker = _speaker(acoustic, vocoder, settings, name, options)
    description: dict[str, object] = {
        "name": options.name or folder.resolve().name,
        "language": options.language,
        "description": options.description or ", ".join(run.training for run in runs),
        "tacotron2": "tacotron2.safetensors",
        **({"waveglow": "waveglow.safetensors"} if vocoder is not None else {}),
        "vocoder": name,
        "text_cleaners": list(settings.text_cleaners),
    }
    try:
        with filling(folder) as temporary:
            lexicon = _copy_lexicon(acoustic, settings.lexicon, options.lexicon, temporary)
            description |= {"lexicon": lexicon, "audio": settings.audio.as_dict()}
            description |= {"sigma": options.sigma, "denoise": options.denoise, "level": _level(speaker)}
            for run in runs:
                _save(run, temporary, settings.audio, lexicon, options.dtype)
            text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
            (temporary / "voice.json").write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise FastglowError(f"{out} cannot be written: {error.strerror}") from error
    return [run.file for run in runs]


def _check_order(runs: Sequence[Trained]) -> None:
    """Checks that the first model is a Tacotron 2 and the second, if any, a WaveGlow."""
    found = [type(run.model) for run in runs]
    if found == [WaveGlow, Tacotron2]:
        raise FastglowError(f"{runs[0].given} is a WaveGlow and {runs[1].given} a Tacotron 2: swap them")
    if found == [WaveGlow]:
        raise FastglowError(f"{runs[0].given} is a WaveGlow: pass a Tacotron 2 before it")
    if found == [WaveGlow, WaveGlow]:
        raise FastglowError(f"{runs[0].given} is a WaveGlow, must be a Tacotron 2, as {runs[1].given} is a WaveGlow")
    if found == [Tacotron2, Tacotron2]:
        raise FastglowError(f"{runs[1].given} is a Tacotron 2, must be a WaveGlow: a voice has one of each")


def _check_audio(runs: Sequence[Trained]) -> None:
    known = [trained_with(run.model).audio for run in runs]
    if len(known) == 2 and known[0] is not None and known[1] is not None and known[0] != known[1]:
        raise FastglowError(
            f"{runs[0].given} and {runs[1].given} were trained with different audio parameters "
            f"({audio_differences(known[0], known[1])}): export models that were trained on the same prepared data"
        )
    for run, audio in zip(runs, known, strict=True):
        if audio is None and not any(known):
            logger.warning("%s does not say its audio parameters: those of the published models are used", run.given)
        elif audio is None:
            logger.warning("%s does not say its audio parameters: those of the other model are used", run.given)


def _speaker(
    acoustic: Tacotron2, waveglow: WaveGlow | None, settings: Settings, vocoder: str, options: VoiceOptions
) -> Speaker:
    """What a synthesis makes of the models: each of them checks its part."""
    for cleaner in settings.text_cleaners:
        find_cleaner(cleaner)
    frontend = Frontend(settings.text_cleaners, acoustic.config.n_symbols, settings.lexicon, settings.symbols)
    check_mel_channels(acoustic, settings.audio)
    if waveglow is None and vocoder == "waveglow":
        raise FastglowError("vocoder=waveglow needs a WaveGlow: pass its run after the Tacotron 2's, or griffin-lim")
    built = {
        name: build_vocoder(name, settings.audio, waveglow, options.sigma, options.denoise)
        for name in {vocoder, *(["waveglow"] if waveglow is not None else [])}
    }
    frame_seconds = settings.audio.hop_length / settings.audio.sampling_rate
    return Speaker(settings.audio, frontend, Acoustic(acoustic.eval(), frame_seconds), built[vocoder], level=None)


def _level(speaker: Speaker) -> float | None:
    """Of the voice's speech, so that no synthesis has to measure it; None if there is none that voice.json may have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a sentence that is not the user's
        level = speaker.measure_level()
    return round(level, 4) if level is not None and MIN_LEVEL <= level <= 0 else None


def _copy_lexicon(
    acoustic: Tacotron2, lexicon: Lexicon | None, given: str | os.PathLike | None, folder: Path
) -> str | None:
    """Copies the lexicon in use; returns the name of the copy, None if there is none."""
    known = trained_with(acoustic).lexicon
    if lexicon is None:
        return None
    path = Path(known.path if given is None and known is not None else given or "")
    data = path.read_bytes()
    name = "lexicon.txt.gz" if data.startswith(b"\x1f\x8b") else "lexicon.txt"
    (folder / name).write_bytes(data)
    if Lexicon(folder / name).digest != lexicon.digest:
        raise FastglowError(f"the lexicon {path} changed while it was read: export again")
    if given is not None and known is None:
        logger.warning("the Tacotron 2 was trained without a lexicon: it may not be able to read ARPAbet")
    elif given is not None and known is not None and known.digest not in (None, lexicon.digest):
        logger.warning("the pronunciations of %s are not those that the Tacotron 2 was trained with", given)
    return name


def _save(run: Trained, folder: Path, audio: MelConfig, lexicon: str | None, dtype: torch.dtype) -> None:
    """Writes a model; its record of the training names the copy of the lexicon, and no path of the run."""
    model = run.model
    known = trained_with(model)
    if known.lexicon is not None:
        known = replace(known, lexicon=LexiconFile(lexicon or Path(known.lexicon.path).name, known.lexicon.digest))
    setattr(model, KEY, known)
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor.to(dtype)).all()]
    if bad:
        kind = str(dtype).removeprefix("torch.")
        raise FastglowError(
            f"{run.file} has weights that are not finite in {kind} ({', '.join(bad[:3])}): take an earlier checkpoint"
            + ("" if dtype == torch.float32 else ", or --dtype float32")
        )
    save_checkpoint(model, folder / f"{'tacotron2' if isinstance(model, Tacotron2) else 'waveglow'}.safetensors",
                    dtype=dtype)  # fmt: skip
