"""The persistent kernel with weights loaded before it waits at a barrier: the bits are those without."""

from collections.abc import Iterator

import pytest
import torch

from fastglow.kernels import DecodeResult
from fastglow.kernels.backend import interprets, use_backend
from fastglow.kernels.decode_loop import decoding as decoding_module
from fastglow.kernels.decode_loop import kernels as kernels_module
from fastglow.kernels.launch import use_config

from ..kernels.checks import assert_same_bits
from ..kernels.decode_loop_cases import Batch, Case, call, short_graphs  # noqa: F401

pytestmark = [
    pytest.mark.usefixtures("short_graphs"),
    pytest.mark.skipif(not interprets(), reason="runs in the interpreter"),
]

SHORT = {"n_attention": 4, "taps": 3, "filters": 1, "max_steps": 2, "stops": "never"}
ODD = Case((3,), n_frame=5, n_prenet=(5, 37), n_memory=35, n_attention_rnn=35, n_decoder_rnn=18, **SHORT)
EVEN = Case((2,), n_frame=3, n_prenet=(5, 32), n_memory=32, n_attention_rnn=32, n_decoder_rnn=32, **SHORT)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch) -> Iterator[None]:
    """Blocks of 16, so that products of small sizes have 2 or 3."""
    (config,) = decoding_module.CONFIGS[4]
    monkeypatch.setitem(decoding_module.CONFIGS, 4, ({**config, "BK": 16},))
    with use_backend("triton"):
        yield


def prefetching(n: int, batch: Batch, case: Case) -> DecodeResult:
    with use_config("decode_loop", {"PREFETCH": n, "num_warps": 8}):
        return call(batch, case, method="persistent")


@pytest.mark.parametrize("case, n", [(ODD, 9), (EVEN, 1)], ids=str)
def test_same_bits_as_without(case, n):
    """9 is more than the 2 blocks of the smallest product."""
    batch = case.batch(torch.float32)
    actual = prefetching(n, batch, case)
    assert_same_bits(actual, prefetching(0, batch, case))
    assert_same_bits(actual, call(batch, case, method="steps"))


def test_each_phase_uses_what_was_loaded_for_it(monkeypatch):
    """The weights of a wrong tile, loaded for any one phase, change the result."""
    held = kernels_module._held_weights
    batch = EVEN.batch(torch.float32)
    expected = prefetching(2, batch, EVEN)
    for phase in range(kernels_module.N_PHASES.value):

        def of_another_tile(PHASE, i, *rest, wrong=phase):
            return held(PHASE, i + (int(PHASE) == wrong), *rest)

        monkeypatch.setattr(kernels_module, "_held_weights", of_another_tile)
        actual = prefetching(2, batch, EVEN)
        assert not torch.equal(actual.frames, expected.frames), phase
