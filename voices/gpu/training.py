"""Trains a pack for some minutes, on a machine with a GPU."""

import lzma
import time
from pathlib import Path

import numpy as np

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import find_newest_checkpoint
from fastglow.train.history import LOG
from fastglow.train.manifest import PreparedDataset

from ..running import FASTGLOW, Runner, Stopped
from . import coding
from .packing import LIMIT, WEIGHTS, Manifest
from .results import Result

SAVING_SECONDS = 25.0
"""For the last batch, its checkpoint and the result."""


def unpack_data(pack: Path, manifest: Manifest, out: Path) -> None:
    """Writes the clips as a prepared data set, unless that was done before."""
    if (out / "dataset.json").is_file():
        return
    kind, decode, dtype = (
        ("mels", coding.decode_mels, np.float32)
        if manifest.model == "tacotron2"
        else ("audio", coding.decode_recordings, np.int16)
    )
    dataset = PreparedDataset(out, manifest.audio, {"train": manifest.items, "validation": []}, [])
    (out / kind).mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(manifest.files):
        items = manifest.items[first : first + count]
        first += count
        lengths = [item.frames if kind == "mels" else item.samples for item in items]
        path = pack / f"clips-{number:03d}.xz"
        try:
            arrays = decode(path.read_bytes(), lengths)
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise FastglowError(f"{path} is missing or damaged: copy the whole pack") from error
        for item, array in zip(items, arrays, strict=True):
            np.save(dataset.path(kind, item.id), array.astype(dtype))
    dataset.write(f"pack {manifest.id}", [])


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
