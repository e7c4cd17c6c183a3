"""Launching kernels, and choosing their launch configurations.

Each kernel lists its candidate configurations. The one for a call is looked up in ``configs/<gpu>.json``, written by
``make tune``, at the nearest measured shape; a heuristic decides for a GPU or kernel without measurements. Nothing is
tuned at run time.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton.language as tl
from torch import Tensor

from fastglow.errors import FastglowError

from .arguments import dtype_name
from .backend import launches

CONFIG_FOLDER = Path(__file__).parent / "configs"

MOST_PROGRAMS = (2**31 - 1, 65_535, 65_535)
"""Per dimension of a grid; CUDA refuses more with "invalid argument"."""

Config = Mapping[str, int]
"""Block sizes by the kernel's parameter names, with num_warps and num_stages."""

Blocks = TypeVar("Blocks", bound=tuple)


class Choice(NamedTuple):
    """A call of `pick_config`."""

    kernel: str
    candidates: tuple[Config, ...]
    dtype: str
    shape: tuple[tuple[str, int], ...]


_compile_only: ContextVar[list | None] = ContextVar("fastglow_compile_only", default=None)

# Global and not a ContextVar: autograd runs backward passes on a GPU in its own threads.
_configs_for_all: Mapping[str, Config] = {}
_choices: list[Choice] | None = None


def uncompiled(function: Callable) -> Callable:
    """Excludes a function from torch.compile, which breaks its graph at the call."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # importing the compiler takes a second
            return torch._dynamo.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@uncompiled
def launch(op: str, kernel: Any, grid: tuple[int, ...], *args: Any, device: torch.device, **options: Any) -> None:
    """Launches a jitted kernel on `device` and counts it under the operation's name.

    Raises:
        FastglowError: a dimension of the grid is larger than a GPU allows.
    """
    for axis, n, most in zip("xyz", grid, MOST_PROGRAMS, strict=False):
        if n > most:
            raise FastglowError(
                f"{op}: {kernel.__name__} would need {n} programs in dimension {axis} of its grid, must be at most "
                f"{most}: split the batch"
            )
    compiled = _compile_only.get()
    if compiled is not None:
        compiled.append((op, kernel.__name__, kernel.warmup(*args, grid=grid, **options)))
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **options)
    launches[op] += 1


def pick_config(
    kernel: str,
    candidates: tuple[Config, ...],
    heuristic: Callable[..., Config],
    tensor: Tensor,
    **shape: int,
) -> Config:
    """The launch configuration of a kernel for a shape.

    Args:
        kernel: its key in the JSON files, its name without ``_kernel``.
        candidates: all configurations that the kernel may run with.
        heuristic: picks a candidate from (dtype, **shape) without measurements.
        tensor: gives the device and the dtype.
        shape: the sizes that the choice depends on.
    """
    choice = Choice(kernel, candidates, dtype_name(tensor.dtype), tuple(shape.items()))
    if _choices is not None:
        _choices.append(choice)
    if kernel in _configs_for_all:
        return _configs_for_all[kernel]
    measured = _nearest(gpu_of(tensor), kernel, choice.dtype, choice.shape)
    return measured if measured in candidates else heuristic(tensor.dtype, **shape)


def split_config(struct: type[Blocks], config: Config, **constants: Any) -> tuple[Blocks, dict[str, int]]:
    """A launch configuration as a kernel takes it: (compile-time constants, num_warps and num_stages).

    Args:
        struct: NamedTuple of the constants.
        config: its block sizes are fields of the struct.
        constants: the struct's other fields.
    """
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    values = {name: size for name, size in config.items() if name not in options} | constants
    return struct(**{name: tl.constexpr(value) for name, value in values.items()}), options


@contextmanager
def compile_only() -> Iterator[list[tuple[str, str, Any]]]:
    """Inside, kernels are compiled for the active driver's target but do not run: use meta tensors.

    Yields a list that gets (op, kernel, compiled) per launch.
    """
    compiled: list[tuple[str, str, Any]] = []
    token = _compile_only.set(compiled)
    try:
        yield compiled
    finally:
        _compile_only.reset(token)


def compiles_only() -> bool:
    """Whether the call is inside `compile_only`."""
    return _compile_only.get() is not None


@contextmanager
def use_config(kernel: str, config: Config) -> Iterator[None]:
    """Inside, a kernel runs with this configuration for any shape: for tuning and for tests. Calls may be nested."""
    global _configs_for_all
    before, _configs_for_all = _configs_for_all, {**_configs_for_all, kernel: config}
    try:
        yield
    finally:
        _configs_for_all = before


@contextmanager
def record_choices() -> Iterator[list[Choice]]:
    """Yields a list of every `pick_config` call inside: what to tune."""
    global _choices
    before, _choices = _choices, []
    try:
        yield _choices
    finally:
        _choices = before


def gpu_slug(name: str) -> str:
    """'NVIDIA H200' -> 'nvidia-h200': the name of a GPU's JSON files of configurations and baselines."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def product_precision(dtype: torch.dtype, convolution: bool = False) -> str:
    """`input_precision` of a kernel's products: TF32 for float32 where PyTorch's matmuls, or convolutions, use it."""
    older = torch.backends.cudnn if convolution else torch.backends.cuda.matmul
    newer = getattr(older, "conv", None) if convolution else older
    # Since PyTorch 2.9 either may be set, and reading allow_tf32 fails once fp32_precision was set.
    precision = getattr(newer, "fp32_precision", None) or ("tf32" if older.allow_tf32 else "ieee")
    return "tf32" if dtype == torch.float32 and precision == "tf32" else "ieee"


def gpu_of(tensor: Tensor) -> str | None:
    """The slug of the tensor's GPU; None on a CPU."""
    return gpu_slug(_device_name(tensor.device.index or 0)) if tensor.is_cuda else None


def forget_measurements() -> None:
    """Makes `pick_config` read the JSON files again."""
    _measured.cache_clear()
    _nearest.cache_clear()


@cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@cache
def _measured(gpu: str | None) -> dict[str, list[dict]]:
    """Entries {'dtype', 'shape', 'config'} by kernel; empty for a GPU without measurements."""
    path = CONFIG_FOLDER / f"{gpu}.json"
    return json.loads(path.read_text(encoding="utf-8"))["kernels"] if gpu and path.exists() else {}


@cache
def _nearest(gpu: str | None, kernel: str, dtype: str, shape: tuple[tuple[str, int], ...]) -> Config | None:
    def distance(entry: dict) -> float:
        return sum(abs(math.log2(max(1, size)) - math.log2(max(1, entry["shape"][name]))) for name, size in shape)

    entries = [entry for entry in _measured(gpu).get(kernel, ()) if entry["shape"].keys() == dict(shape).keys()]
    # fp16 and bf16 share tuned configurations.
    for measured_dtype in (dtype, {"bfloat16": "float16", "float16": "bfloat16"}.get(dtype)):
        if of_dtype := [entry for entry in entries if entry["dtype"] == measured_dtype]:
            return min(of_dtype, key=distance)["config"]
    return None
