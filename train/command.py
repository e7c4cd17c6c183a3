"""The commands `fastglow prepare` and `fastglow train`."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from fastglow.audio import MelConfig
from fastglow.models import Tacotron2Config, WaveGlowConfig
from fastglow.outputs import draws_progress
from fastglow.text.cleaners import DEFAULT_CLEANERS

from .config import WN_OPTIONS, ModelConfig, Tacotron2TrainConfig, TrainConfig, WaveGlowTrainConfig
from .launching import check_launched, count_processes, launch
from .ranks import joined_ranks, leave_process
from .shards import MEL_DTYPES, SHARD_CLIPS

Command = TypeVar("Command", bound=Callable[..., Any])

# DeepLearningExamples' names for options of the models.
WAVEGLOW_ALIASES = {
    "n_flows": "--flows",
    "n_group": "--groups",
    "n_early_every": "--early-every",
    "n_early_size": "--early-size",
}


def _option_type(annotation: Any) -> Any:
    """str, int, float or bool: `annotation` itself, or X of `X | None` and list[X]."""
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    return _option_type(arguments[0]) if arguments else annotation


def dataclass_options(
    config: type, help_of: Callable[[Field], str | None], aliases: dict[str, str] | None = None
) -> Callable[[Command], Command]:
    """Decorator: one click option for every field of a dataclass for which `help_of` returns a text."""
    hints = get_type_hints(config)

    def decorate(command: Command) -> Command:
        for f in reversed(fields(config)):
            text = help_of(f)
            if text is None:
                continue
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            name = f"--{f.name.replace('_', '-')}"
            extra = list(f.metadata.get("aliases", ())) + ([aliases[f.name]] if aliases and f.name in aliases else [])
            kind = _option_type(hints[f.name])
            if kind is bool:
                declaration = f"{name}/--no-{name[2:]}"
                command = click.option(declaration, *extra, f.name, default=default, show_default=True, help=text)(
                    command
                )
                continue
            choices, alone = f.metadata.get("choices"), f.metadata.get("alone")
            command = click.option(
                name,
                *extra,
                f.name,
                type=click.Choice(choices) if choices else kind,
                default=default,
                multiple=get_origin(hints[f.name]) is list,
                show_default=default not in ("", None, []),
                help=text,
                **({"is_flag": False, "flag_value": alone} if alone else {}),
            )(command)
        return command

    return decorate


def _take(config: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of `config`."""
    names = {f.name for f in fields(config)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if k in names}


@click.command()
@click.argument("dataset", type=click.Path())
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to fill.")
@click.option("--cleaners", "--text-cleaners", multiple=True, default=DEFAULT_CLEANERS, show_default=True,
              help="Text cleaner for training, which takes them from here (repeatable).")  # fmt: skip
@click.option("--validation", "n_validation", default=100, show_default=True,
              help="Distinct sentences to hold out, at most a tenth.")  # fmt: skip
@click.option(
    "--validation-files",
    type=click.Path(),
    help="Data set whose items are all held out, instead of sentences of DATASET.",
)
@click.option("--exclude", type=click.Path(), help="File of clips to leave out, a line each: id, or id|reason.")
@click.option("--min-seconds", default=0.3, show_default=True, help="Reject shorter clips.")
@click.option("--max-seconds", default=20.0, show_default=True, help="Reject longer clips.")
@click.option("--trim-db", type=float, help="Trim both ends where they are this far below the loudest part.")
@click.option("--mel-dtype", type=click.Choice(list(MEL_DTYPES)), default="float32", show_default=True,
              help="Of the stored log-mels; float16 halves them, with an error of at most 1/2048.")  # fmt: skip
@click.option("--shards", type=int, metavar="N",
              help=f"Divide the clips into N shards. Default: as --out is, or by {SHARD_CLIPS:,}.")  # fmt: skip
@click.option("--shard", "only", type=int, multiple=True, metavar="I",
              help="Make only this shard, from 0 (repeatable): other processes make the others.")  # fmt: skip
