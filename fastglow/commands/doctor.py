"""The command `fastglow doctor`."""

import json
from collections import Counter
from contextlib import closing

import click

from fastglow.diagnosis import catalogue
from fastglow.diagnosis.isolation import run
from fastglow.diagnosis.report import as_lines, as_object


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quick", is_flag=True, help="Leave out the self-tests of the kernels.")
@click.pass_context
def doctor(context: click.Context, as_json: bool, quick: bool) -> None:
    """Check this machine, the installation and the kernels.

    Each line says what was found: ok, a warning, failed or skipped, with the remedy. Every operation is compared with
    its reference in float64: the Triton kernels where they run, else PyTorch's operations. The exit code is 1 if a
    check failed.
    """
    checks = catalogue.environment() + ([] if quick else catalogue.self_tests())
    statuses: Counter[str] = Counter()
    with closing(run(checks)) as results:
        if as_json:
            click.echo(json.dumps(as_object(results, statuses), ensure_ascii=False))
        else:
            for line in as_lines(results, statuses):
                click.echo(line)
    context.exit(1 if statuses["failed"] else 0)
