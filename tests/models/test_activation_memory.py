"""What memory_saving and gradient_checkpointing are for: the bytes of stored activations."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.memory import peak_bytes
from fastglow import WaveGlowLoss

from .test_waveglow import build
from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, build_stopping

N_GROUPS = 80
OF_A_SIGNAL = 2048  # bytes: less is a 1x1 convolution's matrices


def stored_bytes(call: Callable[[], Any], known: Iterable[Tensor], at_least: int = 0) -> int:
    """Bytes of the memory blocks that a forward pass stores for its backward pass, without those of known tensors."""
    addresses = {x.untyped_storage().data_ptr() for x in known}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in addresses and storage.nbytes() >= at_least:
            kept[storage.data_ptr()] = storage.nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        results = call()
    del results
    return sum(n for n, _ in kept.values())


def step_of(n_flows, memory_saving):
    """(a training step's forward pass; all of it, with gradients that exist already; the tensors that exist anyway)."""
    model = build(
        torch.float32, n_flows=n_flows, n_early_every=99, WN_config={"n_layers": 4, "n_channels": 32, "kernel_size": 3}
    )
    model.memory_saving = memory_saving
    inputs = torch.randn(2, 3, 5 * N_GROUPS // 10), torch.randn(2, N_GROUPS * model.config.n_group)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: model(inputs), lambda: WaveGlowLoss()(model(inputs)).backward(), [*model.parameters(), *inputs]


def test_stored_activations_do_not_grow_with_the_number_of_flows():
    stored = {}
    for n_flows in (4, 12):
        for memory_saving in (False, True):
            forward, _, known = step_of(n_flows, memory_saving)
            stored[n_flows, memory_saving] = stored_bytes(forward, known, OF_A_SIGNAL)
    assert stored[4, True] == stored[12, True]
    assert stored[12, False] > 2.9 * stored[4, False]


def test_peak_of_a_step_does_not_grow_with_the_number_of_flows():
    peaks = {}
    for n_flows in (4, 12):
        for memory_saving in (False, True):
            _, step, _ = step_of(n_flows, memory_saving)
            step()
            peaks[n_flows, memory_saving] = peak_bytes(step, "cpu")
    growth = {saving: (peaks[12, saving] - peaks[4, saving]) / 8 for saving in (False, True)}
    assert growth[True] < OF_A_SIGNAL  # a flow's matrices and the graph's scalars
    assert growth[False] > 4 * 3 * 32 * 2 * N_GROUPS * 4  # each layer's input and both halves of its gate
    assert peaks[12, True] < peaks[12, False] / 4


@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_tacotron2_stores_its_decoders_activations_and_inputs(training):
    model = build_stopping(SEEDS).train(training)
    mels = torch.randn(len(TEXT), model.config.n_mel_channels, 40)
    inputs = TEXT, LENGTHS, mels, TEXT.shape[1], torch.full((len(TEXT),), 40)
    known = [*model.parameters(), *model.buffers(), *inputs[:3]]
    embedded = model.embedding(TEXT).transpose(1, 2)
    of_parts = [
        stored_bytes(lambda: model.encoder(embedded, LENGTHS), [*known, embedded]),
        stored_bytes(lambda: model.postnet(mels), known),
    ]
    ordinary = stored_bytes(lambda: model(inputs), known)
    model.gradient_checkpointing = True
    saved = ordinary - stored_bytes(lambda: model(inputs), known)
    assert saved > 0.6 * sum(of_parts)
