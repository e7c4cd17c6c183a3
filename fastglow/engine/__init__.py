"""Inference: text to audio with a voice or with anyone's checkpoints."""

from .synthesizer import Speech, Synthesizer

__all__ = ["Speech", "Synthesizer"]
