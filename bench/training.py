"""A training step of a whole model: forward, loss, backward, clipping, optimizer, as `fastglow train` does it."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastglow.train.device_step import DeviceStep
from fastglow.train.precision import LossScaler

from .environment import device, has_gpu
from .precision import OFF, Precision
from .workload import EAGER, FASTGLOW, ORDINARY, PEER, TRAIN_STEP, Cost, Implementation, Workload, launching

STEPS_FOR_THE_SCALE = 24
"""Steps in which a GradScaler must have found a scale at which the gradients are finite: it halves 2**16 in each."""

ADAM_BYTES = 6 * 4
"""Per parameter: reads and writes it and two moments, in float32."""


@dataclass(frozen=True)
class Trainee:
    """A model in training.

    Attributes:
        network: inputs -> output.
        parameters: by their published names.
        criterion: (output, targets) -> loss.
    """

    network: Callable[[Any], Any]
    parameters: Mapping[str, nn.Parameter]
    criterion: Callable[[Any, Any], Tensor]

    def loss(self, batch: "Batch") -> Tensor:
        return self.criterion(self.network(batch.inputs), batch.targets)


class Batch(NamedTuple):
    inputs: Any
    targets: Any


class Recipe(NamedTuple):
    """Options of the optimizer."""

    learning_rate: float
    weight_decay: float
    grad_clip_thresh: float


class Step(NamedTuple):
    """What a step reports.

    Attributes:
        loss: before the step.
        grad_norm: before clipping; not finite: the GradScaler skipped the step.
    """

    loss: Tensor
    grad_norm: Tensor


def train_step(
    trainee: Trainee, batch: Batch, precision: Precision, recipe: Recipe, fused: bool = False
) -> Callable[[], Step]:
    """A call that makes one step.

    Args:
        fused: Adam has one kernel for all parameters; else PyTorch's default.
    """
    parameters = list(trainee.parameters.values())
    optimizer = torch.optim.Adam(
        parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused or None
    )
    scaler = torch.amp.GradScaler(device().type, enabled=precision.dtype == torch.float16)

    def step() -> Step:
        optimizer.zero_grad(set_to_none=True)
        with precision.products():
            with precision.autocast():
                loss = trainee.loss(batch)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip_thresh)
        scaler.step(optimizer)
        scaler.update()
        return Step(loss.detach(), norm.detach())

    return step


def our_step(
    trainee: Trainee, batch: Batch, precision: Precision, recipe: Recipe, recorded: bool = False
) -> Callable[[], Step]:
    """`train_step` by what `fastglow train` runs on the device.

    Args:
        recorded: a CUDA graph will record the call, so that numbers which change belong on the device.
    """
    parameters = list(trainee.parameters.values())
    model = trainee.network if isinstance(trainee.network, nn.Module) else nn.ParameterList(parameters)
    rate = torch.full((), recipe.learning_rate, device=device()) if recorded else recipe.learning_rate
    optimizer = torch.optim.Adam(parameters, rate, weight_decay=recipe.weight_decay, fused=True, capturable=recorded)
    amp = "fp16" if precision.dtype == torch.float16 else "off"
    scaler = LossScaler(device(), amp, "dynamic", 2.0**16, max_skipped=0)
    on_device = DeviceStep(model, optimizer, scaler, None, recipe.grad_clip_thresh)

    def step() -> Step:
        on_device.begin()
        with precision.products():
            with precision.autocast():
                loss = trainee.loss(batch)
            on_device.backward({"loss": loss}, 1.0)
        on_device.update()
        assert on_device.rows is not None
        return Step(*on_device.rows[0, :2])

    return step


def passes(trainee: Trainee, batch: Batch, precision: Precision) -> Callable[[], None]:
    """A call that makes a forward and a backward pass and adds to the gradients."""

    def run() -> None:
        with precision.products():
            with precision.autocast():
                loss = trainee.loss(batch)
            loss.backward()

    return run


def first_whole_step(step: Callable[[], Step]) -> Step:
    """Steps until a step is not skipped; the skipped ones change no parameter.

    Raises:
        AssertionError: no loss scale made the gradients finite.
    """
    for _ in range(STEPS_FOR_THE_SCALE):
        made = step()
        if made.grad_norm.isfinite():
            return made
    raise AssertionError(f"the gradients are not finite in {STEPS_FOR_THE_SCALE} steps")


@dataclass(frozen=True)
class TrainStep(Workload):
    """A step of one model in one precision.

    Attributes:
        precision: of forward, loss and backward.
        batch: items.
        small: a small model.
    """

    case: str
    precision: Precision
    batch: int
    small: bool = False

    directions = (TRAIN_STEP,)
    composed = True
    recipe: ClassVar[Recipe]

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """Shared by all steps: is not changed."""

    @abstractmethod
    def new_batch(self, checked: bool) -> Batch:
        """Random data; `checked`: to verify with, which may be less."""

    @abstractmethod
    def trainee(self, implementation: Implementation, model: nn.Module, dropout: bool) -> Trainee:
        """`model` in training by an implementation."""

    @abstractmethod
    def exact(self) -> Trainee:
        """A copy of `model` in plain PyTorch, in a dtype that is wide enough to compare with, without dropout."""

    @abstractmethod
    def flops(self) -> int:
        """Of a forward pass."""

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]  # a field in other workloads
        return self.precision.dtype

    @property
    def name(self) -> str:
        return f"{self.case}-{self.precision.name}"

    @property
    def ceiling(self) -> str:
        return self.precision.ceiling

    def supports(self, implementation: str) -> bool:
        # Not on a CPU, where NVIDIA's code takes the time that there is.
        return implementation != EAGER or has_gpu() or self.small

    def beside(self) -> "Sequence[TrainStep]":
        return () if self.small or self.precision == OFF else (replace(self, precision=OFF),)

    def details(self) -> dict[str, Any]:
        return {"precision": self.precision.name, "batch": self.batch}

    def cost(self, direction: str) -> Cost:
        """A backward pass costs two forward passes; Adam reads and writes its state."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return Cost(ADAM_BYTES * parameters, 3 * self.flops())

    def capturable(self, direction: str) -> bool:
        return False  # a GradScaler waits, and an optimizer's numbers must be on the device: see `our_step`

    def call(self, implementation: Implementation, direction: str) -> Callable[[], Step]:
        step, _ = self._step(implementation, self.new_batch(checked=False), dropout=True)
        first_whole_step(step)
        return step

    def passes(self, implementation: Implementation) -> Callable[[], None]:
        trainee = self.trainee(implementation, copy.deepcopy(self.model), dropout=True)
        return passes(trainee, self.new_batch(checked=False), self.precision)

    def verify(self, implementation: Implementation, direction: str) -> float:
        """Checks loss, norm of the gradient, and that the step leaves every parameter finite and changed."""
        batch = self.new_batch(checked=True)
        step, trainee = self._step(implementation, batch, dropout=False)
        with launching(implementation):
            made = first_whole_step(step)
        before = self.model.state_dict()
        for name, parameter in trainee.parameters.items():
            assert parameter.isfinite().all(), f"{name} is not finite after a step"
            assert not torch.equal(parameter, before[name]), f"{name} did not change"
        with OFF.products():
            exact = self.exact()
            loss = exact.loss(batch)
            gradients = torch.autograd.grad(loss, list(exact.parameters.values()))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        error = abs(made.loss.item() - loss.item()) / max(abs(loss.item()), 1.0)
        assert error <= self.precision.loss_error, f"the loss is {made.loss.item()}, not {loss.item()}"
        of_norm = abs(made.grad_norm.item() - norm) / norm
        assert of_norm <= self.precision.gradient_error, f"the gradient's norm is {made.grad_norm.item()}, not {norm}"
        return error

    def _step(self, implementation: Implementation, batch: Batch, dropout: bool) -> tuple[Callable[[], Step], Trainee]:
        trainee = self.trainee(implementation, copy.deepcopy(self.model), dropout)
        if implementation.name in (FASTGLOW, ORDINARY):
            return our_step(trainee, batch, self.precision, self.recipe, self.capturable("")), trainee
        fused = device().type == "cuda" and implementation.name != PEER  # NVIDIA's train.py takes PyTorch's default
        return train_step(trainee, batch, self.precision, self.recipe, fused), trainee
