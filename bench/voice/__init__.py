"""Evaluation of a voice: `python -m bench.voice`; see bench/README.md."""

from .speaking import word_error
from .word_errors import WordErrors

__all__ = ["WordErrors", "word_error"]
