"""The command `fastglow bench`."""

import json
import warnings
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from fastglow.benchmark.texts import FEWEST_CHARACTERS
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.outputs import check_writable, draws_progress

from .options import VoiceChoice, voice_options
from .reports import computed_with

if TYPE_CHECKING:
    from fastglow.benchmark.measuring import Results

MOST_SECONDS = 86_400


class Sizes(click.ParamType):
    """Integers, separated by commas, each from `least` to `most`; sorted, without repetitions."""

    name = "N,N,..."

    def __init__(self, least: int, most: int):
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):  # converted already
            return value
        try:
            sizes = {int(part) for part in value.split(",")}
        except ValueError:
            self.fail(f"{value!r} must be integers separated by commas, such as 16,128", param, ctx)
        wrong = [size for size in sorted(sizes) if not self.least <= size <= self.most]
        if wrong:
            self.fail(f"{wrong[0]} must be from {self.least} to {self.most}", param, ctx)
        return tuple(sorted(sizes))


@click.command()
@voice_options
@click.option("--seconds", default=60.0, show_default=True,
              help="Time for the runs. Loading, and the compilation of kernels, come on top.")  # fmt: skip
@click.option("--characters", type=Sizes(FEWEST_CHARACTERS, 10_000), default="16,128,512", show_default=True,
              help="Lengths of the texts.")  # fmt: skip
@click.option("--batch-sizes", type=Sizes(1, 1024), default="1,8,64", show_default=True,
              help="Numbers of texts that are spoken together.")  # fmt: skip
@click.option("--json", "json_path", is_flag=False, flag_value="-", metavar="[FILE]",
              help="Report every run as one JSON object: to FILE, or instead of the table.")  # fmt: skip
@click.option("--plot", type=click.Path(), help="Save the curves as PNG (needs matplotlib).")
@click.option("-q", "--quiet", is_flag=True, help="No table and no progress bar.")
def bench(
    seconds: float, characters: tuple[int, ...], batch_sizes: tuple[int, ...], json_path: str | None,
    plot: str | None, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Measure how fast a voice speaks on this machine.

    Latency, time to the first sound, throughput of batches, memory and the time to load, each as the median of
    repeated runs. Where fastglow's kernels run, the same work is measured with plain PyTorch operations in turn with
    them.
    """
    from fastglow.plotting import require_matplotlib
    from fastglow.threads import let_threads_sleep

    if not 1 <= seconds <= MOST_SECONDS:  # false for nan
        raise FastglowError(f"--seconds {seconds} must be from 1 to {MOST_SECONDS}")
    for path in (json_path, plot):
        if path and path != "-":
            check_writable(path)
    if plot:
        require_matplotlib()
    let_threads_sleep()  # before torch is loaded
    report = _measure(VoiceChoice.of(options), seconds, characters, batch_sizes, draws_progress(quiet))
    if plot:
        from fastglow.benchmark.plot import plot_report

        figure = plot_report(report)
        with replacing(plot) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    if json_path:
        text = json.dumps(report, ensure_ascii=False)
        if json_path == "-":
            click.echo(text)
            return
        with replacing(json_path) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    if not quiet:
        from fastglow.benchmark.table import as_lines

        click.echo("\n".join(as_lines(report)))


def _measure(
    choice: VoiceChoice, seconds: float, characters: tuple[int, ...], batch_sizes: tuple[int, ...], progress: bool
) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from fastglow.benchmark import machine
    from fastglow.benchmark.measuring import Benchmark, Case, Implementation
    from fastglow.benchmark.report import as_object
    from fastglow.benchmark.speaking import load_case, speaking_cases
    from fastglow.devices import pick_device
    from fastglow.engine.remarks import DecoderStepLimitWarning, FaultySpeechWarning, SilentTextWarning
    from fastglow.kernels import backend

    voice = choice.resolve()
    device = pick_device(choice.device)
    memory = machine.memory_of(device)
    started = perf_counter()
    synthesizer = choice.load()
    loading = load_case(choice.load, perf_counter() - started)
    before = _own_calls()
    with (
        tqdm(total=seconds, leave=False, disable=not progress, bar_format="{l_bar}{bar}| {desc}") as bar,
        warnings.catch_warnings(),
    ):
        for category in (DecoderStepLimitWarning, FaultySpeechWarning, SilentTextWarning):  # the report says it
            warnings.simplefilter("ignore", category)

        def show(case: Case, spent: float) -> None:
            bar.set_description_str(case.title, refresh=False)
            bar.update(min(spent, seconds) - bar.n)

        benchmark = Benchmark(
            [*speaking_cases(synthesizer, characters, batch_sizes), loading],
            [
                Implementation("fastglow", nullcontext),
                Implementation("reference", lambda: backend.use_backend(backend.REFERENCE)),
            ],
            seconds,
            memory,
            perf_counter,
            ran_reference=lambda: _own_calls() == before,
            n_warm_up=2 if device.type == "cuda" else 1,  # the second call records CUDA graphs
            too_large=(MemoryError, torch.OutOfMemoryError),
            on_call=show,
        )
        results = benchmark.run()
    return as_object(
        results,
        synthesizer.audio.sampling_rate,
        {
            **machine.describe(device),
            "voice": voice.name or str(voice.tacotron2),
            "vocoder": voice.vocoder,
            **{name: value for name, value in computed_with(synthesizer).items() if name != "device"},
            "budget_seconds": seconds,
            "memory_method": memory.method,
            "reserved_bytes": memory.reserved_bytes(),
            "note": _note(results, device.type == "cuda", backend.backend_name()),
        },
    )


def _own_calls() -> int:
    """Calls so far of anything but references."""
    from fastglow.kernels import backend

    return backend.launches.total() + backend.cpu_calls.total()


def _note(results: "Results", on_gpu: bool, backend_name: str) -> str | None:
    """Why there is no comparison, if there is none."""
    if len(results.implementations) > 1:
        return None
    if backend_name == "reference":
        return "the reference was asked for (FASTGLOW_BACKEND): it is what ran"
    what = "no kernel supports this voice" if on_gpu else "without a GPU, only float32 and bfloat16 have a faster form"
    return f"{what}: the reference is what ran"
