"""Other people's models before ('eager') and after ('fastglow') `fastglow.accelerate`, in inference and in training."""

import pytest
import torch

from .foreign import Acceleration
from .foreign_models import TARGETS
from .workload import cases, on_this_machine

HALF, SINGLE = torch.float16, torch.float32

WORKLOADS = on_this_machine(
    gpu=[Acceleration(of, training, dtype) for of in TARGETS for training in (False, True) for dtype in (HALF, SINGLE)],
    cpu=[
        Acceleration(of, training, SINGLE, small) for of in TARGETS for training in (False, True) for small in (True, False)
    ],
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of other people's code
@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_accelerate(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
