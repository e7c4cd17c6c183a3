"""What the device does in a training step: nothing in it makes the host wait, so that a CUDA graph can record it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .ema import ExponentialMovingAverage
from .precision import LossScaler


class DeviceStep:
    """Backward passes, then an update or, if a loss or the norm of the gradient is not finite, none.

    An update that is left out changes neither weights nor optimizer, average or buffers (batch-norm statistics would
    never get rid of a NaN); under float16 it changes the scale of the loss. The scalars of the last `capacity` steps
    stay on the device until `read`.

    Args:
        model: what is trained, itself and not a wrapper of it.
        optimizer: over its parameters; a fused one of torch.optim.
        scaler: of the loss.
        ema: average of the weights; None: off.
        max_norm: of the gradient.
        capacity: steps between two calls of `read`, at most.
        world_size: processes whose gradients the backward pass averages.

    Attributes:
        losses: names of the losses, after the first step.
        parameters: of the model.
        rows: [capacity, len(losses) + 3] float64 on the device, see `read`; None before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler,
        ema: ExponentialMovingAverage | None,
        max_norm: float,
        capacity: int = 1,
        world_size: int = 1,
    ):
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.ema = ema
        self.max_norm = max_norm
        self.capacity = capacity
        self.world_size = world_size
        self.parameters = list(model.parameters())
        self._buffers = list(model.buffers())
        self._buffers_before = [torch.empty_like(buffer) for buffer in self._buffers]
        self._sums: dict[str, Tensor] = {}
        self.losses: list[str] = []
        self.rows: Tensor | None = None
        self._next_row = torch.zeros(1, dtype=torch.int64, device=self.parameters[0].device)

    def begin(self) -> None:
        """Before the first forward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers_before, self._buffers)
        self._sums = {}

    def backward(self, losses: Mapping[str, Tensor], weight: float) -> None:
        """The backward pass of a batch.

        Args:
            losses: scalars by name; "loss" is minimised, and contains the others.
            weight: of the batch's losses in the step.
        """
        loss = losses["loss"]
        # The backward pass divides the sum over the processes by their number.
        scaled = self.scaler.scaled(loss * (weight * self.world_size))
        # NaN if the loss is not finite: then so is the gradient, in all processes, which must agree on the update.
        seed = 1 + 0 * loss.detach() if self.world_size > 1 else None
        scaled.backward(None if seed is None else seed.to(scaled.dtype))
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * weight

    @torch.no_grad()
    def update(self) -> None:
        """After the last backward pass."""
        self.scaler.unscale([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm, foreach=True)
        values = torch.stack([*self._sums.values(), norm.double()])
        finite = values.isfinite().all()
        skipped = finite.logical_not().float()
        self._step_unless(skipped)
        for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
            torch.where(finite, buffer, before, out=buffer)
        self.scaler.adapt(skipped)
        if self.ema is not None:
            self.ema.update(self.model, skipped)
        row = torch.cat([values, torch.stack([skipped.double(), self.scaler.scale.double()])])
        if self.rows is None:
            self.rows, self.losses = row.new_zeros(self.capacity, len(row)), list(self._sums)
        self.rows.index_copy_(0, self._next_row, row.unsqueeze(0))
        self._next_row.add_(1).remainder_(self.capacity)

    def read(self, steps: int) -> Tensor:
        """The scalars of the steps since the last call; waits for them.

        Args:
            steps: how many those are, at most `capacity`.

        Returns:
            float64 [steps, len(losses) + 3] on the CPU: the losses of this process, summed with their weights; norm
            of the gradient before clipping; 1 if the update was skipped, else 0; scale of the loss after the step.
        """
        assert self.rows is not None and steps <= self.capacity
        rows = self.rows[:steps].cpu()
        self._next_row.zero_()
        return rows if rows.data_ptr() != self.rows.data_ptr() else rows.clone()

    def _step_unless(self, skipped: Tensor) -> None:
        """PyTorch's fused optimizers look at this flag on the device; torch.amp.GradScaler sets it too."""
        flag = {"found_inf": skipped, "grad_scale": None}
        vars(self.optimizer).update(flag)
        try:
            self.optimizer.step()
        finally:
            for name in flag:
                delattr(self.optimizer, name)
