"""Precision of a run: autocast, the scale of the loss under float16, TF32."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastglow.errors import FastglowError

logger = logging.getLogger(__name__)

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOMATIC = "auto"
"""float16 on a GPU, where DeepLearningExamples' `--amp` means it; bfloat16 on a CPU, which has no fast float16."""

# Below it, gradients overflow although nothing enlarges them.
SMALLEST_SCALE = 1.0

GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000


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

    An update whose loss or gradients are not finite is skipped and halves the scale; 2,000 others in a row double it
    (Micikevicius et al. 2018, section 3.2). A given scale does not change. All of that happens on the device, as in
    torch.amp.GradScaler, whose state this has, and which does not look at the loss.

    Args:
        device: of the model.
        amp: 'off', 'bf16' or 'fp16'.
        loss_scale: 'dynamic', or the scale as a number.
        init_scale: where a dynamic scale begins.
        max_skipped: how many updates in a row may be skipped.

    Attributes:
        enabled: whether `amp` is 'fp16'.
        scale: 0-d float32 on the device.
        skipped: updates that were skipped since the last one that was not, as far as `judge` was told.
    """

    def __init__(self, device: torch.device, amp: str, loss_scale: str, init_scale: float, max_skipped: int):
        self.enabled = amp == "fp16"
        self.fixed = None if loss_scale == "dynamic" else float(loss_scale)
        self.max_skipped = max_skipped
        self.skipped = 0
        scale = (init_scale if self.fixed is None else self.fixed) if self.enabled else 1.0
        self.scale = torch.full((), scale, dtype=torch.float32, device=device)
        self._made_in_a_row = torch.zeros((), dtype=torch.int32, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale if self.enabled else loss

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divides the gradients by the scale, in place."""
        if self.enabled:
            torch._foreach_mul_(gradients, self.scale.double().reciprocal().float())

    def adapt(self, skipped: Tensor) -> None:
        """Changes the scale after an update.

        Args:
            skipped: 0-d float32 on the device, 1 if the update was skipped, else 0.
        """
        if self.enabled and self.fixed is None:
            torch._amp_update_scale_(self.scale, self._made_in_a_row, skipped, GROWTH, BACKOFF, GROWTH_INTERVAL)

    def judge(self, skipped: bool, scale: float) -> None:
        """Counts an update on the host, later.

        Args:
            skipped: whether it was skipped.
            scale: after it.

        Raises:
            FastglowError: the scale fell below `SMALLEST_SCALE`, or too many updates in a row were skipped.
        """
        self.skipped = self.skipped + 1 if skipped else 0
        row = f"{self.skipped} updates in a row without finite gradients"
        advice = "lower the learning rate or use --amp bf16, and resume"
        if skipped and self.fixed is None and scale < SMALLEST_SCALE:
            raise FastglowError(
                f"the loss scale fell to {scale:g} after {row}, although a scale below "
                f"{SMALLEST_SCALE:g} enlarges nothing: {advice}"
            )
        if self.skipped > self.max_skipped > 0:
            raise FastglowError(
                f"{row} at a loss scale of {scale:g}, max_skipped={self.max_skipped} is the limit: {advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Of torch.amp.GradScaler, in "scaler", and the count of skipped updates; waits for the device."""
        scaler = {
            "scale": self.scale.item(),
            "growth_factor": GROWTH,
            "backoff_factor": BACKOFF,
            "growth_interval": GROWTH_INTERVAL,
            "_growth_tracker": self._made_in_a_row.item(),
        }
        return {"scaler": scaler if self.enabled else {}, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the scale, unless it is given or float16 is off, now or before.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is malformed.
        """
        saved = state["scaler"]
        if self.enabled and self.fixed is None and saved:
            if not (isfinite(saved["scale"]) and saved["scale"] > 0):
                raise ValueError(f"the loss scale {saved['scale']} must be positive")
            self.scale.fill_(saved["scale"])
            self._made_in_a_row.fill_(saved["_growth_tracker"])
            self.skipped = int(state["skipped"])
