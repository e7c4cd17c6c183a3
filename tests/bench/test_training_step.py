"""The check of a training step finds planted faults; a step is what it says."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from bench.precision import BF16, FP16, OFF, TF32
from bench.training import Batch, Recipe, Trainee, TrainStep, first_whole_step, train_step
from bench.workload import FASTGLOW, TRAIN_STEP, Implementation
from fastglow.kernels.launch import product_precision

OURS = Implementation(FASTGLOW)


class Faults:
    scale = 1.0  # of the loss
    bias = False  # has no gradient
    gradient = 1.0  # its factor
    infinite = False  # the gradient


@dataclass(frozen=True)
class Line(TrainStep):
    """One linear layer; the faults are in the trainee, not in the exact one."""

    faults: Faults = field(default_factory=Faults)

    op = "line"
    recipe = Recipe(1e-2, 0.0, 1.0)

    @property
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(4, 2)

    def shapes(self):
        return {}

    def flops(self) -> int:
        return 2 * 8 * self.batch

    def new_batch(self, checked: bool) -> Batch:
        torch.manual_seed(1)
        return Batch(torch.randn(self.batch, 4), torch.randn(self.batch, 2))

    def trainee(self, implementation: Implementation, model: nn.Module, dropout: bool) -> Trainee:
        faults = self.faults

        def criterion(output, targets):
            if faults.gradient != 1.0 or faults.infinite:
                output.register_hook(lambda gradient: gradient * (float("inf") if faults.infinite else faults.gradient))
            return faults.scale * (output - targets).square().mean()

        def network(x):
            bias = model.bias.detach() + 0 * model.bias if faults.bias else model.bias
            return nn.functional.linear(x, model.weight, bias)

        return Trainee(network, dict(model.named_parameters()), criterion)

    def exact(self) -> Trainee:
        model = self.model.double()
        return Trainee(
            lambda x: model(x.double()), dict(model.named_parameters()), lambda y, t: (y - t.double()).square().mean()
        )


@pytest.mark.parametrize("precision", [OFF, TF32, BF16, FP16], ids=lambda precision: precision.name)
def test_a_sound_step_passes(precision):
    step = Line("case", precision, batch=6)
    assert step.name == f"case-{precision.name}"
    error = step.verify(OURS, TRAIN_STEP)
    assert error <= precision.loss_error
    if precision in (BF16, FP16):
        assert error > 1e-6  # autocast was on


@pytest.mark.parametrize("precision", [OFF, FP16], ids=lambda precision: precision.name)
@pytest.mark.parametrize(
    "fault, value, message",
    [
        ("scale", 1.1, "the loss is"),
        ("gradient", 1.2, "the gradient's norm is"),
        ("bias", True, "bias did not change"),
        ("infinite", True, "not finite"),
    ],
)
def test_a_planted_fault_is_found(precision, fault, value, message):
    faults = Faults()
    setattr(faults, fault, value)
    with pytest.raises(AssertionError, match=message):
        Line("case", precision, batch=6, faults=faults).verify(OURS, TRAIN_STEP)


def test_a_parameter_that_is_not_finite_is_found():
    step = Line("case", OFF, batch=6)
    object.__setattr__(step, "recipe", Recipe(float("inf"), 0.0, 1.0))
    with pytest.raises(AssertionError, match="weight is not finite after a step"):
        step.verify(OURS, TRAIN_STEP)


def test_a_step_is_adams_with_unscaled_and_clipped_gradients():
    """Its first step moves each parameter by the learning rate, against the gradient's sign."""
    line = Line("case", FP16, batch=6)
    model, batch = line.model, line.new_batch(checked=False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = torch.autograd.grad((model(batch.inputs) - batch.targets).square().mean(), list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    recipe = Recipe(1e-2, 0.0, norm / 2)
    made = first_whole_step(train_step(line.trainee(OURS, model, True), batch, FP16, recipe))
    assert made.grad_norm.item() == pytest.approx(norm, rel=2e-2)
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 1e-2 * gradient.sign(), rtol=0, atol=1e-4)
        torch.testing.assert_close(parameter.grad, gradient / 2, rtol=2e-2, atol=1e-3)


def test_products_have_the_named_precision():
    def products():
        return [product_precision(torch.float32, convolution) for convolution in (False, True)]

    before = products()
    for precision, expected in ((OFF, ["ieee", "ieee"]), (TF32, ["tf32", "tf32"]), (BF16, before)):
        with precision.products():
            assert products() == expected
        assert products() == before
