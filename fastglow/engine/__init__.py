"""Inference: text to audio with a voice or with anyone's checkpoints."""

from fastglow.threads import wait_asleep

wait_asleep()  # before torch is loaded

from .synthesizer import Speech, Synthesizer  # noqa: E402

__all__ = ["Speech", "Synthesizer"]
