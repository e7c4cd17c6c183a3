"""The teacher-forced loop on packed weights, against its definition in float64."""

import pytest
import torch

from fastglow.kernels import backend

from .checks import check_against_fp64, differentiate
from .teacher_forced_cases import CAPS, DEFINITION, DROPOUT, LOOP, Case

CASES = [Case(), Case(frames=1, batch=1, symbols=1, taps=1, filters=1), Case(strided=True), DROPOUT]


def packings(call):
    """The LSTMs whose weights a call packs."""
    before = backend.cpu_calls["teacher_forced_loop"]
    call()
    return backend.cpu_calls["teacher_forced_loop"] - before


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_exact_as_pytorch(case, dtype):
    arguments = case.arguments(dtype)
    assert packings(lambda: check_against_fp64(LOOP, DEFINITION, arguments, CAPS)) == 2


def test_what_is_not_packed():
    case = Case()

    def run(dtype):
        differentiate(LOOP, case.arguments(dtype), case.upstream(dtype))

    def forced():
        with backend.use_backend("reference"):
            run(torch.float32)

    assert packings(lambda: run(torch.float32)) == 2
    assert packings(lambda: run(torch.float64)) == packings(lambda: run(torch.float16)) == packings(forced) == 0


def test_under_autocast():
    arguments = Case().arguments(torch.float32)
    exact = LOOP(**arguments)
    before = backend.cpu_calls["teacher_forced_loop"]
    with torch.autocast("cpu", torch.bfloat16):
        found = LOOP(**arguments)
    assert backend.cpu_calls["teacher_forced_loop"] == before + 2
    for x, truth in zip(found, exact, strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.float(), truth, atol=5e-2, rtol=5e-2)


def test_frames_have_few_operations_outside_products():
    """Of a call with gradients, by PyTorch's profiler, per frame: no sigmoid or tanh of an LSTM in backward."""
    counts = []
    for frames in (4, 7):
        case = Case(frames=frames)
        arguments, upstream = case.arguments(torch.float32), case.upstream(torch.float32)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            differentiate(LOOP, arguments, upstream)
        counts.append({event.key: event.count for event in profile.key_averages()})
    per_frame = {name: (n - counts[0].get(name, 0)) / 3 for name, n in counts[1].items()}
    assert per_frame["mkldnn::_linear_pointwise"] == 2
    assert (per_frame["aten::sigmoid_"], per_frame["aten::tanh_"], per_frame["aten::tanh"]) == (4, 3, 2)
    assert not per_frame["mkldnn::_reorder_linear_weight"]
    assert per_frame["aten::mul"] + per_frame["aten::mul_"] <= 13
