"""The `fastglow` command. An error that users can fix is one line on standard error and exit code 2."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

import click

from fastglow._version import __version__
from fastglow.commands import Invocation
from fastglow.errors import FastglowError


class _Entry(NamedTuple):
    module: str  # loaded when the command is called, not for the list of commands
    help: str  # the first line of the command's own


_COMMANDS = {
    "bench": _Entry("fastglow.commands.bench", "Measure how fast a voice speaks on this machine."),
    "convert": _Entry("fastglow.commands.checkpoints", "Convert a checkpoint of any published format."),
    "doctor": _Entry("fastglow.commands.doctor", "Check this machine, the installation and the kernels."),
    "export-voice": _Entry("fastglow.train.run_command", "Make a voice of trained models."),
    "inspect": _Entry("fastglow.commands.checkpoints", "Describe a checkpoint file."),
    "plot": _Entry("fastglow.train.run_command", "Draw the curves of a run, or of several to compare."),
    "prepare": _Entry(
        "fastglow.train.command", "Check the recordings of DATASET and store samples and log-mels in --out."
    ),
    "serve": _Entry("fastglow.commands.serve", "Answer requests for speech over HTTP: OpenAI's API, and a web page."),
    "synth": _Entry("fastglow.commands.synth", "Speak TEXT, or --input, or standard input."),
    "train": _Entry("fastglow.train.command", "Train a model on a prepared data set."),
    "verify": _Entry("fastglow.train.command", "Check every byte of a prepared data set."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return getattr(importlib.import_module(_COMMANDS[name].module), name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastglow")
def cli() -> None:
    """Tacotron 2 + WaveGlow speech synthesis."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `exit_code`.

    Args:
        args: default: this process's, which then is the command's own.
    """
    arguments = sys.argv[1:] if args is None else args

    def call() -> int | None:
        with _warnings_as_lines() as caught:
            obj = Invocation(arguments, caught, owns_process=args is None)
            return cli.main(arguments, prog_name="fastglow", standalone_mode=False, obj=obj)

    return exit_code(call, "fastglow")


def exit_code(call: Callable[[], int | None], name: str) -> int:
    """The exit code of a click command `name`: its own or 0, 2 for an error that users can fix, in one line, 130 after
    Ctrl-C."""
    try:
        return call() or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except click.ClickException as error:
        message = error.format_message()
    except FastglowError as error:
        message = str(error)
    except click.Abort:
        return 130
    except OSError as error:
        message = f"{error.filename or 'file'}: {error.strerror}"
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    return 2


@contextmanager
def _warnings_as_lines() -> Iterator[list[str]]:
    """Prints each warning as one line on standard error and collects the texts."""
    caught: list[str] = []

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        caught.append(str(message))
        click.echo(f"fastglow: warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield caught
