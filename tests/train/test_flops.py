"""FLOPs against PyTorch's count of what plain PyTorch runs, at odd sizes; the measured ceiling."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import plain_tacotron2, plain_waveglow
from fastglow import Tacotron2, WaveGlow
from fastglow.train import flops
from fastglow.train.data import SegmentBatch, TextMelBatch
from fastglow.train.flops import matrix_rate, tacotron2_flops, training_flops, waveglow_flops
from fastglow.train.losses import WaveGlowLoss

from .conftest import SMALL_TACOTRON2, SMALL_WAVEGLOW

CPU = torch.device("cpu")

TACOTRON2 = [
    {**SMALL_TACOTRON2, "n_frames_per_step": 1, "n_mel_channels": 7},
    {**SMALL_TACOTRON2, "n_frames_per_step": 3, "decoder_rnn_dim": 20, "encoder_n_convolutions": 2,
     "encoder_kernel_size": 3, "postnet_kernel_size": 7, "postnet_n_convolutions": 4},
]  # fmt: skip
WAVEGLOW = [
    SMALL_WAVEGLOW,
    {"n_mel_channels": 5, "n_flows": 5, "n_group": 12, "n_early_every": 2, "n_early_size": 4,
     "WN_config": {"n_layers": 3, "n_channels": 6, "kernel_size": 5}, "upsample_kernel_size": 31,
     "upsample_stride": 24},
    {**SMALL_WAVEGLOW, "upsample_to_groups": True},
]  # fmt: skip


def count(forward):
    """(FLOPs of the forward pass, of both passes) as PyTorch counts them; `forward` returns a scalar."""
    with FlopCounterMode(display=False) as counter:
        loss = forward()
        first = counter.get_total_flops()
        loss.backward()
    return first, counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("options", TACOTRON2)
def test_tacotron2(options):
    model = Tacotron2(**options)
    config = model.config
    B, symbols, steps = 2, 11, 5
    frames = steps * config.n_frames_per_step
    lengths = torch.full((B,), symbols)
    text = torch.randint(config.n_symbols, (B, symbols))
    # The gradient for the recordings is computed here so that each product has both of its gradients.
    mels = torch.randn(B, config.n_mel_channels, frames, requires_grad=True)

    def forward():
        memory = model.encoder(model.embedding(text).transpose(1, 2), lengths)
        stepwise = mels.transpose(1, 2).reshape(B, steps, -1).transpose(1, 2)
        weights = plain_tacotron2.weights_of(model.decoder)
        mel, gate, _ = plain_tacotron2.run_forced(memory, stepwise, lengths, weights, (0.5, 0.1, 0.1))
        mel = mel.transpose(1, 2).reshape(B, frames, -1).transpose(1, 2)
        return (mel + model.postnet(mel)).sum() + gate.sum()

    with torch.backends.mkldnn.flags(enabled=False):  # whose nn.LSTM is one operation that PyTorch does not count
        first, both = count(forward)
    expected = tacotron2_flops(config, B, symbols, frames)
    assert first == expected

    # What autograd leaves out: gradients for the zeros that the recurrences start with.
    n, m, half = config.attention_rnn_dim, config.decoder_rnn_dim, config.encoder_embedding_dim // 2
    history = symbols * 2 * config.attention_location_n_filters * config.attention_location_kernel_size
    assert both == 3 * expected - 2 * B * (4 * n**2 + 4 * m**2 + 2 * 4 * half**2 + history)

    batch = TextMelBatch(["a", "b"], text, lengths, mels, torch.zeros(B, frames), torch.full((B,), 1))
    assert training_flops(config, batch) == 3 * expected


@pytest.mark.parametrize("options", WAVEGLOW)
def test_waveglow(options):
    model = WaveGlow(**options)
    config = model.config
    B, frames = 3, 4
    samples = 3 * config.upsample_stride + config.n_group + 1  # one more than whole groups
    mel = torch.randn(B, config.n_mel_channels, frames, requires_grad=True)
    audio = torch.randn(B, samples, requires_grad=True)
    first, both = count(lambda: WaveGlowLoss()(plain_waveglow.forward(model, mel, audio)))
    expected = waveglow_flops(config, B, frames, samples)
    assert (first, both) == (expected, 3 * expected)
    assert training_flops(config, SegmentBatch(["a", "b", "c"], mel, audio)) == 3 * expected


@pytest.fixture
def products(monkeypatch):
    """The sizes and dtypes of the measured products; each 'takes' what `seconds` says."""
    products = []

    class Clock:
        now = 0.0
        seconds = staticmethod(lambda n, dtype: 0.0)

        @classmethod
        def perf_counter(cls):
            return cls.now

    def product(a, b, out):
        products.append((len(a), a.dtype))
        Clock.now += Clock.seconds(len(a), a.dtype)

    flops._matrix_rate.cache_clear()
    monkeypatch.setattr(flops, "time", Clock)
    monkeypatch.setattr(torch, "mm", product)
    yield products, Clock
    flops._matrix_rate.cache_clear()


def test_the_rate_is_that_of_the_fastest_large_product_and_measured_once(products):
    products, clock = products
    times = iter([9.0, 1.5, 1.0, 3.0, 2.0])
    clock.seconds = lambda n, dtype: next(times) if n == 1024 and len(products) > 8 else 1e-6
    assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 1024**3 / 1.0)
    assert max(products) == (1024, torch.float32)
    before = len(products)
    assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 1024**3)
    assert len(products) == before
    clock.seconds = lambda n, dtype: 1e-3
    matrix_rate(CPU, torch.bfloat16)
    assert products[-1][1] == torch.bfloat16


def test_a_slow_device_is_measured_on_small_products(products):
    products, clock = products
    clock.seconds = lambda n, dtype: 2 * n**3 / 3e9
    assert matrix_rate(CPU, torch.float16) == pytest.approx(3e9)
    assert clock.now < 0.2
    clock.seconds = lambda n, dtype: 2 * n**3 / 1e6
    assert matrix_rate(CPU, torch.float64) == pytest.approx(1e6)
    assert products[-1] == (128, torch.float64)


def test_the_rate_of_this_machine():
    """Higher than any processor's would be wrong, and so would one of 10 kFLOP/s."""
    assert 1e4 < matrix_rate(CPU, torch.float32) < 1e16


@pytest.mark.gpu
def test_each_tf32_setting_has_its_own_rate():
    cuda = torch.device("cuda")
    before = torch.backends.cuda.matmul.allow_tf32
    flops._matrix_rate.cache_clear()
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert matrix_rate(cuda, torch.float32) > 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert flops._matrix_rate.cache_info().currsize == 2


def test_measuring_draws_no_random_number_of_the_run():
    flops._matrix_rate.cache_clear()
    before = torch.get_rng_state()
    matrix_rate(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
