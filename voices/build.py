"""Makes a voice by its recipe, from the folder of recordings to the folder of the voice: `make voice`.

Stop it at any time (Ctrl-C, SIGTERM, even a power cut): the same command goes on. It runs at the lowest priority.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastglow.cli import exit_code

from .recipe import Recipe, find_recipe
from .running import Runner, Stopped, say, shown
from .stages import Prepare, Screen, Stage, Train
from .voice_stages import ChooseAcoustic, ChooseVocoder, Evaluate, Export
from .work import Work


def _data(work: Work) -> list[Stage]:
    return [*([Screen(work)] if work.recipe.screen else []), Prepare(work)]


def _tacotron2(work: Work) -> list[Stage]:
    return [*_data(work), *(Train(work, training) for training in work.recipe.tacotron2)]


def _waveglow(work: Work) -> list[Stage]:
    return [*_data(work), *(Train(work, training) for training in work.recipe.waveglow)]


def _voice(work: Work) -> list[Stage]:
    vocoder = [ChooseVocoder(work)] if work.recipe.speaks_by_waveglow else []
    return [*_tacotron2(work), ChooseAcoustic(work), *vocoder, Export(work)]


def _report(work: Work) -> list[Stage]:
    return [*_voice(work), Evaluate(work)]


GOALS: dict[str, Callable[[Work], list[Stage]]] = {
    "data": _data,
    "tacotron2": _tacotron2,
    "waveglow": _waveglow,
    "voice": _voice,
    "report": _report,
}


def make(stages: Sequence[Stage], runner: Runner) -> None:
    """Runs the stages that are not done, in order.

    Raises:
        FastglowError: one failed.
        Stopped: a signal ended it.
    """
    for stage in stages:
        runner.check()
        # What is done is only read: it may be in use for days, such as the data by another training.
        with runner.locked(None, [stage.written, *stage.read]):
            done = stage.is_done()
            if done:
                stage.finish()
        if done:
            say(f"{stage.name}: done")
            continue
        with runner.locked(stage.written, stage.read):
            if not stage.is_done():  # another process may have made it meanwhile
                say(f"{stage.name}: begins")
                stage.start()
                for command in stage.commands():
                    runner.call(command)
            stage.finish()


def plan(stages: Sequence[Stage]) -> None:
    """Prints the commands that are left."""
    for stage in stages:
        print(f"# {stage.name}" + (": done" if stage.is_done() else ""))
        for command in stage.commands() if not stage.is_done() else ():
            print(shown(command))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m voices.build", description=__doc__)
    parser.add_argument("voice", help="name of a recipe in voices/recipes, or the folder of one")
    parser.add_argument("goal", nargs="?", choices=GOALS, default="report", help="where to stop; default: report")
    parser.add_argument("--speech", type=Path, help="recordings; default: the recipe's")
    parser.add_argument("--out", type=Path, help="folder to fill; default: runs/NAME")
    parser.add_argument("--plan", action="store_true", help="print the commands that are left, and run none")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    try:
        recipe: Recipe = find_recipe(options.voice)
        work = Work(recipe, options.speech or Path(recipe.speech), options.out or Path("runs") / recipe.name)
        stages = GOALS[options.goal](work)
        if options.plan:
            plan(stages)
            return 0
        with Runner() as runner:
            make(stages, runner)
        say(f"{options.goal}: complete, in {work.folder}")
    except Stopped as stopped:
        say(f"stopped by {stopped}: the same command goes on")
        return stopped.exit_code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="voice: %(message)s")
    return exit_code(lambda: _run(options), "voice")


if __name__ == "__main__":
    sys.exit(main())
