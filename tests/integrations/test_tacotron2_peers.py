"""Other people's Tacotron 2 at its real size, whole, before and after `accelerate`."""

import io
import warnings
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastglow import accelerate
from tests.integrations import peers
from tests.patching.comparing import assert_close, tensors

TOLERANCE = 2e-5  # of gradients, relative to the largest of all
TOKENS, LENGTHS = torch.arange(2 * 17).view(2, 17) % 30 + 1, torch.tensor([17, 11])
MELS, MEL_LENGTHS = torch.linspace(-9, 9, 2 * 80 * 8).sin().view(2, 80, 8), torch.tensor([8, 5])


def torchaudio():
    return peers.torchaudio_models().Tacotron2(), lambda model: model(TOKENS, LENGTHS, MELS, MEL_LENGTHS)


def speechbrain():
    model = peers.speechbrain_tacotron2().Tacotron2()
    return model, lambda model: model((TOKENS, LENGTHS, MELS, 17, MEL_LENGTHS))


def nvidia():
    hparams = SimpleNamespace(
        mask_padding=True, fp16_run=False, n_mel_channels=80, n_symbols=148, symbols_embedding_dim=512,
        encoder_kernel_size=5, encoder_n_convolutions=3, encoder_embedding_dim=512, attention_rnn_dim=1024,
        attention_dim=128, attention_location_n_filters=32, attention_location_kernel_size=31, n_frames_per_step=1,
        decoder_rnn_dim=1024, prenet_dim=256, max_decoder_steps=1000, gate_threshold=0.5, p_attention_dropout=0.1,
        p_decoder_dropout=0.1, postnet_embedding_dim=512, postnet_kernel_size=5, postnet_n_convolutions=5,
    )  # fmt: skip
    model = peers.nvidia_tacotron2().Tacotron2(hparams)
    return model, lambda model: model((TOKENS, LENGTHS, MELS, 17, MEL_LENGTHS))


def coqui(**options):
    config = peers.coqui("tts.configs.tacotron2_config").Tacotron2Config(num_chars=148, r=2, out_channels=80, **options)
    model = peers.coqui("tts.models.tacotron2").Tacotron2(config)

    def call(model):
        outputs = model(TOKENS, LENGTHS, MELS.transpose(1, 2).contiguous(), MEL_LENGTHS)
        return [value for value in outputs.values() if isinstance(value, Tensor)]

    return model, call


def espnet():
    model = peers.load("espnet2.tts.tacotron2").Tacotron2(idim=148, odim=80)
    return model, lambda model: model(TOKENS, LENGTHS, MELS.transpose(1, 2).contiguous(), MEL_LENGTHS)[0]


FAMILY_OPS = ["teacher_forced_loop", "lstm_cell", "location_attention", "lstm_cell"]
COQUI_OPS = ["lstm_cell", "location_attention", "lstm_cell"]
MODELS = {
    "torchaudio": (torchaudio, FAMILY_OPS),
    "speechbrain": (speechbrain, FAMILY_OPS),
    "nvidia": (nvidia, FAMILY_OPS),
    "coqui": (coqui, COQUI_OPS),
    "coqui, sigmoid": (lambda: coqui(attention_norm="sigmoid"), COQUI_OPS),
    "coqui, windowing": (lambda: coqui(windowing=True), COQUI_OPS),
    "coqui, two decoders": (lambda: coqui(double_decoder_consistency=True, ddc_r=4), 2 * COQUI_OPS),
    "espnet": (espnet, ["location_attention", "lstm_cell", "lstm_cell"]),
}


