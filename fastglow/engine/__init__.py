"""Inference: text to audio with a voice or with anyone's checkpoints."""

from fastglow.threads import let_threads_sleep

let_threads_sleep()  # before torch is loaded

from .synthesizer import Sentence, Speech, Synthesizer  # noqa: E402

__all__ = ["Sentence", "Speech", "Synthesizer"]
