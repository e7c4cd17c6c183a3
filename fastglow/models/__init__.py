"""Tacotron 2 and WaveGlow, assembled from fastglow.modules."""

from .tacotron2 import Tacotron2, Tacotron2Config
from .waveglow import WaveGlow, WaveGlowConfig

__all__ = ["Tacotron2", "Tacotron2Config", "WaveGlow", "WaveGlowConfig"]
