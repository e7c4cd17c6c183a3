"""The packages of the extra `evaluation`, which are no dependencies of fastglow."""

import importlib.util

from fastglow.errors import FastglowError


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require(package: str, purpose: str) -> None:
    """Raises FastglowError unless a package is installed."""
    if not is_installed(package):
        raise FastglowError(missing(package, purpose))


def missing(package: str, purpose: str) -> str:
    """A line that says what to install."""
    return f"{purpose} need {package}: pip install -e '.[evaluation]'"
