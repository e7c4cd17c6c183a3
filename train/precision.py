"""Precision of a run: autocast, the scale of the loss under float16, TF32."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastglow.errors import FastglowError

logger = logging.getLogger(__name__)

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOMATIC = "auto"
"""float16 on a GPU, where DeepLearningExamples' `--amp` means it; bfloat16 on a CPU, which has no fast float16."""

# Below it, gradients overflow although nothing enlarges them.
SMALLEST_SCALE = 1.0


def resolve_amp(amp: str, device: torch.device) -> str:
    """What `AUTOMATIC` means on a device; other values mean themselves."""
    return amp if amp != AUTOMATIC else "fp16" if device.type == "cuda" else "bf16"


def pick_amp(amp: str, device: torch.device) -> str:
    """'off', 'bf16' or 'fp16'; warns where the processor has no instructions for it."""
    amp = resolve_amp(amp, device)
    if device.type == "cpu":
        if amp == "fp16":
            logger.warning("--amp fp16 is slow on a CPU: use --amp bf16")
        if amp == "bf16" and "bf16" not in _processor():
            logger.warning("this processor has no bfloat16 instructions: --amp bf16 is no faster than --amp off")
    if device.type == "cuda" and amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.warning("%s has no bfloat16 instructions: use --amp fp16", torch.cuda.get_device_name(device))
    return amp


def _processor() -> str:
    """What Linux says of the processor, whose flags name bf16 on x86 and on Arm; without /proc, nothing is claimed."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "bf16"


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Inside, float32 matrix products and convolutions on a GPU use TF32, or do not.

    Follows https://docs.pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere. Before PyTorch 2.9 only `allow_tf32`
    exists; since then reading one setting fails after the other was written.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    value: object = on
    if hasattr(matmul, "fp32_precision"):
        settings = [(matmul, "fp32_precision"), *((getattr(cudnn, kind), "fp32_precision") for kind in ("conv", "rnn"))]
        value = "tf32" if on else "ieee"
    else:
        settings = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    before = [getattr(owner, name) for owner, name in settings]
    try:
        for owner, name in settings:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), old in zip(settings, before, strict=True):
            setattr(owner, name, old)


class LossScaler:
    """Scales the loss under float16, so that small gradients do not vanish; does nothing in other dtypes.

    An update whose gradients are not finite is skipped and halves the scale; 2,000 others in a row double it
    (Micikevicius et al. 2018, section 3.2). A given scale does not change.

    Args:
        device: of the model.
        amp: 'off', 'bf16' or 'fp16'.
        loss_scale: 'dynamic', or the scale as a number.
        init_scale: where a dynamic scale begins.
        max_skipped: how many updates in a row may be skipped.

    Attributes:
        skipped: updates that were skipped since the last one that was not.
    """

    def __init__(self, device: torch.device, amp: str, loss_scale: str, init_scale: float, max_skipped: int):
        self.fixed = None if loss_scale == "dynamic" else float(loss_scale)
        self.max_skipped = max_skipped
        self.skipped = 0
        scale = init_scale if self.fixed is None else self.fixed
        self._scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=amp == "fp16")

    @property
    def enabled(self) -> bool:
        return self._scaler.is_enabled()

    @property
    def scale(self) -> float:
        return self._scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        self._scaler.unscale_(optimizer)

    def update(self, optimizer: Optimizer, finite: bool) -> bool:
        """Makes the update, or skips it if a gradient is not finite; whether it was made.

        Args:
            optimizer: whose gradients are unscaled.
            finite: whether the loss and the norm of the gradient are.

        Raises:
            FastglowError: the scale fell below `SMALLEST_SCALE`, or too many updates in a row were skipped.
        """
        if finite:
            self._scaler.step(optimizer)
            self._scaler.update(self.fixed)
        elif self.enabled:
            # Also where only the loss, or the squares of the norm, are not finite, which the scaler does not see.
            self._scaler.update(self.fixed or self.scale * self._scaler.get_backoff_factor())
            self._scaler.load_state_dict(self._scaler.state_dict() | {"_growth_tracker": 0})
        if not self.enabled:
            return finite
        self.skipped = 0 if finite else self.skipped + 1
        row = f"{self.skipped} updates in a row without finite gradients"
        advice = "lower the learning rate or use --amp bf16, and resume"
        if not finite and self.fixed is None and self.scale < SMALLEST_SCALE:
            raise FastglowError(
                f"the loss scale fell to {self.scale:g} after {row}, although a scale below "
                f"{SMALLEST_SCALE:g} enlarges nothing: {advice}"
            )
        if self.skipped > self.max_skipped > 0:
            raise FastglowError(
                f"{row} at a loss scale of {self.scale:g}, max_skipped={self.max_skipped} is the limit: {advice}"
            )
        return finite

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the scale, unless it is given or float16 is off, now or before.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is malformed.
        """
        if self.enabled and self.fixed is None and state["scaler"]:
            if not (isfinite(state["scaler"]["scale"]) and state["scaler"]["scale"] > 0):
                raise ValueError(f"the loss scale {state['scaler']['scale']} must be positive")
            self._scaler.load_state_dict(state["scaler"])
            self.skipped = int(state["skipped"])
