"""Evaluation of a voice: `python -m bench.voice`; see bench/README.md."""
