"""Trains a run of `make voice` further on a GPU: `make voice-gpu`.

`run` does all on this machine. Otherwise: `pack` here, copy the folder, `train` there, copy what it writes back, and
`unpack` here. `train` needs PyTorch, NumPy, safetensors, click and tqdm, and may be repeated: it goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastglow.cli import exit_code
from fastglow.errors import FastglowError

from ..recipe import MODELS, Recipe, find_recipe
from ..running import Runner, Stopped

if TYPE_CHECKING:
    from .packing import Manifest

REMEDY = "on a machine without one, `python -m voices.gpu pack`, then `train` where there is a GPU, then `unpack` here"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m voices.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("pack", "weights and data of a run, at most 60 MB"),
        ("train", "a pack, and write the result and the log, at most 60 MB"),
        ("unpack", "a result into the run that was packed"),
        ("run", "all three"),
    ):
        command = commands.add_parser(name, help=text)
        if name == "train":
            command.add_argument("pack", type=Path)
        elif name == "unpack":
            command.add_argument("result", type=Path)
        if name != "train":
            command.add_argument("--voice", default="heart", help="recipe, default: heart")
            command.add_argument("--model", choices=MODELS, default="waveglow", help="default: waveglow")
            if name != "unpack":
                command.add_argument("--anew", action="store_true", help="without the weights, with more clips")
            command.add_argument("--runs", type=Path, help="folder of the recipe's runs, default: runs/NAME")
        if name in ("pack", "train"):
            command.add_argument("--out", type=Path, required=name == "train", help="folder to write")
        if name in ("train", "run"):
            command.add_argument("--minutes", type=float, default=9.0, help="for all of it, default: 9")
            command.add_argument("--device", default="cuda", help="default: cuda")
            command.add_argument(
                "--folder", type=Path, default=Path("runs/gpu"), help="for checkpoints; default: runs/gpu"
            )
    return parser.parse_args(arguments)


def check_device(device: str) -> None:
    """Raises FastglowError for a GPU that there is not."""
    try:
        import torch
    except ImportError as error:
        raise FastglowError("this Python has no PyTorch: set PYTHON=... to one that has") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FastglowError(f"PyTorch finds no CUDA GPU: {REMEDY}")


def _pack(recipe: Recipe, options: argparse.Namespace, out: Path) -> "Manifest":
    from .packing import pack, size_of

    folder = options.runs or Path("runs") / recipe.name
    changes = recipe.gpu_options(options.model)
    with Runner().locked(folder / options.model, [folder / "data"]):
        manifest = pack(folder / "data", folder / options.model, options.model, out, changes, anew=options.anew)
    hours = sum(item.samples for item in manifest.items) / manifest.audio.sampling_rate / 3600
    print(
        f"{out}: {options.model} after {manifest.iteration:,} iterations and {len(manifest.items)} clips "
        f"({hours:.2f} hours), {size_of(out) / 1e6:.1f} MB"
    )
    return manifest


def _train(options: argparse.Namespace, pack: Path, out: Path) -> None:
    from .training import train

    with Runner() as runner:
        result = train(pack, options.folder, out, options.minutes, options.device, runner)
    print(f"{out}: {result.model}, {result.iterations:,} more iterations")


def _unpack(recipe: Recipe, options: argparse.Namespace, result: Path) -> None:
    from .unpacking import unpack

    run = (options.runs or Path("runs") / recipe.name) / options.model
    with Runner().locked(run):
        iteration = unpack(result, run)
    print(f"{run}: {iteration:,} iterations")


def _run(recipe: Recipe, options: argparse.Namespace, pack: Path, result: Path) -> None:
    from .results import FILE

    _pack(recipe, options, pack)
    (result / FILE).unlink(missing_ok=True)  # of another pack
    try:
        _train(options, pack, result)
    finally:  # also of a training that a signal ended: the next call packs anew
        if (result / FILE).is_file():
            _unpack(recipe, options, result)


def _call(options: argparse.Namespace) -> int:
    try:
        if options.command in ("train", "run"):
            check_device(options.device)
        if options.command == "train":
            _train(options, options.pack, options.out)
            return 0
        recipe = find_recipe(options.voice)
        folder = (options.runs or Path("runs") / recipe.name) / "gpu" / options.model
        if options.command == "pack":
            _pack(recipe, options, options.out or folder)
        elif options.command == "unpack":
            _unpack(recipe, options, options.result)
        else:
            _run(recipe, options, folder, folder.with_name(f"{options.model}-result"))
    except Stopped as stopped:
        print(f"voice-gpu: stopped by {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("voice-gpu: stopped by SIGINT", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"voice-gpu: this Python has no {error.name}: `python -m pip install {error.name}`", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return exit_code(lambda: _call(options), "voice-gpu")


if __name__ == "__main__":
    sys.exit(main())
