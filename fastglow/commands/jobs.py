"""The jobs of `fastglow synth --json-lines`: a JSON object a line."""

import json
import os
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastglow.audio.io import check_format
from fastglow.errors import FastglowError
from fastglow.json_values import checked, read_object, shown
from fastglow.outputs import check_writable, is_stream

from .inputs import Line
from .options import SPEECH_OPTIONS, VoiceChoice, given_keywords, text_to_speak

KEYS: dict[str, type] = {
    **{"text": str, "out": str, "format": str, "voice": str},
    **{name: option.type for name, option in SPEECH_OPTIONS.items()},
}


@dataclass(frozen=True)
class Defaults:
    """What a line does not say: the options of the command."""

    voice: VoiceChoice
    format: str | None
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A text to speak into a file.

    Attributes:
        line: asks for it.
        text: without Markdown, if it was to be read so.
        out: the file to write; what it lacks of folders may be made.
        format: of the file, a key of `fastglow.audio.formats.FORMATS`.
        voice: speaks it.
        keywords: of `Synthesizer.synthesize`.
    """

    line: Line
    text: str
    out: Path
    format: str
    voice: VoiceChoice
    keywords: dict[str, Any]

    @property
    def digest(self) -> str:
        """Equal for jobs that ask for the same speech in the same format. The device counts as rounding."""
        voice = {
            name: value for name, value in asdict(self.voice).items() if value not in (None, ()) and name != "device"
        }
        return sha256(json.dumps([self.text, self.format, voice, self.keywords], sort_keys=True).encode()).hexdigest()


class JobReader:
    """Makes jobs of lines.

    Args:
        defaults: for what a line does not say.
        folder: of the outputs; None: the working directory, and a line must name its output.
        kept: a file that must not be an output.
    """

    def __init__(self, defaults: Defaults, folder: str | None, kept: Path):
        self.defaults = defaults
        self.folder = folder
        self._claims = {os.path.realpath(kept): "the journal of --resume"}

    def read(self, line: Line) -> Job:
        """The job that a line asks for.

        Raises:
            FastglowError: the line is no JSON object, has unknown keys or values of other types, or its output has
                been claimed by an earlier line, has an unknown format or cannot be written.
        """
        given = _parse(line.data).items()
        values = {name: checked(name, value, KEYS[name]) for name, value in given if value is not None}
        text = values.get("text", "")
        if not text.strip():
            raise FastglowError('"text" is missing or empty: add some words')
        format = values.get("format", self.defaults.format)
        out = self._out(values.get("out"), format, line)
        format = check_format(out, format)
        voice = replace(self.defaults.voice, voice=values["voice"]) if "voice" in values else self.defaults.voice
        text, keywords = text_to_speak(text, {**self.defaults.keywords, **given_keywords(values)})
        self._claim(out, line)
        return Job(line, text, out, format, voice, keywords)

    def _out(self, name: str | None, format: str | None, line: Line) -> Path:
        if name is None:
            if self.folder is None:
                raise FastglowError('"out" is missing: add it, or pass -o FOLDER for numbered files')
            name = f"{line.position:05}.{(format or 'wav').lower()}"
        out = Path(self.folder or "", name)
        try:
            if "\0" in name or is_stream(name) or is_stream(str(out)):
                raise FastglowError(f"cannot write {shown(name)}: it is no regular file")
            check_writable(str(self._nearest_folder(out) / out.name))
        except OSError as error:
            raise FastglowError(f"cannot write {out}: {error.strerror}") from error
        return out

    def _nearest_folder(self, out: Path) -> Path:
        """The folder of `out`; one above it if it is still to be made, which is done below `self.folder` only."""
        folder = out.parent
        if self.folder is not None and Path(os.path.abspath(out)).is_relative_to(os.path.abspath(self.folder)):
            while not folder.exists():
                folder = folder.parent
        return folder

    def _claim(self, out: Path, line: Line) -> None:
        path = os.path.realpath(out)
        if path in self._claims:
            raise FastglowError(f"{out} is also the output of {self._claims[path]}: name another file")
        self._claims[path] = line.place


def _parse(data: bytes) -> dict[str, Any]:
    values = read_object(data, "the line", '{"text": ..., "out": ...}', "save the file as UTF-8")
    unknown = sorted(values.keys() - KEYS.keys())
    if unknown:
        raise FastglowError(f"unknown key {shown(unknown[0])}: use {', '.join(KEYS)}")
    return values
