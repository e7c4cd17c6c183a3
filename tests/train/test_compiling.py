"""`--compile`: the same numbers within rounding, the same checkpoints, one compilation for all shapes of Tacotron 2."""

import json
import subprocess
import sys
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

model, data, out = sys.argv[1:]
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
    config, model_config = configs(model, data, f"{out}/{name}", ema=0.5, learning_rate=1e-3, **options)
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


@pytest.mark.parametrize("model", MODELS)
def test_a_run_goes_on_compiled(model, prepared, tmp_path):
    """From an eager run's checkpoint to its end, with a validation, and on from there."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_RUNS, model, str(prepared), str(tmp_path)],
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
