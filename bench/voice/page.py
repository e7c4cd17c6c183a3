"""A page of plots: how sentences were read, and what they look like beside the recordings. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastglow.files import replacing

from .evaluation import SYNTHESIS, Audio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR_DB = -80.0  # of the loudest bin: what is drawn darkest
_FAINTEST_DB = -100.0  # of full scale, likewise
_FILTER, _HOP = 1024, 256  # samples, of spectrograms


def choose_rows(rows: Sequence[dict[str, Any]], n: int) -> list[int]:
    """Indices of `n` sentences, from the best understood to the worst, evenly apart."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["edits"][SYNTHESIS] / max(rows[i]["words"], 1), i))
    return [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def draw_page(path: Path, rows: Sequence[dict[str, Any]], n: int, audio: Audio) -> None:
    """Writes a PNG: a column for each of `n` sentences, from the best understood to the worst.

    From top to bottom: the alignment, the predicted mel, the recording's mel on the same scale of colours, and the
    spectrograms of synthesis, recording and copies. Without recordings, what there is.
    """
    from matplotlib.figure import Figure

    chosen = choose_rows(rows, n)
    n_panels = 3 + 2 * bool(audio.originals) + len(audio.copies)
    figure = Figure(figsize=(6.5 * len(chosen), 2.3 * n_panels), layout="constrained")
    columns = figure.subplots(n_panels, len(chosen), squeeze=False).T
    for axes, i in zip(columns, chosen, strict=True):
        _draw_sentence(axes, rows[i], audio, i)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def draw_sounds(path: Path, sounds: Mapping[str, Mapping[str, np.ndarray]], rate: int) -> None:
    """Writes a PNG: spectrograms of sounds float32 [N], by name from left to right, by source from top to bottom.

    In dBFS of a full-scale sine, so that silence is not drawn as loud as speech.
    """
    from matplotlib.figure import Figure

    names = list(next(iter(sounds.values())))
    figure = Figure(figsize=(3.6 * len(names), 2.4 * len(sounds)), layout="constrained")
    rows = figure.subplots(len(sounds), len(names), squeeze=False)
    for axes, (source, of) in zip(rows, sounds.items(), strict=True):
        for ax, (name, samples) in zip(axes, of.items(), strict=True):
            extent = (0, len(samples) / rate, 0, rate / 2000)
            levels = spectrogram(samples, full_scale=_FILTER / 4)
            ax.imshow(levels, aspect="auto", origin="lower", vmin=_FAINTEST_DB, vmax=0, extent=extent)
            ax.set(title=f"{name}, {source}", xlabel="seconds", ylabel="kHz")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _draw_sentence(axes: Sequence["Axes"], row: dict[str, Any], audio: Audio, i: int) -> None:
    """One column."""
    speech = audio.speeches[i]
    remaining = iter(axes)
    ax = next(remaining)
    ax.imshow(speech.alignment.T, aspect="auto", origin="lower", interpolation="none", vmin=0, vmax=1)
    ax.set(xlabel="decoder step", ylabel="symbol")
    text = row["text"] if len(row["text"]) <= 60 else row["text"][:59] + "…"
    title = f"{row['id']}: {row['edits'][SYNTHESIS]} errors in {row['words']} words\n{text}"
    ax.set_title(title, parse_math=False, fontsize=10)
    mels = {"predicted mel": speech.mel} | ({"mel of the recording": audio.mels[i]} if audio.mels else {})
    lowest, highest = np.quantile(np.concatenate(list(mels.values()), axis=1), (0.01, 1))
    for caption, mel in mels.items():
        ax = next(remaining)
        ax.imshow(mel, aspect="auto", origin="lower", interpolation="none", vmin=lowest, vmax=highest)
        ax.set(title=caption, xlabel="frame", ylabel="channel")
    sounds = {"synthesis": speech.audio} | ({"recording": audio.originals[i]} if audio.originals else {})
    sounds |= {f"copy of the recording by {name}": copies[i].audio for name, copies in audio.copies.items()}
    for caption, samples in sounds.items():
        ax = next(remaining)
        extent = (0, len(samples) / audio.rate, 0, audio.rate / 2000)
        ax.imshow(spectrogram(samples), aspect="auto", origin="lower", vmin=_FLOOR_DB, vmax=0, extent=extent)
        ax.set(title=caption, xlabel="seconds", ylabel="kHz")


def spectrogram(samples: np.ndarray, full_scale: float | None = None) -> np.ndarray:
    """Levels [bins, frames] of audio [N] in dB, over the loudest bin or over the magnitude `full_scale`; at least
    -120."""
    padded = torch.nn.functional.pad(torch.from_numpy(samples).float(), (0, max(0, _FILTER - len(samples))))
    window = torch.hann_window(_FILTER)
    magnitudes = torch.stft(padded, _FILTER, _HOP, window=window, return_complex=True, pad_mode="constant").abs()
    whole = magnitudes.max().clamp(min=1e-10) if full_scale is None else full_scale
    return (20 * torch.log10(magnitudes / whole + 1e-6)).numpy()
