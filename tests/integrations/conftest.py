"""Settings of the tests against other people's packages."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # of these packages' code, which is not ours to mend


@pytest.fixture
def cpu_tensors(monkeypatch):
    """Lets NVIDIA's code, which asks for torch.cuda.FloatTensor and the like, run without a GPU."""
    if not torch.cuda.is_available():
        for name in ("FloatTensor", "HalfTensor", "LongTensor"):
            monkeypatch.setattr(torch.cuda, name, getattr(torch, name))
