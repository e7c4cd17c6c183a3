"""Other people's models before ('eager') and after ('fastglow') `fastglow.accelerate`, in inference and in training."""

from itertools import product

import pytest
import torch

from .foreign import Acceleration
from .foreign_models import TARGETS
from .workload import cases, on_this_machine

HALF, SINGLE = torch.float16, torch.float32
KINDS = list(product(TARGETS, (False, True)))  # inference and training

WORKLOADS = on_this_machine(
    gpu=[Acceleration(*kind, dtype) for kind in KINDS for dtype in (HALF, SINGLE)],
    cpu=[Acceleration(*kind, SINGLE, small) for kind in KINDS for small in (True, False)],
)


@pytest.mark.filterwarnings("ignore")  # of other people's code
@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_accelerate(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
