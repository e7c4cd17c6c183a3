"""Copies of the decode loop's kernels with one planted fault each, made from their source."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fastglow.kernels.decode_loop import kernels, tiles

Replacement = tuple[str, str, int]
"""Text of the source, what replaces it, and how often the text must be there."""


def without_barrier(phase: int) -> list[Replacement]:
    """The loop without the barrier after a phase."""
    statements = (
        "target += n_programs",
        "_arrive(p_barrier)",
        "alive = _wait(p_barrier, target, max_polls, alive)",
        "alive = _wait_for_all(p_barrier, target, max_polls, alive)",
    )
    return [(f" {one}\n", f" if phase != {phase}: {one}\n".replace(": ", ":\n" + " " * 20), 1) for one in statements]


def mutated_kernels(folder: Path, *replacements: Replacement) -> ModuleType:
    """A copy of `kernels`, which uses a copy of `tiles`. Each text must be in one of them."""
    sources = {module.__name__: Path(str(module.__file__)).read_text() for module in (tiles, kernels)}
    for old, new, n in replacements:
        counts = {name: source.count(old) for name, source in sources.items() if old in source}
        assert list(counts.values()) == [n], f"{old!r} is there {counts} times, must be in one file {n} times"
        (name,) = counts
        sources[name] = sources[name].replace(old, new)
    names = {name: f"{name}_{folder.name}" for name in sources}
    sources[kernels.__name__] = sources[kernels.__name__].replace(
        "from .tiles import", f"from .{names[tiles.__name__].rpartition('.')[2]} import"
    )
    for name, source in sources.items():
        path = folder / f"{name.rpartition('.')[2]}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(names[name], path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[names[name]] = module
        spec.loader.exec_module(module)
    return module
