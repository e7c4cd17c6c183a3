"""compute-sanitizer over the decoder's kernels, where both it and a GPU are there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import exercise

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
def test_what_the_sanitizer_watches_runs():
    exercise.main("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool):
    command = [SANITIZER, f"--tool={tool}", "--error-exitcode=99", sys.executable, "-m", exercise.__name__, "cuda"]
    # Memory that PyTorch keeps for itself hides what lies outside of a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
