"""The stages from a trained Tacotron 2 to a voice: choose a checkpoint, export it, report on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import BEST, numbered_checkpoints
from fastglow.train.manifest import PreparedDataset
from fastglow.voices import Voice

from . import evaluating
from .running import FASTGLOW, Command, options_of
from .stages import Stage
from .work import Origin, Work, digest_of, iteration_of, iterations_of, keep, read_json, write_json

ACOUSTIC, VOCODER = "tacotron2", "waveglow"


class Choose(Stage):
    """Takes the checkpoint whose speech the recogniser understands best. Its weights are the average, with --ema."""

    name = "choice"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.chosen
        self.run = work.run(ACOUSTIC)
        self.read = (self.run,)
        self.record = work.folder / "choice.json"

    def candidates(self) -> dict[int, Path]:
        """Checkpoints by iteration: the newest, the best, and the end of each stage."""
        files = [self.work.ends / f"{training.name}.pt" for training in self.recipe.tacotron2]
        files += [self.run / BEST, *reversed(numbered_checkpoints(self.run)[: self.recipe.newest])]
        found = {iteration_of(file): file for file in files if file.is_file()}
        return {iteration: found[iteration] for iteration in sorted(filter(None, found))}

    def is_done(self) -> bool:
        record = read_json(self.record)
        return self.work.chosen.is_file() and record is not None and record.get("of") == self._origin()

    def _origin(self) -> dict[str, Any]:
        texts = self.recipe.development
        return {
            "candidates": {str(iteration): digest_of(file) for iteration, file in self.candidates().items()},
            "sentences": None if texts is None else digest_of(texts),
        }

    def _report(self, iteration: int, file: Path, texts: Path) -> Path:
        return self.work.candidates / f"{iteration}-{digest_of(file)[:8]}-{digest_of(texts)[:8]}"

    def commands(self) -> Iterator[Command]:
        texts = self.recipe.development
        if texts is None:
            return
        for iteration, file in self.candidates().items():
            report = self._report(iteration, file, texts)
            if evaluating.word_error(report) is None:
                yield evaluating.on_texts(file, texts, report)

    def finish(self) -> None:
        if self.is_done():
            return
        candidates = self.candidates()
        if not candidates:
            raise FastglowError(f"{self.run} holds no checkpoint to choose from")
        errors: dict[int, float] = {}
        if self.recipe.development is not None:
            for iteration, file in candidates.items():
                report = self._report(iteration, file, self.recipe.development)
                error = evaluating.word_error(report)
                if error is None:
                    raise FastglowError(f"{report} holds no report: run this again")
                errors[iteration] = error
        # Of equals the one that was trained longest.
        chosen = min(candidates, key=lambda iteration: (errors.get(iteration, 0.0), -iteration))
        keep(candidates[chosen], self.work.chosen)
        write_json(self.record, {"of": self._origin(), "iteration": chosen, "word_errors": errors})


class Export(Stage):
    """Makes the voice beside the old one, which it then replaces."""

    name = "voice"

    def __init__(self, work: Work):
        super().__init__(work)
        self.written = work.voice
        self.read = (work.chosen,)  # not the WaveGlow's run, which may be trained for days meanwhile
        self.new = work.voice.with_name("voice.new")
        self.origin = Origin(work.voice)

    def options(self) -> list[str]:
        recipe = self.recipe
        values = {"name": recipe.name, "language": recipe.language, "description": recipe.description or None}
        return options_of({name: value for name, value in (values | recipe.export).items() if value is not None})

    def _origin(self) -> dict[str, Any]:
        waveglow = iterations_of(self.work.run(VOCODER), VOCODER) if self.recipe.speaks_by_waveglow else None
        return {
            "choice": read_json(self.work.folder / "choice.json"),
            "waveglow": waveglow,
            "options": self.options(),
            "max_megabytes": self.recipe.max_megabytes,
        }

    def is_done(self) -> bool:
        return (self.work.voice / "voice.json").is_file() and self.origin.is_(self._origin())

    def start(self) -> None:
        self.made_of = self._origin()  # now: the WaveGlow may be trained further meanwhile
        shutil.rmtree(self.new, ignore_errors=True)

    def commands(self) -> Iterator[Command]:
        models = [str(self.work.chosen)]
        if self.recipe.speaks_by_waveglow:
            models.append(str(self.work.run(VOCODER)))
        yield [*FASTGLOW, "export-voice", *models, "--out", str(self.new), *self.options()]

    def finish(self) -> None:
        if self.is_done():
            return
        size = Voice.load(self.new).tacotron2.stat().st_size
        if size > self.recipe.max_megabytes * 1e6:
            raise FastglowError(
                f"{self.new}: its Tacotron 2 has {size / 1e6:.1f} MB, must have at most {self.recipe.max_megabytes:g} "
                "MB: train a smaller one, or raise max_megabytes in the recipe"
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
        items = PreparedDataset.open(self.work.data).items["validation"]
        with replacing(self.held_out) as temporary:
            temporary.write_text("".join(f"{item.id}\n" for item in items), encoding="utf-8")

    def commands(self) -> Iterator[Command]:
        yield evaluating.on_recordings(self.work.voice, self.work.speech, self.held_out, self.work.report)

    def finish(self) -> None:
        if not evaluating.report_in(self.work.report).is_file():
            raise FastglowError(f"{self.work.report} holds no report: run this again")
        self.origin.record(self._origin())
