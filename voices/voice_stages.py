"""The stages from trained models to a voice: choose checkpoints, export them, report on the voice."""

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import BEST, numbered_checkpoints
from fastglow.train.manifest import PreparedDataset

from . import evaluating
from .running import FASTGLOW, Command, options_of
from .stages import Stage
from .work import Origin, Work, digest_of, iteration_of, keep, read_json, write_json

ACOUSTIC, VOCODER = "tacotron2", "waveglow"


class Choose(Stage):
    """Takes the best checkpoint of a training. Its weights are the average, with --ema."""

    model: str
    record_name: str
    score_name: str

    def __init__(self, work: Work):
        super().__init__(work)
        self.chosen = self.written = work.chosen(self.model)
        self.run = work.run(self.model)
        self.read = (self.run,)
        self.record = work.folder / self.record_name

    def candidates(self) -> dict[int, Path]:
        """Checkpoints by iteration: the newest, the best, and the end of each stage."""
        files = [self.work.ends / f"{training.name}.pt" for training in self.recipe.trainings(self.model)]
        files += [self.run / BEST, *reversed(numbered_checkpoints(self.run)[: self.recipe.newest])]
        found = {iteration_of(file): file for file in files if file.is_file()}
        return {iteration: found[iteration] for iteration in sorted(filter(None, found))}

    @abstractmethod
    def sentences(self) -> Path | None:
        """The file of what the candidates speak; None: the newest is taken."""

    @abstractmethod
    def report_on(self, file: Path, sentences: Path, report: Path) -> Command:
        """Measures a candidate."""

    @abstractmethod
    def score(self, report: Path) -> float | None:
        """Of a report, the lower the better; None: there is none yet."""

    def is_done(self) -> bool:
        record = read_json(self.record)
        return self.chosen.is_file() and record is not None and record.get("of") == self._origin()

    def _origin(self) -> dict[str, Any]:
        sentences = self.sentences()
        return {
            "candidates": {str(iteration): digest_of(file) for iteration, file in self.candidates().items()},
            "sentences": None if sentences is None else digest_of(sentences),
        }

    def _report(self, iteration: int, file: Path, sentences: Path) -> Path:
        return self.work.candidates / f"{iteration}-{digest_of(file)[:8]}-{digest_of(sentences)[:8]}"

    def commands(self) -> Iterator[Command]:
        candidates = self.candidates()
        sentences = self.sentences() if candidates else None
        if sentences is None:
            return
        for iteration, file in candidates.items():
            report = self._report(iteration, file, sentences)
            if self.score(report) is None:
                yield self.report_on(file, sentences, report)

    def finish(self) -> None:
        if self.is_done():
            return
        candidates, sentences = self.candidates(), self.sentences()
        if not candidates:
            raise FastglowError(f"{self.run} holds no checkpoint to choose from: make the goal {self.model} first")
        scores: dict[int, float] = {}
        if sentences is not None:
            for iteration, file in candidates.items():
                report = self._report(iteration, file, sentences)
                score = self.score(report)
                if score is None:
                    raise FastglowError(f"{report} holds no report: run this again")
                scores[iteration] = score
        # Of equals the one that was trained longest.
        chosen = min(candidates, key=lambda iteration: (scores.get(iteration, 0.0), -iteration))
        keep(candidates[chosen], self.chosen)
        write_json(self.record, {"of": self._origin(), "iteration": chosen, self.score_name: scores})


class ChooseAcoustic(Choose):
    """The Tacotron 2 whose speech the recogniser understands best."""

    name, model = "choice", ACOUSTIC
    record_name, score_name = "choice.json", "word_errors"

    def sentences(self) -> Path | None:
        return self.recipe.development

    def score(self, report: Path) -> float | None:
        return evaluating.word_error(report)

    def report_on(self, file: Path, sentences: Path, report: Path) -> Command:
        return evaluating.on_texts(file, sentences, report)


