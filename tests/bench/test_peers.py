"""Loading NVIDIA's code from a fake checkout; the plain decoder against the model's."""

import sys
from pathlib import Path

import pytest
import torch

from bench import peers, plain_tacotron2
from fastglow import Tacotron2
from fastglow.errors import FastglowError

TACOTRON2 = """
import sys
from os.path import abspath, dirname
sys.path.append(abspath(dirname(__file__) + "/../"))
from made_up_common import mel
import torch

class Tacotron2(torch.nn.Module):
    def __init__(self, **keywords):
        super().__init__()
        assert mel is None
        self.keywords = keywords
    def load_state_dict(self, state):
        self.loaded = list(state)
"""
COMMON = """
from absent_package.filters import mel
import absent_package.util as util
assert util.anything is None
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """Imports a package that is not installed."""
    folder = tmp_path / peers.TACOTRON2_FOLDER
    for name in ("waveglow", "tacotron2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "loss_function.py").write_text("")
    (folder / "waveglow" / "model.py").write_text("import warnings\nwarnings.warn('old')\n")
    (folder / "tacotron2" / "model.py").write_text(TACOTRON2)
    (folder / "made_up_common.py").write_text(COMMON)
    monkeypatch.setattr(peers, "UNUSED_IMPORTS", ("absent_package", "absent_package.filters", "absent_package.util"))
    monkeypatch.delitem(sys.modules, "made_up_common", raising=False)
    return tmp_path


def model() -> Tacotron2:
    return Tacotron2(
        n_mel_channels=6,
        symbols_embedding_dim=16,
        encoder_embedding_dim=16,
        attention_rnn_dim=24,
        decoder_rnn_dim=20,
        attention_dim=12,
        attention_location_n_filters=4,
        attention_location_kernel_size=5,
        prenet_dim=8,
        max_decoder_steps=70,
        gate_threshold=1.0,
    ).eval()


@pytest.mark.parametrize("folder", [".", peers.TACOTRON2_FOLDER], ids=str)
def test_a_checkout_loads_without_packages_that_its_models_do_not_use(checkout, folder):
    path = list(sys.path)
    dle = peers.load_dle(checkout / folder)
    assert sys.path == path
    assert not [name for name in sys.modules if name.startswith("absent_package")]
    twin = dle.tacotron2(ours := model())
    assert twin.loaded == list(ours.state_dict())
    assert twin.keywords["max_decoder_steps"] == 70
    assert not twin.training
    assert not {"p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout"} & twin.keywords.keys()


def test_installed_packages_are_not_replaced(monkeypatch):
    monkeypatch.setattr(peers, "UNUSED_IMPORTS", ("json", "json.decoder"))
    decoder = sys.modules["json.decoder"]
    with peers.tolerate_old_code():
        assert sys.modules["json.decoder"] is decoder
    assert sys.modules["json.decoder"] is decoder


@pytest.mark.parametrize("missing", ["waveglow/model.py", "tacotron2/loss_function.py"])
def test_an_incomplete_checkout(checkout, missing):
    (checkout / peers.TACOTRON2_FOLDER / missing).unlink()
    with pytest.raises(FastglowError, match="pass a DeepLearningExamples checkout"):
        peers.load_dle(checkout)


def test_the_plain_decoder_equals_the_models():
    ours = model().double()
    ours.decoder.prenet.p_dropout = 0.0
    memory, lengths, mels = torch.randn(2, 7, 16).double(), torch.tensor([7, 4]), torch.randn(2, 6, 9).double()
    weights = plain_tacotron2.weights_of(ours.decoder)
    expected = ours.decoder(memory, mels, lengths)
    for actual, tensor in zip(
        plain_tacotron2.run_forced(memory, mels, lengths, weights, (0.0, 0.0, 0.0)), expected, strict=True
    ):
        torch.testing.assert_close(actual, tensor, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_free_running_plain_decoder_equals_the_models():
    ours = model().double()
    memory, lengths, seeds = torch.randn(2, 7, 16).double(), torch.tensor([7, 4]), torch.tensor([3, -4])
    recurrent, output, memory_weight = plain_tacotron2.weights_of(ours.decoder)
    attended = plain_tacotron2.attend(memory, memory_weight, lengths)
    frames, alignments = plain_tacotron2.run_free(attended, recurrent, output, 0.5, 70, seeds)
    mel, steps, expected = ours.decoder.infer(memory, lengths, seeds)
    assert steps.tolist() == [70, 70]
    torch.testing.assert_close(frames.transpose(1, 2), mel, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alignments, expected, rtol=1e-9, atol=1e-9)
