"""What memory_saving and gradient_checkpointing are for: the bytes of stored activations."""

import pytest
import torch

from fastglow import WaveGlowLoss

from .allocations import peak_bytes, stored_bytes
from .test_waveglow import build
from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, build_stopping

N_GROUPS = 80
OF_A_SIGNAL = 2048  # bytes: less is a 1x1 convolution's matrices


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
    saving = [stored_bytes(step_of(n, True)[0], step_of(n, True)[2], OF_A_SIGNAL) for n in (4, 12)]
    ordinary = [stored_bytes(step_of(n, False)[0], step_of(n, False)[2], OF_A_SIGNAL) for n in (4, 12)]
    assert saving[0] == saving[1]
    assert ordinary[1] > 2.9 * ordinary[0]


def test_peak_of_a_step_does_not_grow_with_the_number_of_flows():
    peaks = {}
    for n_flows in (4, 12):
        for memory_saving in (False, True):
            _, step, _ = step_of(n_flows, memory_saving)
            step()
            peaks[n_flows, memory_saving] = peak_bytes(step)
    growth = {saving: (peaks[12, saving] - peaks[4, saving]) / 8 for saving in (False, True)}
    assert growth[True] < OF_A_SIGNAL  # a flow's matrices and the graph's scalars
    assert growth[False] > 0.4 * 2**20
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
