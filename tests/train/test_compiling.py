"""`--compile`: the same numbers within rounding, the same checkpoints, one compilation for all shapes of Tacotron 2."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train import compiling
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.history import read_history
from fastglow.train.loop import Trainer

from .conftest import ENVIRONMENT, MODELS, configs

ROOT = Path(__file__).parents[2]

# Compiles without generating code, which would take minutes; counts the compilations.
COMPILED_RUNS = """
import json, sys
import torch
torch.set_num_threads(1)
from fastglow.train import compiling
from fastglow.train.loop import train
from fastglow.train.step import TrainStep
from tests.train.conftest import configs

model, data, out, options = sys.argv[1:]
OPTIONS = json.loads(options)
NO_DROPOUT = {f"p_{part}_dropout": 0.0 for part in ("attention", "decoder", "prenet", "encoder", "postnet")}
compile, compiled = torch.compile, []
compiling.compile_problem = lambda device: None
torch.compile = lambda function, **options: (
    compiled.append(options), compile(function, backend="aot_eager", **options))[1]
call = TrainStep.__call__

def without_recompiling(self, batches, weights):
    call(self, batches, weights)
    if self.config.compile and self.task.has_dynamic_shapes:
        torch.compiler.set_stance("fail_on_recompile")

TrainStep.__call__ = without_recompiling

def run(name, given=None, **options):
    config, model_config = configs(model, data, f"{out}/{name}", ema=0.5, learning_rate=1e-3, **OPTIONS, **options)
    for key, value in NO_DROPOUT.items():
        if hasattr(model_config, key):
            setattr(model_config, key, value)
    train(model, config, model_config, progress=False, given=given)

run("eager", max_iterations=6, epochs_per_validation=1)
assert not compiled
run("compiled", max_iterations=3, epochs_per_validation=1)
run("compiled", max_iterations=6, epochs_per_validation=1, compile=True, resume=True)
assert len(compiled) == 2, compiled
torch.compiler.set_stance("default")
run("compiled", {"compile"}, max_iterations=7, resume=True)
assert len(compiled) == 2, compiled
print(json.dumps(compiled))
"""


@pytest.mark.parametrize("model, options", [*((model, {}) for model in MODELS), ("waveglow", {"stft_weight": 0.5})])
def test_a_run_goes_on_compiled(model, options, prepared, tmp_path):
    """From an eager run's checkpoint to its end, with a validation, and on from there."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_RUNS, model, str(prepared), str(tmp_path), json.dumps(options)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"dynamic": model == "tacotron2"}] * 2
    eager, compiled = (
        [(r.group, r.iteration, r.values["loss"], r.values.get("grad_norm", 0.0))
         for r in read_history(tmp_path / name) if r.group != "run" and r.iteration <= 6]
        for name in ("eager", "compiled")
    )  # fmt: skip
    assert ("validation", 6) in [record[:2] for record in eager]
    assert [record[:2] for record in compiled] == [record[:2] for record in eager]
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours[2:] == pytest.approx(theirs[2:], rel=1e-4, abs=1e-5)
    ours, theirs = (
        load_training_checkpoint(tmp_path / name / "checkpoint_6.pt", model)["trained_state_dict"]
        for name in ("compiled", "eager")
    )
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert (tmp_path / "compiled" / "checkpoint_7.pt").exists()


# With the compiler's code, where there is a C++ compiler; the sizes are the guards' own: a batch of 1 is another case.
LENGTHS = """
import sys
import torch
torch.set_num_threads(1)
from fastglow.train.compiling import compile_model, compile_problem

if problem := compile_problem(torch.device("cpu")):
    sys.exit(print("skip:", problem))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv1d(6, 4, 5, padding=2))
weights = list(model.parameters())
inputs = [torch.randn(batch, 4, length, requires_grad=True) for batch, length in ((2, 20), (2, 18), (3, 25))]
run = lambda x: (y := model(x), *torch.autograd.grad(y, [x, *weights], torch.cos(torch.arange(y.numel())).view_as(y)))
expected = [run(x) for x in inputs]
compile_model(model, True)
for x, found in zip(inputs, expected, strict=True):
    torch.testing.assert_close(run(x), found, rtol=1e-4, atol=1e-5)
    torch.compiler.set_stance("fail_on_recompile")
"""


def test_one_compilation_serves_every_length():
    done = subprocess.run([sys.executable, "-c", LENGTHS], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skip:"):
        pytest.skip(done.stdout.strip())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"padding": 2}, {"padding": 3, "dilation": 3}, {"stride": 2, "padding": 1}])
def test_the_opaque_convolution_is_the_convolution(options, bias):
    plain = torch.nn.Conv1d(3, 5, 4, bias=bias, **options).double()
    opaque = copy.deepcopy(plain)
    opaque._conv_forward = partial(compiling._opaque_conv1d, opaque)
    x = torch.randn(2, 11, 3, dtype=torch.float64).transpose(1, 2).requires_grad_()
    expected, found = plain(x), opaque(x)
    assert torch.equal(found, expected)
    d = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, *plain.parameters()], d)
    torch.testing.assert_close(torch.autograd.grad(found, [x, *opaque.parameters()], d), gradients)
    assert list(opaque.state_dict()) == list(plain.state_dict())
    plain, opaque, x = plain.float(), opaque.float(), x.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(opaque(x), plain(x)) and opaque(x).dtype == torch.bfloat16
    tensors = [None if t is None else t.detach().double().requires_grad_() for t in (x, plain.weight, plain.bias)]
    numbers = [options.get(name, value) for name, value in (("stride", 1), ("padding", 0), ("dilation", 1))]
    torch.library.opcheck(compiling.conv1d, (*tensors, *numbers))


def test_a_missing_compiler_is_an_error_of_one_line(prepared, tmp_path, monkeypatch):
    def failing(function, **options):
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", failing)
    compiling.compile_problem.cache_clear()
    config, model_config = configs("waveglow", prepared, tmp_path, compile=True)
    try:
        with pytest.raises(
            FastglowError,
            match=r"^compile=True cannot compile \(No working C\+\+ compiler found\): install a C\+\+ compiler and "
            "Python's headers, or pass --no-compile$",
        ):
            Trainer("waveglow", config, model_config, progress=False)
    finally:
        compiling.compile_problem.cache_clear()
    assert not list(tmp_path.iterdir())
