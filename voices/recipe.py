"""A recipe: a folder of `recipes/` that says how a voice is made of recordings.

recipe.json names its other files: options of `fastglow train` for each stage of a training, clips to leave out,
sentences to choose a checkpoint by.
"""

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError

RECIPES = Path(__file__).resolve().parent / "recipes"
FILE = "recipe.json"
MODELS = ("tacotron2", "waveglow")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Training:
    """A stage of a training: the run goes on with these options from `begin` to `max_iterations`."""

    model: str
    config: Path
    begin: int
    max_iterations: int

    @property
    def name(self) -> str:
        return self.config.stem


@dataclass(frozen=True)
class Recipe:
    """What recipe.json says; paths of its own files are resolved.

    Attributes:
        folder: of the recipe.
        name, language, description: of the voice, as `fastglow export-voice` takes them.
        speech: data set for `fastglow prepare`, relative to the working directory.
        lexicon: pronunciations, relative to the working directory; "": none.
        prepare: more options of `fastglow prepare`, by name.
        exclude: file of clips to leave out; None: none.
        screen: find clips to leave out with the recogniser, instead of `exclude`.
        tacotron2, waveglow: stages of the trainings.
        gpu: by model, a file of options for `python -m voices.gpu` that are not the run's, such as the batch size.
        development: file of id|text, sentences that no model is trained on; the checkpoint that the recogniser
            understands best is taken. None: the newest is. A WaveGlow is chosen by a third of the held-out clips.
        newest: how many of the newest checkpoints are compared, besides the best one and the end of each stage.
        export: more options of `fastglow export-voice`, by name.
        max_megabytes: of the voice.
        speaks_by_waveglow: whether the voice takes the WaveGlow, whose training is a goal of its own.
    """

    folder: Path
    name: str
    speech: str
    tacotron2: tuple[Training, ...]
    waveglow: tuple[Training, ...] = ()
    gpu: dict[str, Path] = field(default_factory=dict)
    language: str = "en-US"
    description: str = ""
    lexicon: str = ""
    prepare: dict[str, Any] = field(default_factory=dict)
    exclude: Path | None = None
    screen: bool = False
    development: Path | None = None
    newest: int = 3
    export: dict[str, Any] = field(default_factory=dict)
    max_megabytes: float = 20.0
    speaks_by_waveglow: bool = False

    def trainings(self, model: str) -> tuple[Training, ...]:
        """Of "tacotron2" or "waveglow"."""
        return {"tacotron2": self.tacotron2, "waveglow": self.waveglow}[model]

    def gpu_options(self, model: str) -> dict[str, Any]:
        """What a GPU trains with, unlike the run."""
        return _read_json(self.gpu[model]) if model in self.gpu else {}


def find_recipe(voice: str) -> Recipe:
    """The recipe of a name in `recipes/`, or of a folder.

    Raises:
        FastglowError: there is none, or a file of it is missing or says something else than it must.
    """
    folder = RECIPES / voice if (RECIPES / voice / FILE).is_file() else Path(voice)
    if folder.resolve().is_relative_to(Path.cwd()):
        folder = folder.resolve().relative_to(Path.cwd())  # shorter in what is printed
    path = folder / FILE
    if not path.is_file():
        known = ", ".join(sorted(file.parent.name for file in RECIPES.glob(f"*/{FILE}")))
        raise FastglowError(f"voice={voice} has no {FILE}: use one of {known}, or the folder of a recipe")
    values = _read_json(path)
    unknown = values.keys() - ({f.name for f in fields(Recipe)} - {"folder"})
    if unknown:
        raise FastglowError(f"{path} sets unknown values: {', '.join(sorted(unknown))}")
    for name, kind in (("name", str), ("speech", str), ("tacotron2", list)):
        if not isinstance(values.get(name), kind):
            raise FastglowError(f"{path}: {name}={values.get(name)!r} must be a {kind.__name__}")
    optional: dict[str, type] = {"waveglow": list, "gpu": dict, "prepare": dict, "export": dict}
    for name, of in optional.items():
        if not isinstance(values.get(name, of()), of):
            raise FastglowError(f"{path}: {name}={values[name]!r} must be a {of.__name__}")
    if not _NAME.fullmatch(values["name"]):
        raise FastglowError(f"{path}: name={values['name']!r} must be the name of a folder")
    for name in ("exclude", "development"):
        if values.get(name) is not None:
            values[name] = _own_file(folder, values[name])
    values["gpu"] = {model: _own_file(folder, name) for model, name in values.get("gpu", {}).items()}
    for model in MODELS:
        values[model] = _trainings(folder, model, values.get(model, []))
    if not values["tacotron2"]:
        raise FastglowError(f"{path}: tacotron2 must name the options of at least one training")
    return Recipe(folder=folder, **values)


def _trainings(folder: Path, model: str, names: list[str]) -> tuple[Training, ...]:
    stages: list[Training] = []
    for name in names:
        config = _own_file(folder, name)
        end = _read_json(config).get("max_iterations")
        begin = stages[-1].max_iterations if stages else 0
        if type(end) is not int or end <= begin:
            raise FastglowError(
                f"{config}: max_iterations={end} must be an integer above {begin}: a stage ends where the next begins"
            )
        stages.append(Training(model, config, begin, end))
    return tuple(stages)


def _own_file(folder: Path, name: str) -> Path:
    path = folder / str(name)
    if not path.is_file():
        raise FastglowError(f"{folder / FILE} names {name}, which is not in its folder")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FastglowError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise FastglowError(f"{path} must be a JSON object")
    return values