@click.option("--on-bad", type=click.Choice(["skip", "stop"]), default="skip", show_default=True,
              help="Skip rejected items, or stop at the first.")  # fmt: skip
@click.option("--workers", type=int, help="Threads; default: one per core.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@dataclass_options(MelConfig, lambda f: f"Audio parameter {f.name}.")
def prepare(
    dataset: str,
    out: str,
    cleaners: tuple[str, ...],
    n_validation: int,
    validation_files: str | None,
    exclude: str | None,
    min_seconds: float,
    max_seconds: float,
    trim_db: float | None,
    on_bad: str,
    workers: int | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Check the recordings of DATASET and store samples and log-mels in --out.

    DATASET is a folder in LJ-Speech layout (metadata.csv and wavs/) or a filelist of path|text, in UTF-8 or with a
    byte order mark. The same command continues after an interruption; in a complete folder it makes again what has
    changed or is damaged.
    """
    from .prepare import Storage
    from .prepare import prepare as run

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = run(
            dataset,
            out,
            MelConfig(**_take(MelConfig, options)),
            cleaners=cleaners,
            n_validation=n_validation,
            validation=validation_files,
            exclude=exclude,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            trim_db=trim_db,
            storage=Storage(**_take(Storage, options)),
            on_bad=on_bad,
            workers=workers,
            progress=draws_progress(quiet),
        )
    except KeyboardInterrupt:
        click.echo("fastglow: interrupted: run the same command to continue", err=True)
        raise click.Abort() from None
    for name, reason in report.rejected:
        click.echo(f"left out {name}: {reason}", err=True)
    for name, change in report.changes:
        click.echo(f"changed {name}: {change}", err=True)
    if report.dataset is None:
        missing = ", ".join(map(str, report.missing))
        click.echo(f"{out}: {report.made} clips made; of {report.shards} shards these are missing: {missing}")
        return
    counts = {split: len(items) for split, items in report.dataset.items.items()}
    made = "" if report.made or report.changes else "up to date, "
    click.echo(
        f"{out}: {made}{counts['train']} items to train on, {counts['validation']} to validate, "
        f"{report.hours:.2f} hours, {len(report.rejected)} left out"
    )


@click.command()
@click.argument("data", type=click.Path())
@click.option("--quiet", is_flag=True, help="No progress bar.")
def verify(data: str, quiet: bool) -> int:
    """Check every byte of a prepared data set.

    Lists the files that are missing or damaged; the exit code is 1 if there are any. `fastglow prepare` with the same
    options makes the damaged clips again.
    """
    from .checking import find_damage

    damage = find_damage(data, progress=draws_progress(quiet))
    for file, what in damage:
        click.echo(f"{file} {what}")
    if damage:
        count = "1 file is" if len(damage) == 1 else f"{len(damage)} files are"
        click.echo(f"{data}: {count} damaged: run `fastglow prepare` again with the same options")
        return 1
    click.echo(f"{data}: all files are whole")
    return 0


@click.group()
def train() -> None:
    """Train a model on a prepared data set.

    SIGINT (Ctrl-C) and SIGTERM end a run after the batch in progress, with a checkpoint and exit code 0; --resume
    continues from there. --gpus trains on several GPUs of this machine; under torchrun, on those of several machines.
    """


def _read_config_file(ctx: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Makes a JSON file's values the defaults of the other options; accepts DeepLearningExamples' groups."""
    if path is None:
        return
    try:
        values = json.loads(Path(path).read_bytes())  # detects the encoding of bytes
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat |= value if isinstance(value, dict) else {key: value}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise click.BadParameter(f"{path} must be a JSON object of options: {error}") from error
    flat = {key.replace("-", "_"): value for key, value in flat.items()}
    unknown = flat.keys() - {p.name for p in ctx.command.params}
    if unknown:
        raise click.BadParameter(f"{path} sets unknown options: {', '.join(sorted(unknown))}")
    repeatable = {p.name for p in ctx.command.params if isinstance(p, click.Option) and p.multiple}
    # click would iterate over the letters of a single string.
    ctx.default_map = {k: [v] if k in repeatable and isinstance(v, str) else v for k, v in flat.items()}


def _data_options(command: Command) -> Command:
    command = click.option(
        "--config-file",
        type=click.Path(),
        is_eager=True,
        expose_value=False,
        callback=_read_config_file,
        help="JSON file of options; options on the command line take precedence.",
    )(command)
    command = click.option("--quiet", is_flag=True, help="No progress bar.")(command)
    command = click.option(
        "--max-restarts",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="How often to start all processes again after one has failed; they continue from the last checkpoint.",
    )(command)
    command = click.option(
        "--gpus",
        metavar="N|all",
        default="",
        help="Train on this many GPUs of this machine, or on all of them; with --device cpu, in so many processes.",
    )(command)
    command = click.option("--out", "-o", required=True, type=click.Path(file_okay=False), help="Output folder.")(
        command
    )
    return click.option("--data", "-d", required=True, type=click.Path(), help="Prepared data set.")(command)


def _train(model_name: str, config: TrainConfig, model_config: ModelConfig, options: dict[str, Any]) -> None:
    from torch.distributed import is_torchelastic_launched
    from torch.distributed.elastic.multiprocessing.errors import record

    context = click.get_current_context()
    if not is_torchelastic_launched():
        processes = count_processes(options["gpus"], config.device) if options["gpus"] else 1
        if processes > 1 or options["max_restarts"]:
            launch(context.obj.arguments, processes, options["max_restarts"])
            return
    else:
        check_launched(options["gpus"], config.device)

    def run() -> None:
        from .loop import train as run_training

        with joined_ranks() as ranks:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            if not ranks.is_first:  # what the others would say is the same
                logging.disable(logging.WARNING)
                warnings.simplefilter("ignore")
            progress = draws_progress(options["quiet"])
            path = run_training(model_name, config, model_config, progress, _given(context), ranks)
            if ranks.is_first:
                click.echo(f"saved {path}")
        if ranks.several:
            leave_process()

    # `record` tells torchrun's process why this one failed.
    (record(run) if is_torchelastic_launched() else run)()


def _given(context: click.Context) -> set[str]:
    """Names of the options given on the command line or in a file of options."""
    names = {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    return {f"WN_config.{name[3:]}" if name.startswith("wn_") else name for name in names}


@train.command()
@_data_options
@dataclass_options(Tacotron2TrainConfig, lambda f: f.metadata.get("help"))
@dataclass_options(Tacotron2Config, lambda f: f"Model's {f.name}.")
def tacotron2(**options: Any) -> None:
    """Train Tacotron 2 (or continue with --resume, or fine-tune with --init-from)."""
    _train(
        "tacotron2",
        Tacotron2TrainConfig(**_take(Tacotron2TrainConfig, options)),
        Tacotron2Config(**_take(Tacotron2Config, options)),
        options,
    )


def _wn_options(command: Command) -> Command:
    defaults = WaveGlowConfig().WN_config
    for name, (flag, text) in reversed(WN_OPTIONS.items()):
        command = click.option(flag, f"wn_{name}", default=defaults[name], show_default=True, help=text)(command)
    return command


@train.command()
@_data_options
@dataclass_options(WaveGlowTrainConfig, lambda f: f.metadata.get("help"))
@dataclass_options(WaveGlowConfig, lambda f: None if f.name == "WN_config" else f"Model's {f.name}.", WAVEGLOW_ALIASES)
@_wn_options
def waveglow(**options: Any) -> None:
    """Train WaveGlow (or continue with --resume, or fine-tune with --init-from)."""
    wn_config = {name: options[f"wn_{name}"] for name in WN_OPTIONS}
    _train(
        "waveglow",
        WaveGlowTrainConfig(**_take(WaveGlowTrainConfig, options)),
        WaveGlowConfig(**_take(WaveGlowConfig, options), WN_config=wn_config),
        options,
    )
