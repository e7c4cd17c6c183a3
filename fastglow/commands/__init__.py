"""The commands of `fastglow`. `fastglow.cli` loads the module of a command when that command is called."""

from typing import NamedTuple


class Invocation(NamedTuple):
    """What every command can read as `click.get_current_context().obj`."""

    arguments: list[str]
    warnings: list[str]  # shown so far
    owns_process: bool  # rather than being called by another program