class ChooseVocoder(Choose):
    """The WaveGlow whose copies of held-out recordings are closest to them."""

    name, model = "choice of the vocoder", VOCODER
    record_name, score_name = "choice_waveglow.json", "distances"

    def __init__(self, work: Work):
        super().__init__(work)
        self.read = (self.run, work.data, work.chosen(ACOUSTIC))

    def sentences(self) -> Path | None:
        return write_ids(self.work.folder / "choosing.txt", held_out(self.work)[1])

    def score(self, report: Path) -> float | None:
        return evaluating.distance(report)

    def report_on(self, file: Path, sentences: Path, report: Path) -> Command:
        return evaluating.on_copies(self.work.chosen(ACOUSTIC), file, self.work.speech, sentences, report)


def held_out(work: Work) -> tuple[list[str], list[str]]:
    """Ids of the clips that no model is trained on: those to report on, and those to choose a WaveGlow by, a third."""
    ids = [item.id for item in PreparedDataset.open(work.data).items["validation"]]
    n = len(ids) - len(ids) // 3 if work.recipe.speaks_by_waveglow else len(ids)
    return ids[:n], ids[n:]


def write_ids(path: Path, ids: Sequence[str]) -> Path | None:
    """A file of one id a line; None if there are none."""
    if not ids:
        return None
    text = "".join(f"{one}\n" for one in ids)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


class Export(Stage):
    """Makes the voice beside the old one, which it then replaces."""

    name = "voice"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.voice
        models = [ACOUSTIC, *([VOCODER] if work.recipe.speaks_by_waveglow else [])]
        self.read = tuple(map(work.chosen, models))  # not the runs, which may be trained for days meanwhile
        self.new = work.voice.with_name("voice.new")
        self.origin = Origin(work.voice)

    def options(self) -> list[str]:
        recipe = self.recipe
        values = {"name": recipe.name, "language": recipe.language, "description": recipe.description or None}
        return options_of({name: value for name, value in (values | recipe.export).items() if value is not None})

    def _origin(self) -> dict[str, Any]:
        waveglow = self.work.folder / ChooseVocoder.record_name
        return {
            "choice": read_json(self.work.folder / ChooseAcoustic.record_name),
            "waveglow": read_json(waveglow) if self.recipe.speaks_by_waveglow else None,
            "options": self.options(),
            "max_megabytes": self.recipe.max_megabytes,
        }

    def is_done(self) -> bool:
        return (self.work.voice / "voice.json").is_file() and self.origin.is_(self._origin())

    def start(self) -> None:
        self.made_of = self._origin()
        shutil.rmtree(self.new, ignore_errors=True)

    def commands(self) -> Iterator[Command]:
        yield [*FASTGLOW, "export-voice", *map(str, self.read), "--out", str(self.new), *self.options()]

    def finish(self) -> None:
        if self.is_done():
            return
        size = sum(file.stat().st_size for file in self.new.iterdir())
        if size > self.recipe.max_megabytes * 1e6:
            raise FastglowError(
                f"{self.new} has {size / 1e6:.1f} MB, must have at most {self.recipe.max_megabytes:g} MB: train "
                "smaller models, or raise max_megabytes in the recipe"
            )
        self.origin.forget()
        shutil.rmtree(self.work.voice, ignore_errors=True)
        self.new.rename(self.work.voice)
        self.origin.record(self.made_of)


class Evaluate(Stage):
    """Measures the voice on the held-out clips."""

    name = "report"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.report
        self.read = (work.voice, work.data)
        self.origin = Origin(work.report)
        self.held_out = work.folder / "held_out.txt"

    def _origin(self) -> Any:
        return read_json(Origin(self.work.voice).path)

    def is_done(self) -> bool:
        return evaluating.report_in(self.work.report).is_file() and self.origin.is_(self._origin())

    def start(self) -> None:
        self.origin.forget()
        evaluating.report_in(self.work.report).unlink(missing_ok=True)  # keeps what was heard
        write_ids(self.held_out, held_out(self.work)[0])

    def commands(self) -> Iterator[Command]:
        yield evaluating.on_recordings(self.work.voice, self.work.speech, self.held_out, self.work.report)

    def finish(self) -> None:
        if not evaluating.report_in(self.work.report).is_file():
            raise FastglowError(f"{self.work.report} holds no report: run this again")
        self.origin.record(self._origin())
