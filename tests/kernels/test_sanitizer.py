"""compute-sanitizer over the decoder's kernels, if it is installed and there is a GPU."""

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
def test_the_sanitizers_program_runs():
    exercise.main("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool):
    command = [SANITIZER, f"--tool={tool}", "--error-exitcode=99", sys.executable, "-m", exercise.__name__, "cuda"]
    # PyTorch's caching allocator hides accesses beyond the end of a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
