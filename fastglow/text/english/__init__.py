"""Normalises English text: writes out numbers, abbreviations and signs."""
