"""Checkpoints: reads every published format and writes safetensors or NVIDIA's layout, running no code from files."""

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
