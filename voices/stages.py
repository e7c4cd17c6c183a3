"""The stages from recordings to a voice. Each is recognised as done by what it wrote."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import checkpoint_path
from fastglow.train.manifest import PreparedDataset
from fastglow.train.sources import read_exclusions, read_sources

from .recipe import MODELS, Training
from .running import FASTGLOW, PYTHON, Command, options_of
from .work import EXCLUDED, Origin, Work, iterations_of, keep, read_json


class Stage(ABC):
    """A step of a recipe.

    Attributes:
        name: for people.
        written: what it writes, while no other process writes or reads it.
        read: what no other process may write meanwhile.
    """

    name: str
    written: Path
    read: tuple[Path, ...] = ()

    def __init__(self, work: Work):
        self.work = work
        self.recipe = work.recipe

    @abstractmethod
    def is_done(self) -> bool: ...

    def start(self) -> None:
        """Called before the commands are run."""
        return

    @abstractmethod
    def commands(self) -> Iterator[Command]:
        """What is left to be run. Each command is asked for when those before it have ended."""

    def finish(self) -> None:
        """Puts what the commands wrote in its place. Also called of a stage that was done: a run may have been killed
        in between.

        Raises:
            FastglowError: it is not complete.
        """
        return


class Screen(Stage):
    """Finds clips that do not say their text."""

    name = "screening"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.screening

    def is_done(self) -> bool:
        return (self.work.screening / EXCLUDED).is_file()

    def commands(self) -> Iterator[Command]:
        yield [*PYTHON, "voices.screening", str(self.work.speech), "--out", str(self.work.screening)]


class Prepare(Stage):
    """Prepares the data set, again with other options or if it has clips to be left out, and copies the lexicon.

    `fastglow prepare` writes dataset.json last: the folder is complete if it is there.
    """

    name = "data"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.data
        self.origin = Origin(work.data)
        self.started = False

    def is_done(self) -> bool:
        try:
            found = PreparedDataset.open(self.work.data)
        except FastglowError:
            return False
        source = Path(found.description["source"])
        if source.resolve() != self.work.speech.resolve():
            raise FastglowError(
                f"{self.work.data} was made of {source}, not of {self.work.speech}: name another folder with --out, "
                f"or remove {self.work.folder}"
            )
        made_with = read_json(self.origin.path)
        if made_with is not None and made_with != self.recipe.prepare:
            self._check_untrained(made_with)
            return False
        return {item.id for items in found.items.values() for item in items}.isdisjoint(self._excluded())

    def _check_untrained(self, made_with: object) -> None:
        for model in MODELS:
            if any(self.work.run(model).glob("checkpoint_*.pt")):
                raise FastglowError(
                    f"{self.work.run(model)} was trained on data prepared with {made_with}, not with "
                    f"{self.recipe.prepare}: name another folder with --out, or remove {self.work.folder}"
                )

    def _excluded(self) -> set[str]:
        exclude = self.work.exclude
        if exclude is None or not exclude.is_file():
            return set()
        return set(read_exclusions(exclude, read_sources(self.work.speech)))

    def start(self) -> None:
        self.started = True

    def commands(self) -> Iterator[Command]:
        command = [*FASTGLOW, "prepare", str(self.work.speech), "--out", str(self.work.data)]
        command += options_of(self.recipe.prepare)
        if self.work.exclude is not None:
            command += ["--exclude", str(self.work.exclude)]
        yield command

    def finish(self) -> None:
        if self.started:  # the options of data that were there before are not known
            self.origin.record(self.recipe.prepare)
        copy = self.work.lexicon
        if copy is not None and not copy.is_file():
            try:
                with replacing(copy) as temporary:
                    shutil.copyfile(self.recipe.lexicon, temporary)
            except OSError as error:
                raise FastglowError(f"lexicon={self.recipe.lexicon} cannot be copied: {error.strerror}") from error


class Train(Stage):
    """A stage of a training: the run goes on with its options."""

    def __init__(self, work: Work, training: Training):
        super().__init__(work)
        self.training = training
        self.name = training.name
        self.run = work.run(training.model)
        self.written = self.run
        self.read = (work.data,)

    def is_done(self) -> bool:
        return iterations_of(self.run, self.training.model) >= self.training.max_iterations

    def commands(self) -> Iterator[Command]:
        training = self.training
        command = [*FASTGLOW, "train", training.model, "--data", str(self.work.data), "--out", str(self.run)]
        command += ["--config-file", str(training.config)]
        if self.work.lexicon is not None and training.model == "tacotron2":
            command += ["--lexicon", str(self.work.lexicon)]
        yield [*command, "--resume"] if training.begin or any(self.run.glob("checkpoint_*.pt")) else command

    def finish(self) -> None:
        iterations, end = iterations_of(self.run, self.training.model), self.training.max_iterations
        if iterations < end:
            raise FastglowError(
                f"{self.name} ended after {iterations:,} of {end:,} iterations: run this again to go on, or raise "
                f"epochs in {self.training.config} if it ends at once"
            )
        last, name = checkpoint_path(self.run, end), self.work.ends / f"{self.name}.pt"
        if last.is_file() and not (name.is_file() and name.samefile(last)):
            keep(last, name)
