"""A prediction, in Markdown."""

from collections.abc import Iterator, Sequence

from . import stragglers
from .links import Link
from .steps import Step
from .timeline import buckets, several

GPUS_PER_NODE = 8

PCM_BYTES = 2
MEL_BYTES = 80 * 2  # a frame of 80 channels in float16


def page(
    steps: Sequence[Step],
    links: Sequence[tuple[Link, int]],
    lengths: Sequence[int],
    source: str,
    accumulate: int = 1,
    bucket_batches: int = 0,
) -> str:
    """
    Args:
        steps: on one GPU.
        links: each with a number of GPUs.
        lengths: frames of the data set's clips.
        source: of the steps.
        accumulate: passes of a step.
        bucket_batches: as `fastglow train --bucket-batches`.
    """
    lines = [
        f"Steps: {source}.",
        "",
        *_gradients(steps),
        "",
        *_scaling(steps, links, lengths, accumulate, bucket_batches),
    ]
    lines += ["", *_loading(steps, links), ""]
    lines += [f"- {link.name}: {_figures(link)} ({link.source})." for link in dict.fromkeys(link for link, _ in links)]
    return "\n".join(lines)


def _figures(link: Link) -> str:
    latency = f"{1e6 * link.latency:.0f} us for {link.ranks}"
    return f"bus bandwidth {link.bus_bytes_per_second / 1e9:.4g} GB/s, latency {latency}"


def _gradients(steps: Sequence[Step]) -> Iterator[str]:
    yield "| model | gradients, MB | buckets | ready at a quarter, half, three quarters of the backward pass |"
    yield "|---|--:|--:|---|"
    for model in dict.fromkeys(step.model for step in steps):
        profile = next(step for step in steps if step.model == model).profile()
        total = sum(gradient.size for gradient in profile)
        ready = [sum(size for at, size in profile if at <= quarter / 4) / total for quarter in (1, 2, 3)]
        shares = ", ".join(f"{share:.0%}" for share in ready)
        yield f"| {model} | {total / 1e6:.1f} | {len(list(buckets(profile)))} | {shares} |"


def _scaling(
    steps: Sequence[Step],
    links: Sequence[tuple[Link, int]],
    lengths: Sequence[int],
    accumulate: int,
    bucket_batches: int,
) -> Iterator[str]:
    yield (
        "| step | GPUs | link | global batch | one GPU, ms | all-reduce, ms | hidden | step, ms | efficiency | "
        "with stragglers | all GPUs |"
    )
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for step in steps:
        alone = step.parts(accumulate)
        for link, ranks in links:
            together = several(alone, step.profile(), link, ranks)
            slowdown = 1.0
            if step.unit == "frames":  # WaveGlow's segments have one length
                slowdown = stragglers.slowdown(lengths, step.batch, ranks, bucket_batches)
            computing = together.seconds - together.waiting
            slowest = together.seconds + (slowdown - 1) * computing
            rate = ranks * accumulate * step.units / slowest
            batch = step.batch * accumulate * ranks
            yield (
                f"| {step.name} | {ranks} | {link.name} | {batch:,} | {1e3 * alone.seconds:.1f} | "
                f"{1e3 * together.communicating:.2f} | {together.overlap:.0%} | {1e3 * together.seconds:.1f} | "
                f"{alone.seconds / together.seconds:.1%} | {alone.seconds / slowest:.1%} | "
                f"{rate / 1e6:.3g} M {step.unit}/s |"
            )


def _loading(steps: Sequence[Step], links: Sequence[tuple[Link, int]]) -> Iterator[str]:
    yield "| step | a GPU reads | a node of 8 reads | bytes a second, node | updates of an epoch of LJSpeech |"
    yield "|---|--:|--:|--:|--:|"
    sizes = sorted({ranks for _, ranks in links})
    for step in steps:
        rate = step.units / step.seconds
        size = PCM_BYTES if step.unit == "samples" else MEL_BYTES
        updates = ", ".join(f"{-(-stragglers.LJSPEECH_CLIPS // (step.batch * n)):,} on {n}" for n in sizes)
        yield (
            f"| {step.name} | {rate / 1e6:.3g} M {step.unit}/s | {GPUS_PER_NODE * rate / 1e6:.3g} M {step.unit}/s | "
            f"{GPUS_PER_NODE * rate * size / 1e6:,.0f} MB/s | {updates} |"
        )
