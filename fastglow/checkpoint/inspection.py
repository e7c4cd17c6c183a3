"""Describes a checkpoint file without loading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastglow.text.symbol_tables import find_table

from .containers import open_checkpoint
from .io import PathLike, read_state
from .layouts import TITLES, infer_config, is_parameter
from .provenance import TrainedWith
from .sources import Source, UnsupportedModel, identify


@dataclass
class CheckpointInfo:
    """A summary of a checkpoint; `str()` formats it for display.

    Attributes:
        path: the file.
        format: whose layout it is.
        container: kind of file.
        model: "tacotron2" or "waveglow".
        n_bytes: size of the file.
        n_tensors: tensors of the model in the file.
        n_parameters: trained values among them (no running statistics).
        dtypes: number of tensors per floating-point type, the most frequent first.
        config: the constructor's keywords; empty if the model is not supported.
        iteration, epoch: at which training wrote the file, if it has them.
        n_symbols: rows of the embedding; None for WaveGlow.
        trained_with: what the file says about the model's training: audio parameters, text cleaners, lexicon.
        notes: what users should know.
        unsupported: why `load_checkpoint` refuses the model, or None.
    """

    path: Path
    format: str
    container: str
    model: str
    n_bytes: int
    n_tensors: int
    n_parameters: int
    dtypes: dict[str, int]
    config: dict[str, Any] = field(default_factory=dict)
    iteration: int | None = None
    epoch: int | None = None
    n_symbols: int | None = None
    trained_with: TrainedWith = TrainedWith()
    notes: list[str] = field(default_factory=list)
    unsupported: str | None = None

    def __str__(self) -> str:
        dtypes = (
            ", ".join(self.dtypes)
            if len(self.dtypes) == 1
            else ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        )
        rows = [
            ("model", TITLES[self.model]),
            ("format", self.format),
            ("container", f"{self.container}, {self.n_bytes:,} bytes"),
            ("tensors", f"{self.n_tensors} ({dtypes})"),
            ("parameters", f"{self.n_parameters:,}"),
            ("symbols", self.n_symbols),
            ("iteration", self.iteration),
            ("epoch", self.epoch),
            *((f"config {name}", value) for name, value in _flat(self.config)),
            *_flat({n if n != "symbols" else "symbol table": v for n, v in self.trained_with.as_dict().items()}),
            *(("note", note) for note in self.notes),
            ("not supported", self.unsupported),
        ]
        rows = [(name, value) for name, value in rows if value is not None]
        width = max(len(name) for name, _ in rows)
        return "\n".join([str(self.path), *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, list):
            value = ", ".join(value)
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def inspect_checkpoint(path: PathLike) -> CheckpointInfo:
    """Describes a checkpoint file by its names and shapes.

    A recognised model that is not supported (multi-speaker, another attention, ...) is described too, with the
    reason in `unsupported`.

    Raises:
        FastglowError: as `load_checkpoint`.
    """
    path = Path(path)
    with open_checkpoint(path) as container:
        source = identify(container, path)
        shapes = container.read_all(source.tensors, data=False)
        dtypes: dict[str, int] = {}
        for tensor in shapes.values():
            if tensor.is_floating_point():
                name = str(tensor.dtype).removeprefix("torch.")
                dtypes[name] = dtypes.get(name, 0) + 1
        embedding = shapes.get("embedding.weight", shapes.get("text_embedding.weight"))
        info = CheckpointInfo(
            path=path,
            format=source.format,
            container=container.kind,
            model=source.model,
            n_bytes=container.n_bytes,
            n_tensors=len(shapes),
            n_parameters=sum(t.numel() for name, t in shapes.items() if is_parameter(name)),
            dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
            iteration=source.iteration,
            epoch=source.epoch,
            n_symbols=embedding.shape[0] if embedding is not None and embedding.dim() else None,
            trained_with=source.trained_with,
            notes=source.notes,
        )
        try:
            state, hints, notes = read_state(container, source, data=False)
            info.config = asdict(infer_config(source.model, state, hints))
            info.notes = [*notes, *_notes(info, source)]
        except UnsupportedModel as e:
            info.unsupported = e.reason
    return info


def _notes(info: CheckpointInfo, source: Source) -> list[str]:
    notes = []
    table = find_table(info.n_symbols, source.trained_with.symbols) if info.n_symbols else None
    if table is not None:
        notes.append(f"{info.n_symbols} symbols: {table.title}")
    if source.names == "torchaudio" and "wavernn" in info.path.name.lower():
        notes.append("trained for WaveRNN, judging by its name: its mel spectrograms do not fit WaveGlow")
    if info.config.get("alternate_halves"):
        notes.append("alternating halves: odd flows transform the first half of the channels")
    if (
        info.model == "waveglow"
        and info.config["upsample_kernel_size"] != 1024
        and ("upsample_stride" not in source.hints)
    ):
        notes.append("the upsampling stride is not in the file: a quarter of the kernel is assumed")
    return notes
