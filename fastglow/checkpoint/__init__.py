"""Checkpoints: every published format in, safetensors (or NVIDIA's layout) out, no code run on the way."""

from .inspection import CheckpointInfo, inspect_checkpoint
from .io import convert_checkpoint, load_checkpoint, read_trained_with, save_checkpoint, save_nvidia_checkpoint
from .provenance import LexiconFile, TrainedWith, audio_differences, trained_with

__all__ = [
    "CheckpointInfo",
    "LexiconFile",
    "TrainedWith",
    "audio_differences",
    "convert_checkpoint",
    "inspect_checkpoint",
    "load_checkpoint",
    "read_trained_with",
    "save_checkpoint",
    "save_nvidia_checkpoint",
    "trained_with",
]
