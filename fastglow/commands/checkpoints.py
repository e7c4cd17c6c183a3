"""The commands `fastglow convert` and `fastglow inspect`."""

import json

import click

from fastglow.outputs import check_writable

from .options import DTYPES


@click.command()
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@click.option("--to", type=click.Choice(["fastglow", "nvidia"]),
              help="fastglow: safetensors; nvidia: DeepLearningExamples' layout (a torch file). Default: nvidia "
                   "for a TARGET such as x.pt, x.pth, x.ckpt or x.bin, else fastglow.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), help="Type of the weights to write. Default: as they are.")
def convert(source: str, target: str, to: str | None, dtype: str | None) -> None:
    """Convert a checkpoint of any published format."""
    import torch

    from fastglow.checkpoint import convert_checkpoint

    check_writable(target)
    convert_checkpoint(source, target, to=to, dtype=getattr(torch, dtype) if dtype else None)
    click.echo(f"{source} -> {target}")


@click.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: str, as_json: bool) -> None:
    """Describe a checkpoint file."""
    from dataclasses import asdict

    from fastglow.checkpoint import inspect_checkpoint

    info = inspect_checkpoint(file)
    click.echo(json.dumps(asdict(info), default=str) if as_json else str(info))
