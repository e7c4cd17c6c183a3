"""The device to compute on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; default: the GPU if there is one.

    Raises:
        FastglowError: PyTorch does not know the name, or this machine has no such device.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # fails on devices without data, such as meta
    except Exception as error:  # each backend raises another exception if it is missing
        raise FastglowError(f"device {str(name)!r} is not available on this machine: use --device cpu") from error
    return device


def move(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for the device."""
    if device.type == "cuda" and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def upload(integers: Sequence[int], device: torch.device) -> Tensor:
    """int64 [n] on the device, without waiting for it."""
    return move(torch.tensor(integers, dtype=torch.int64, device="cpu"), device)