def results(model, call, training):
    """(outputs, gradients of all parameters); running statistics stay as they are."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.train(training)
    torch.manual_seed(3)
    outputs = tensors(call(model))
    differentiable = [x for x in outputs if x.requires_grad]
    torch.manual_seed(4)
    upstream = [torch.randn(x.shape) / x.numel() ** 0.5 for x in differentiable]
    parameters = [x for x in model.parameters() if x.requires_grad]
    gradients = torch.autograd.grad(differentiable, parameters, upstream, allow_unused=True)
    model.load_state_dict(kept)
    return [x.detach() for x in outputs], [torch.zeros(()) if x is None else x for x in gradients]


@pytest.mark.usefixtures("cpu_tensors")
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model(name):
    torch.manual_seed(1)
    build, ops = MODELS[name]
    model, call = build()
    keys = list(model.state_dict())
    expected = [results(model, call, training) for training in (False, True)]
    report = accelerate(model, strict=True)
    assert [entry.op for entry in report] == ops
    for training in (False, True):
        outputs, gradients = results(model, call, training)
        assert_close(expected[training][0], outputs)
        largest = max(float(x.abs().max()) for x in expected[training][1])
        for a, b in zip(expected[training][1], gradients, strict=True):
            assert a.shape == b.shape
            assert float((a - b).abs().max()) <= TOLERANCE * largest
    assert list(model.state_dict()) == keys
    report.undo()
    for a, b in zip(expected[0], results(model, call, False), strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("options, named", [
    ({"use_forward_attn": True}, "forward_attn is on"),
    ({"location_attn": False}, "location_attention is off"),
])  # fmt: skip
def test_other_attention_of_coqui_is_left(options, named):
    model, _ = coqui(**options)
    (entry,) = accelerate(model).left
    assert entry.module == "decoder.attention" and named in entry.text


class PlainPrenet(nn.Module):
    """Without dropout, to compare what is drawn elsewhere."""

    dropout = 0.0

    def __init__(self, prenet):
        super().__init__()
        self.layers = prenet.layers

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


def infer(model, name, B):
    """(results, printed, warned) of the whole model."""
    printed = io.StringIO()
    torch.manual_seed(5)
    with redirect_stdout(printed), warnings.catch_warnings(record=True) as warned, torch.no_grad():
        warnings.simplefilter("always")
        found = model.inference(TOKENS[:1]) if name == "nvidia" else model.infer(TOKENS[:B], LENGTHS[:B])
    return tensors(found), printed.getvalue(), [str(w.message) for w in warned]


@pytest.mark.usefixtures("cpu_tensors")
@pytest.mark.parametrize("name", ["torchaudio", "speechbrain", "nvidia"])
def test_inference_of_the_whole_loop(name):
    torch.manual_seed(6)
    model, _ = MODELS[name][0]()
    model.eval()
    decoder = model.decoder
    setattr(decoder, "decoder_max_step" if name == "torchaudio" else "max_decoder_steps", 18)
    own = decoder.prenet
    decoder.prenet = PlainPrenet(own)
    cases = [(B, threshold) for B in (1, 2) for threshold in (0.0, 0.495, 0.5, 0.505, 1.0)]

    def run():
        for B, decoder.gate_threshold in cases:
            yield infer(model, name, B)

    expected = list(run())
    with accelerate(model, "decode_loop", strict=True) as report:
        assert [(entry.module, entry.op) for entry in report] == [("decoder", "decode_loop")]
        for before, after in zip(expected, run(), strict=True):
            assert_close(before[0], after[0])
            assert after[1:] == before[1:]
        decoder.prenet = own
        first, second = infer(model, name, 1), infer(model, name, 1)
        assert all(map(torch.equal, first[0], second[0]))
    assert any(printed or warned for _, printed, warned in expected) is (name != "speechbrain")


def test_cells_of_espnet():
    """ZoneOutCell draws as before around a swapped LSTMCell."""
    torch.manual_seed(7)
    cell = peers.espnet("tacotron2.decoder").ZoneOutCell(nn.LSTMCell(5, 7), 0.3)
    x, h, c = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    for training in (False, True):
        cell.train(training).requires_grad_(False)
        torch.manual_seed(8)
        expected = cell(x, (h, c))
        with accelerate(cell, strict=True) as report:
            assert [entry.module for entry in report] == ["cell"]
            torch.manual_seed(8)
            assert_close(list(expected), list(cell(x, (h, c))))
