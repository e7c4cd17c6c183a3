"""Shared by all tests: golden tensors, seeds, the `gpu` marker."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# Triton reads it when a kernel is defined, so set it before importing fastglow.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    from .interpreter import quicken

    quicken()

# For pytest-xdist's workers; the processes that tests start are none.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]

# Assertions of shared checks print their values too; before any test imports them.
pytest.register_assert_rewrite("tests.kernels.checks")

GOLDEN = Path(__file__).parent / "data" / "golden"

# No deadline: an example's time depends on the machine's load.
hypothesis.settings.register_profile(
    "explore",
    hypothesis.settings.get_profile("default"),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# Fixed seeds, so that a failure is most probably due to the change. Examples also use constants of the modules that are
# loaded by then, and so differ a little with the tests that run.
hypothesis.settings.register_profile("fastglow", hypothesis.settings.get_profile("explore"), derandomize=True)
hypothesis.settings.load_profile("fastglow")


class Golden(dict[str, torch.Tensor]):
    """The tensors of one golden file, keyed `group/name`, and its model's constructor keywords."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            super().__init__((key, torch.from_numpy(arrays[key])) for key in arrays.files if key != "config")
            self.config: dict = json.loads(str(arrays["config"])) if "config" in arrays.files else {}

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors under `name/`, keyed without it: `group("state")` is a state_dict."""
        prefix = f"{name}/"
        found = {key.removeprefix(prefix): value for key, value in self.items() if key.startswith(prefix)}
        if not found:
            raise KeyError(f"no group {name!r} among {sorted({key.split('/')[0] for key in self})}")
        return found


@pytest.fixture(scope="session")
def golden():
    """`golden("waveglow_tiny")`: a new `Golden` per call, so that a test may modify its tensors."""
    return lambda name: Golden(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """PyTorch splits sums by thread: one thread gives the same bits on any number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """A shell starts its background jobs with SIGINT ignored, and so would be every command that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and this machine has none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_pyfunc_call(pyfuncitem):
    """Hypothesis prints the arguments of a failing test: a repr of megabytes takes minutes and hides the failure."""
    if hypothesis.is_hypothesis_test(pyfuncitem.obj):
        long = [name for name, value in pyfuncitem.funcargs.items() if len(repr(value)) > 1000]
        assert not long, f"{', '.join(long)}: needs a short repr"
