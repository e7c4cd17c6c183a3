"""Plots of alignments and mel spectrograms. Needs matplotlib (pip install fastglow[plot])."""

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from fastglow.errors import FastglowError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raises FastglowError unless matplotlib is installed; called before the work that is to be plotted."""
    if importlib.util.find_spec("matplotlib") is None:
        raise FastglowError("plots need matplotlib: pip install 'fastglow[plot]'")


def plot_synthesis(
    mels: dict[str, np.ndarray],
    alignment: np.ndarray | None = None,
    title: str = "",
) -> "Figure":
    """Plots an utterance: its alignment, if given, above its mel spectrograms.

    Args:
        mels: log-mels [n_mel_channels, T] by caption.
        alignment: attention weights [decoder steps, T_in].
        title: shown on top, cut to one line.

    Returns:
        a matplotlib Figure without a window.

    Raises:
        FastglowError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    n_rows = len(mels) + (alignment is not None)
    figure = Figure(figsize=(10, 3.2 * n_rows), layout="constrained")
    axes = iter(figure.subplots(n_rows, 1, squeeze=False)[:, 0])
    if alignment is not None:
        ax = next(axes)
        image = ax.imshow(alignment.T, aspect="auto", origin="lower", interpolation="none", vmin=0, vmax=1)
        ax.set(xlabel="decoder step", ylabel="symbol", title="alignment")
        figure.colorbar(image, ax=ax)
    for caption, mel in mels.items():
        ax = next(axes)
        image = ax.imshow(mel, aspect="auto", origin="lower", interpolation="none")
        ax.set(xlabel="frame", ylabel="mel channel", title=caption)
        figure.colorbar(image, ax=ax)
    title = " ".join(title.split())
    figure.suptitle(title if len(title) <= 100 else title[:99] + "…", parse_math=False)
    return figure
