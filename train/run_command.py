"""The commands `fastglow plot` and `fastglow export-voice`, which read what runs have written."""

from pathlib import Path

import click

from fastglow.commands.options import DTYPES
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.outputs import check_writable
from fastglow.voices import VOCODERS

CURVES = "curves.png"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help=f"PNG to write. Default, for one run: RUN/{CURVES}.")
def plot(runs: tuple[str, ...], output: str | None) -> None:
    """Draw the curves of a run, or of several to compare.

    RUN is the output folder of `fastglow train`, or its log.jsonl. The picture shows the losses of training and
    validation, the gradient norm, the learning rate and the speed; where the log has them also the loss scale
    with the skipped updates, the time split and the FLOP utilisation. It needs matplotlib.
    """
    from fastglow.plotting import require_matplotlib

    from .curve_plots import plot_runs
    from .curves import read_curves

    if output is None and len(runs) > 1:
        raise FastglowError("several runs are drawn in one picture: pass -o FILE.png")
    if output is None:
        output = str((Path(runs[0]) if Path(runs[0]).is_dir() else Path(runs[0]).parent) / CURVES)
    elif Path(output).suffix.lower() not in ("", ".png"):
        raise FastglowError(f"cannot write {output}: the picture is a PNG: pass -o {Path(output).with_suffix('.png')}")
    else:
        check_writable(output)
    require_matplotlib()
    curves = [read_curves(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    figure = plot_runs(curves)
    with replacing(output) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    click.echo(f"{output}: " + "; ".join(run.summary for run in curves))


def _names(runs: tuple[str, ...]) -> list[str]:
    """Names of runs for a legend: their folders', or what was passed if those are not distinct."""
    folders = [Path(run).resolve() for run in runs]
    names = [(folder if folder.is_dir() else folder.parent).name for folder in folders]
    return names if len(set(names)) == len(names) else list(runs)


@click.command()
@click.argument("tacotron2", metavar="RUN_TACOTRON2", type=click.Path())
@click.argument("waveglow", metavar="[RUN_WAVEGLOW]", required=False, type=click.Path())
@click.option("--out", "-o", required=True, type=click.Path(), help="Folder to make; must not exist, or be empty.")
@click.option("--best", is_flag=True, help="Take the checkpoint with the lowest validation loss, not the newest.")
@click.option("--name", help="Name of the voice. Default: the folder's.")
@click.option("--language", default="en-US", show_default=True, help="BCP 47 tag of the language.")
@click.option("--description", help="One line for people. Default: for how many iterations the models were trained.")
@click.option("--vocoder", type=click.Choice(VOCODERS), help="Default: waveglow with RUN_WAVEGLOW, else griffin-lim.")
@click.option("--sigma", default=0.6, show_default=True, help="Standard deviation of WaveGlow's noise.")
@click.option("--denoise", default=0.0, show_default=True, help="Strength of WaveGlow's denoiser; 0: off.")
@click.option("--lexicon", type=click.Path(),
              help="Pronunciations in CMUdict's format. Default: the file of RUN_TACOTRON2's training.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True,
              help="Type of the weights; the 16-bit types halve the files.")  # fmt: skip
def export_voice(
    tacotron2: str, waveglow: str | None, out: str, best: bool, name: str | None, language: str,
    description: str | None, vocoder: str | None, sigma: float, denoise: float, lexicon: str | None, dtype: str,
) -> None:  # fmt: skip
    """Make a voice of trained models.

    `fastglow synth --voice FOLDER` speaks with it. A run is the output folder of `fastglow train`, of which the newest
    undamaged checkpoint is taken, or a checkpoint file. The folder holds voice.json, the models as safetensors and the
    lexicon if the Tacotron 2 reads one; text cleaners and audio parameters are those of the training.
    """
    import torch

    from .export import VoiceOptions
    from .export import export_voice as export

    options = VoiceOptions(name, language, description, vocoder, sigma, denoise, lexicon, getattr(torch, dtype))
    files = export(tacotron2, waveglow, out, options, best=best)
    click.echo(f"{' + '.join(map(str, files))} -> {out}")
