"""Triton's interpreter without what takes more than half of its time and changes no result."""

from dataclasses import replace
from typing import Any

from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang
_patched: set[int] = set()


class _Scope:
    def __init__(self, scope: Any):
        self._scope = scope

    def restore(self) -> None:
        if self._scope is not None:
            self._scope.restore()
        _patched.clear()


def _patch_once(fn: Any) -> _Scope:
    """Once a launch and module, and not in each call of a device function."""
    if id(fn.__globals__) in _patched:
        return _Scope(None)
    scope = _Scope(_patch_lang(fn))  # before Triton 3.6 it gives no scope, and leaves its changes
    _patched.add(id(fn.__globals__))
    return scope


def quicken() -> None:
    """In this process, from now on; twice is once. One thread may launch at a time.

    Triton's own check of integers is left out: it computes each sum and product a second time, in 64 bits, and reports
    nothing without its option `debug`. `execution/arithmetic.py` has one for sizes that are large enough to wrap.
    """
    builder = interpreter.interpreter_builder
    interpreter._patch_lang = _patch_once
    builder.options = replace(builder.options, sanitize_overflow=False)
