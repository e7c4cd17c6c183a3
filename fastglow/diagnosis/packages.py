"""Checks of the packages: their versions, whether they load, and what libsndfile can write."""

import importlib
import platform
import re
from importlib import metadata

from fastglow._requirements import MARKERS, PLOT, REQUIRED, TRAIN
from fastglow.audio.formats import FORMATS

from .findings import Finding, Status, one_line

OPTIONAL = {"matplotlib": "plot", "tensorboard": "train"}
"""Extra of setup.py that brings a package, by its name."""

REINSTALL = "install fastglow's packages again: pip install --force-reinstall fastglow"

_OLDEST = {**PLOT, **TRAIN, **REQUIRED}


def release(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu": the numbers of a version, without trailing zeros."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def package(name: str) -> list[Finding]:
    """Its version, against the oldest that works, and whether it can be imported."""
    requirement = f"{name}>={_OLDEST[name]}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if not _is_needed_here(name):
            return [Finding(name, "skipped", "not installed; not needed on this platform")]
        if name in OPTIONAL:
            return [Finding(name, "skipped", f"not installed; optional, of the extra {OPTIONAL[name]!r}")]
        return [Finding(name, "failed", "not installed", f"pip install '{requirement}'")]
    status: Status = "warning" if name in OPTIONAL else "failed"
    if release(version) < release(_OLDEST[name]):
        detail = f"{version} is too old, {_OLDEST[name]} or newer is needed"
        return [Finding(name, status, detail, f"pip install -U '{requirement}'")]
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception as error:
        detail = one_line(f"{version} does not load: {type(error).__name__}: {error}")
        return [Finding(name, status, detail, f"pip install --force-reinstall '{requirement}'")]
    return [Finding(name, "ok", f"{version} (needed: {_OLDEST[name]} or newer)")]


def _is_needed_here(name: str) -> bool:
    """By its marker, which is an expression in Python."""
    platform_names = {"platform_machine": platform.machine(), "platform_system": platform.system()}
    return bool(eval(MARKERS.get(name, "True"), {}, platform_names))


def triton_pair() -> list[Finding]:
    """Whether Triton is the version that torch names, where it names one."""
    pattern = re.compile(r"triton==([\w.]+)")
    pinned = next((m[1] for m in map(pattern.match, metadata.requires("torch") or ()) if m), None)
    version = metadata.version("triton")
    if pinned is None or release(pinned) == release(version):
        return []
    detail = f"torch {metadata.version('torch')} was made for Triton {pinned}, not {version}"
    return [Finding("torch and triton", "warning", detail, f"pip install triton=={pinned}")]


def audio_formats() -> list[Finding]:
    import soundfile

    library = f"libsndfile {soundfile.__libsndfile_version__}"
    missing = [name for name, f in FORMATS.items() if not soundfile.check_format(f.container, f.subtype)]
    if missing:
        remedy = "pip install -U soundfile, whose wheel brings a newer libsndfile"
        return [Finding("audio formats", "warning", f"{library} cannot write {', '.join(missing)}", remedy)]
    return [Finding("audio formats", "ok", f"{library} writes {', '.join(FORMATS)}")]
