"""Checkpoints: every published format in, safetensors (or NVIDIA's layout) out, no code run on the way."""

from .inspection import CheckpointInfo, inspect_checkpoint
from .io import convert_checkpoint, load_checkpoint, save_checkpoint, save_nvidia_checkpoint

__all__ = [
    "CheckpointInfo",
    "convert_checkpoint",
    "inspect_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "save_nvidia_checkpoint",
]
