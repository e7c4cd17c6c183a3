"""Trains a pack for some minutes, on a machine with a GPU."""

import lzma
import time
from collections.abc import Iterator
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import find_newest_checkpoint
from fastglow.train.history import LOG
from fastglow.train.manifest import DESCRIPTION
from fastglow.train.publishing import About, Clip, write_dataset

from ..running import FASTGLOW, Runner, Stopped
from . import coding
from .packing import LIMIT, WEIGHTS, Manifest
from .results import Result

SAVING_SECONDS = 25.0
"""For the last batch, its checkpoint and the result."""


def unpack_data(pack: Path, manifest: Manifest, out: Path) -> None:
    """Writes the clips as a prepared data set, unless that was done before."""
    if not (out / DESCRIPTION).is_file():
        about = About(f"pack {manifest.id}", manifest.audio, text_cleaners=[])
        write_dataset(out, about, {"train": _clips(pack, manifest)})


def _clips(pack: Path, manifest: Manifest) -> Iterator[Clip]:
    has_mels = manifest.model == "tacotron2"
    first = 0
    for number, count in enumerate(manifest.files):
        items = manifest.items[first : first + count]
        first += count
        path = pack / f"clips-{number:03d}.xz"
        try:
            data = path.read_bytes()
            if has_mels:
                mels = coding.decode_mels(data, [item.frames for item in items])
                clips = [Clip(item, mel=mel) for item, mel in zip(items, mels, strict=True)]
            else:
                recordings = coding.decode_recordings(data, [item.samples for item in items])
                clips = [Clip(item, samples) for item, samples in zip(items, recordings, strict=True)]
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise FastglowError(f"{path} is missing or damaged: copy the whole pack") from error
        yield from clips


def train(pack: Path, folder: Path, out: Path, minutes: float, device: str, runner: Runner) -> Result:
    """Trains, and writes the result and the log.

    Args:
        pack: from `packing.pack`.
        folder: for data and checkpoints; a training that it holds goes on.
        out: for the result.
        minutes: for all of it.
        device: as for `fastglow train`.

    Raises:
        FastglowError: no pack, a failed training, or a result that is too large.
        Stopped: after a signal, with the result written.
    """
    end = time.monotonic() + 60 * minutes - SAVING_SECONDS
    manifest = Manifest.read(pack)
    data, run = folder / manifest.id / "data", folder / manifest.id / "run"
    unpack_data(pack, manifest, data)
    command = [*FASTGLOW, "train", manifest.model, "--data", str(data), "--out", str(run), "--device", device]
    command += ["--config-file", str(pack / "options.json")]
    if any(run.glob("checkpoint_*.pt")):
        command.append("--resume")
    elif (pack / WEIGHTS).is_file():
        command += ["--init-from", str(pack / WEIGHTS)]
    if manifest.lexicon is not None:
        command += ["--lexicon", str(pack / manifest.lexicon)]
    stopped = None
    try:
        runner.call(command, max(1.0, end - time.monotonic()))
    except Stopped as caught:
        stopped = caught
    found = find_newest_checkpoint(run, manifest.model) if run.is_dir() else None
    if found is None:
        raise stopped or FastglowError(f"{run} holds no checkpoint: give it more --minutes")
    result = Result.of(found.checkpoint, manifest.id)
    size = result.write(out)
    log = lzma.compress((run / LOG).read_bytes())
    with replacing(out / f"{LOG}.xz") as temporary:
        temporary.write_bytes(log)
    if size + len(log) > LIMIT:
        raise FastglowError(f"{out} has {(size + len(log)) / 1e6:.1f} MB, must have at most {LIMIT / 1e6:g} MB")
    if stopped is not None:
        raise stopped
    return result
