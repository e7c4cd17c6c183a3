"""Choice of the device to compute on."""

import torch

from fastglow.errors import FastglowError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or by default the GPU if there is one.

    Raises:
        FastglowError: PyTorch does not know the name, or this machine has no such device.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # meta and the like hold no numbers
    except Exception as error:  # every backend has its own way to be absent
        raise FastglowError(f"device {str(name)!r} is not available on this machine: use --device cpu") from error
    return device
