"""The checks of `fastglow doctor`, in the order of its report. Reading them loads no torch."""

from fastglow._requirements import REQUIRED
from fastglow.voices import list_voices

from . import gpus, machine, packages, voices
from .findings import Check, Finding
from .operations import OPERATIONS

DTYPES = ("float32", "float16", "bfloat16")

SELF_TEST_SECONDS = 300.0
"""Most of it is for compiling an operation's kernels."""


KERNELS_REMEDY = "set FASTGLOW_BACKEND=reference, and open an issue with this output"


def environment() -> list[Check]:
    """Checks of everything but the kernels' results."""
    of_machine = {
        "system": machine.system,
        "processor": machine.processor,
        "memory": machine.memory,
        "threads": machine.threads,
        "temporary folder": machine.temporary_folder,
    }
    of_gpus = {
        "GPU": gpus.gpus,
        "C compiler": gpus.compiler,
        "Triton's cache": gpus.kernel_cache,
        "launch configurations": gpus.launch_configurations,
    }
    return [
        *(Check("machine", name, function) for name, function in of_machine.items()),
        *(Check("packages", name, packages.package, (name,)) for name in (*REQUIRED, *packages.OPTIONAL)),
        Check("packages", "torch and triton", packages.triton_pair, remedy=packages.REINSTALL),
        Check("packages", "audio formats", packages.audio_formats, remedy=packages.REINSTALL),
        *(Check("GPU", name, function, remedy=gpus.REMEDY) for name, function in of_gpus.items()),
        *(Check("voices", name, voices.speaks, (name,), remedy=voices.REMEDY) for name in list_voices()),
        *([] if list_voices() else [Check("voices", "voices", voices.none_bundled)]),
        Check("kernels", "what runs", _what_runs, remedy=KERNELS_REMEDY),
    ]


def self_tests() -> list[Check]:
    """A check of every operation in every dtype."""
    return [
        Check("kernels", f"{name}, {dtype}", _self_test, (name, dtype), SELF_TEST_SECONDS, KERNELS_REMEDY)
        for name in OPERATIONS
        for dtype in DTYPES
    ]


def _what_runs() -> list[Finding]:
    from .self_test import what_runs

    return what_runs()


def _self_test(operation: str, dtype: str) -> list[Finding]:
    import torch

    from .self_test import self_test

    # The kernels take TF32 where PyTorch does. The process is the doctor's own, so nothing is restored.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return self_test(operation, dtype)
