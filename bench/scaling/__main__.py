"""Command line of `bench.scaling`."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.train.manifest import PreparedDataset
from fastglow.train.ranks import joined_ranks, leave_process

from .. import results
from ..precision import OFF
from ..readme import README, write_between
from ..test_bench_train_step import Tacotron2Step, WaveGlowStep
from ..workload import FASTGLOW, Implementation
from . import check, gradients, links, steps, stragglers, tables

MARKERS = ("<!-- scaling -->", "<!-- end: scaling -->")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run_command(options)
    except FastglowError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="the tables, from a report; without one, from the targets")
    predict.add_argument("run", nargs="*", type=Path, help="bench.json of `make bench`, or journal.jsonl of `make gpu`")
    predict.add_argument("--link", type=Path, help="a link as measured by `link`, in place of the assumed ones")
    predict.add_argument("--ranks", type=_count, nargs="+", default=[8, 64], help="numbers of GPUs (8 64)")
    predict.add_argument("--accumulate", type=_count, default=1, help="passes of a step, as of `fastglow train`")
    predict.add_argument("--bucket-batches", type=int, default=0, help="as of `fastglow train`")
    predict.add_argument("--data", type=Path, help="prepared data set whose lengths to take, not LJSpeech's")
    predict.add_argument("--publish", action="store_true", help="write the tables into bench/README.md")
    predict.set_defaults(run_command=_predict)
    measure = commands.add_parser("gradients", help="measure when gradients are ready, at the published sizes")
    measure.set_defaults(run_command=_gradients)
    link = commands.add_parser("link", help="measure all-reduces between the processes of torchrun")
    link.add_argument("--out", type=Path, required=True, help="file for `predict --link`")
    link.set_defaults(run_command=_link)
    held = commands.add_parser("check", help="hold the prediction against the processes of torchrun")
    held.add_argument("--channels", type=_count, default=256)
    held.add_argument("--batch", type=_count, default=1)
    held.add_argument("--samples", type=_count, default=4000)
    held.set_defaults(run_command=_check)
    return parser


_DESCRIPTION = "Predicts how training scales to many GPUs. `link` and `check` are started by torchrun."


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} must be a positive number")
    return int(text)


def _predict(options: argparse.Namespace) -> None:
    run = results.load(options.run) if options.run else None
    if run is None:
        of_one, source = steps.of_targets(), "the targets for an H200, nothing measured"
    else:
        machine = run.machine
        name = machine["gpu"] or machine["processor"]
        of_one, source = steps.measured(run), f"{name}, torch {machine['torch']}, commit {machine['commit']}"
    lengths = stragglers.ljspeech_like()
    if options.data:
        lengths = [item.frames for item in PreparedDataset.open(options.data).items["train"]]
    page = tables.page(of_one, _links(options), lengths, source, options.accumulate, options.bucket_batches)
    print(page)
    if options.publish:
        write_between(README, *MARKERS, page)


def _links(options: argparse.Namespace) -> list[tuple[links.Link, int]]:
    if options.link:
        link = links.load(options.link)
        return [(link, ranks) for ranks in options.ranks]
    one, several = [links.NVLINK], [links.INFINIBAND, links.ETHERNET]
    return [(link, n) for n in options.ranks for link in (one if n <= tables.GPUS_PER_NODE else several)]


def _gradients(options: argparse.Namespace) -> None:
    measured = {
        "waveglow-256": WaveGlowStep("train-256", OFF, batch=2, channels=256),
        "waveglow-512": WaveGlowStep("train-512", OFF, batch=2),
        "tacotron2": Tacotron2Step("train", OFF, batch=8),
    }
    for name, step in measured.items():
        trainee = step.trainee(Implementation(FASTGLOW), step.model, dropout=True)
        loss = partial(trainee.loss, step.new_batch(checked=False))
        gradients.save(name, gradients.measure(list(trainee.parameters.values()), loss))
        print(f"{name}: {gradients.READINESS_FILE}")


def _link(options: argparse.Namespace) -> None:
    with joined_ranks() as ranks:
        link = links.measure(ranks, ranks.device(""))
        if link is not None:
            links.save(link, options.out)
            print(
                f"{link.name}: {link.bus_bytes_per_second / 1e9:.3g} GB/s, {1e6 * link.latency:.0f} us: {options.out}"
            )
    leave_process()


def _check(options: argparse.Namespace) -> None:
    with joined_ranks() as ranks:
        line = check.check(ranks, ranks.device(""), options.channels, options.batch, options.samples)
        if line is not None:
            print(line)
    leave_process()


if __name__ == "__main__":
    sys.exit(main())
