"""Tacotron 2 and WaveGlow, assembled from fastglow.modules."""

from fastglow.threads import let_threads_sleep

let_threads_sleep()  # before torch is loaded

from .tacotron2 import Tacotron2, Tacotron2Config  # noqa: E402
from .waveglow import WaveGlow, WaveGlowConfig  # noqa: E402

__all__ = ["Tacotron2", "Tacotron2Config", "WaveGlow", "WaveGlowConfig"]
