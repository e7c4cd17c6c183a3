"""How the decode loop runs: lists of running items, cached buffers, replays, barriers and the choice of a method."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.kernels import FoldedDecoder, fold_decoder
from fastglow.kernels.decode_loop import decoding as decoding_module

from .checks import assert_same_bits, launch_counter
from .decode_loop_cases import Batch, Case, begin, call, new_decoding, reference, short_graphs  # noqa: F401

pytestmark = pytest.mark.usefixtures("triton_backend", "short_graphs")


def test_finished_items_are_not_computed(device):
    """Each item leaves the list after its last frame; values that were not computed are still NaN."""
    case = Case((5, 0, 4), early_stopping=False)
    batch = case.batch(torch.float32, device)
    steps = call(batch, case, reference).steps.tolist()
    decoding = new_decoding(case, batch)
    for t in range(case.max_steps + 2):
        running = [i for i, last in enumerate(steps) if case.lengths[i] and t <= last and t < case.max_steps]
        n_running = int(decoding.n_running[t % 2])
        assert decoding.running_items[t % 2, :n_running].tolist() == running
        decoding.run_frames(1)
    for i, last in enumerate(steps):
        n = min(last + 1, case.max_steps) if case.lengths[i] else 0
        for written in (decoding.frames[i], decoding.alignments[i, 1:]):
            assert written[:n].isfinite().all()
            assert written[n:].isnan().all()
    assert decoding.frames[3:].isnan().all()  # padding of the batch


@pytest.mark.parametrize("run, max_steps", [("run_loop", 2), ("run_steps", 1)])
def test_no_state_of_the_previous_batch_remains(run, max_steps, device):
    case = Case((7, 3, 5), max_steps=max_steps, stops="never")
    batch = case.batch(torch.float32, device)
    decoding = new_decoding(case, batch)
    arguments = (1,) if run == "run_loop" else ()
    getattr(decoding, run)(*arguments)
    first = decoding.result(3, 7, True)
    small = Batch(
        batch.memory[1:, :5], batch.processed_memory[1:, :5], batch.lengths[1:].clamp(max=5), batch.seeds[1:],
        batch.recurrent, batch.output,
    )  # fmt: skip
    for one in (small, batch):
        begin(decoding, one)
        getattr(decoding, run)(*arguments)
        assert_same_bits(decoding.result(*one.memory.shape[:2], True), call(one, case))
    assert_same_bits(first, call(batch, case))


def test_buffers_are_reused_for_sizes_that_round_to_the_same(device, monkeypatch):
    monkeypatch.setattr(decoding_module, "MAX_DECODINGS", 2)
    case = Case((3, 2, 4), max_steps=1, stops="never")
    batch = case.batch(torch.float32, device)
    folded = fold_decoder(batch.recurrent, batch.output)
    asked = []

    def ask(dtype: torch.dtype) -> FoldedDecoder:
        asked.append(dtype)
        return folded

    expected = call(batch, case)
    assert_same_bits(call(batch, case, folded=ask), expected)
    (kept,) = folded.idle_decodings
    four = batch.items([0, 1, 2, 0])
    assert_same_bits(call(four, case, folded=folded), call(four, case))
    assert list(folded.idle_decodings) == [kept]
    for other in ({"max_steps": 2}, {"p_prenet_dropout": 0.25}):
        assert_same_bits(call(batch, case, folded=folded, **other), call(batch, case, **other))
    assert len(folded.idle_decodings) == 2
    assert kept not in folded.idle_decodings
    assert asked == [torch.float32]


@pytest.mark.parametrize("stops, max_steps, expected", [("at once", 12, [0, 2]), ("never", 5, [0, 2, 4])])
def test_the_last_replay_follows_the_one_that_empties_the_list(stops, max_steps, expected, device, monkeypatch):
    """Launches stand in for the replays of a CUDA graph of two frames."""
    case = Case(stops=stops, max_steps=max_steps)
    batch = case.batch(torch.float32, device)
    decoding = new_decoding(case, batch)
    replays = []

    def replay() -> None:
        replays.append(int(decoding.t))
        decoding.run_frames(2)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    decoding.run_graph(SimpleNamespace(replay=replay))
    assert replays == expected
    assert_same_bits(decoding.result(3, 7, True), call(batch, case))


@pytest.mark.parametrize("programs, arrived", [(2, 0), (1, -1)], ids=["one program late", "one missing"])
def test_a_lost_program_is_an_error_and_not_a_hang(programs, arrived, device, monkeypatch):
    """The interpreter runs one program after another, so the first gives up waiting for the second."""
    if programs > 1 and device == "cuda":
        pytest.skip("on a GPU both programs run at once")
    monkeypatch.setattr(decoding_module, "MAX_POLLS", 16)
    batch = Case().batch(torch.float32, device)
    decoding = new_decoding(Case(), batch)
    decoding.barrier.fill_(arrived)
    decoding.run_loop(programs)
    with pytest.raises(FastglowError, match="did not arrive at a barrier.*pass method='graph'"):
        decoding.result(3, 7, True)
    begin(decoding, batch)
    decoding.run_loop(1)
    assert_same_bits(decoding.result(3, 7, True), call(batch, Case()))


def test_default_method(device, monkeypatch):
    case = Case(max_steps=1, stops="never")
    batch = case.batch(torch.float32, device)
    counts = []
    for most in (3, 2):
        # The package's attribute of this name is the function.
        monkeypatch.setattr(sys.modules["fastglow.kernels.decode_loop"], "PERSISTENT_ITEMS", most)
        launches = launch_counter("decode_loop")
        call(batch, case)
        counts.append(launches())
    assert counts[0] == 2  # decode_begin_kernel and decode_loop_kernel
    assert counts[1] > 2
    with pytest.raises(FastglowError, match="'persistent' does not support this call: 3 items are more than 2"):
        call(batch, case, method="persistent")
