"""Two processes skip the same updates, stop after the same step, and name the items of the guilty one."""

import pytest
import torch

from ..train.conftest import MODELS
from .agreement import BAD, STEPS
from .conftest import run_in_two_processes


@pytest.fixture(scope="module")
def of_two_processes(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("agreement")
    run_in_two_processes("agreement", prepared, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_loss_that_is_not_finite_in_one_process_skips_the_update_in_all(of_two_processes, model, amp):
    first, second = (found[f"{model} {amp}"] for found in of_two_processes)
    for step in range(STEPS):
        assert all(map(torch.equal, first["weights"][step], second["weights"][step])), step
        assert all(weight.isfinite().all() for weight in first["weights"][step])
    assert all(map(torch.equal, first["weights"][BAD - 1], first["weights"][BAD]))
    assert not all(map(torch.equal, first["weights"][BAD], first["weights"][-1]))
    assert repr(first["results"]) == repr(second["results"])
    assert first["error"] == second["error"]
    if amp == "fp16":
        assert [result["skipped"] for result in first["results"]][BAD] == 1
        assert first["error"] == ""
    else:
        assert len(first["results"]) == BAD
        assert f"loss is inf at iteration {BAD}, batch {BAD} of epoch 0, items" in first["error"]
        assert all(name in first["error"] for name in second["ids"])
        assert not any(name in first["error"] for name in set(first["ids"]) - set(second["ids"]))


def test_a_vote_is_known_to_all_a_call_later(of_two_processes):
    for found in of_two_processes:
        assert found["votes"] == [False, False, False, True, False, False, False]
