"""Copies of the decode loop's kernels with one planted fault each, made from their source."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fastglow.kernels.decode_loop import kernels, tiles

_WAIT = """            target += tl.num_programs(0)
            alive = _wait_for_all(p_barrier, target, max_polls, alive)
"""


def without_barrier(phase: int) -> tuple[str, str]:
    """The loop without the barrier after a phase."""
    return _WAIT, f"            if phase != {phase}:\n" + "".join(f"    {line}\n" for line in _WAIT.splitlines())


def mutated_kernels(folder: Path, *replacements: tuple[str, str]) -> ModuleType:
    """A copy of `kernels`, which uses a copy of `tiles`. Each text must be there, in one of them, exactly once."""
    sources = {module.__name__: Path(str(module.__file__)).read_text() for module in (tiles, kernels)}
    for old, new in replacements:
        (name,) = (name for name, source in sources.items() if old in source)
        assert sources[name].count(old) == 1, f"{old!r} is in {name} {sources[name].count(old)} times, must be once"
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
