"""English text as a voice says it: everything written in short is written out."""

from fastglow.text.english.normalization import normalize

__all__ = ["normalize"]
