"""NeMo's own models, saved by NeMo, against what `load_checkpoint` makes of the files."""

import pytest
import torch

from fastglow import load_checkpoint
from tests.integrations import peers

PREPROCESSOR = {
    "_target_": "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
    **{"sample_rate": 22050, "n_fft": 1024, "n_window_size": 1024, "n_window_stride": 256, "nfilt": 80},
    **{"lowfreq": 0, "highfreq": 8000, "mag_power": 1.0, "normalize": None, "preemph": None, "pad_value": -11.52},
    **{"log_zero_guard_type": "clamp", "log_zero_guard_value": 1e-5},
}
MODULES = "nemo.collections.tts.modules"
TACOTRON2 = {
    "labels": list("abcdefghij"),
    "preprocessor": PREPROCESSOR,
    "encoder": {
        "_target_": f"{MODULES}.tacotron2.Encoder",
        **{
            "encoder_kernel_size": 3,
            "encoder_n_convolutions": 2,
            "encoder_embedding_dim": 512,
        },  # NeMo's embedding is 512
    },
    "decoder": {
        "_target_": f"{MODULES}.tacotron2.Decoder",
        **{"n_mel_channels": 80, "n_frames_per_step": 1, "encoder_embedding_dim": 512, "attention_dim": 7},
        **{"attention_location_n_filters": 4, "attention_location_kernel_size": 9, "attention_rnn_dim": 12},
        **{"decoder_rnn_dim": 10, "prenet_dim": 6, "max_decoder_steps": 31, "gate_threshold": 0.5},
        **{"p_attention_dropout": 0.1, "p_decoder_dropout": 0.2, "prenet_p_dropout": 0.0, "early_stopping": True},
    },
    "postnet": {
        "_target_": f"{MODULES}.tacotron2.Postnet",
        **{"n_mel_channels": 80, "postnet_embedding_dim": 14, "postnet_kernel_size": 5, "postnet_n_convolutions": 3},
        "p_dropout": 0.3,
    },
}
WAVEGLOW = {
    "sigma": 1.0,
    "preprocessor": PREPROCESSOR,
    "waveglow": {
        "_target_": f"{MODULES}.waveglow.WaveGlowModule",
        **{"n_mel_channels": 80, "n_flows": 5, "n_group": 8, "n_early_every": 2, "n_early_size": 2},
        **{"n_wn_channels": 6, "n_wn_layers": 3, "wn_kernel_size": 3},
    },
}


@pytest.fixture(scope="module")
def build():
    """`build("tacotron2" or "waveglow")`: NeMo's model in eval mode, with random weights and statistics."""

    def make(kind):
        models = peers.nemo_tts(f"models.{kind}")
        config = peers.load("omegaconf").OmegaConf.create(TACOTRON2 if kind == "tacotron2" else WAVEGLOW)
        model = (models.Tacotron2Model if kind == "tacotron2" else models.WaveGlowModel)(config)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point() and "convinv" not in name and "precessor" not in name:
                    tensor.add_(0.05 * torch.randn_like(tensor))
        return model.eval()

    return make


def test_tacotron2(build, tmp_path):
    model, path = build("tacotron2"), tmp_path / "model.nemo"
    model.save_to(str(path))
    loaded = load_checkpoint(path, expect="tacotron2")
    assert (loaded.config.n_symbols, loaded.config.max_decoder_steps) == (13, 31)
    assert (loaded.config.p_decoder_dropout, loaded.config.p_postnet_dropout) == (0.2, 0.3)
    assert loaded.trained_with.audio.mel_fmax == 8000.0

    tokens, lengths = torch.randint(0, 13, (2, 11)), torch.tensor([11, 7])
    mels = torch.randn(2, 80, 9)
    with torch.no_grad():
        memory = model.encoder(token_embedding=model.text_embedding(tokens).transpose(1, 2), token_len=lengths)
        mel, gate, alignments = model.decoder.train_forward(memory=memory, decoder_inputs=mels, memory_lengths=lengths)
        expected = (mel, model.postnet(mel_spec=mel), gate, alignments)
        found = loaded((tokens, lengths, mels, 11, torch.tensor([9, 9])))
    for tensor, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [1, 12])
def test_tacotron2_generates_the_same_frames(build, tmp_path, step):
    """NeMo drops the frame at which its gate fires; NVIDIA's model, and fastglow's, has it."""
    model, path = build("tacotron2"), tmp_path / "model.nemo"
    tokens, lengths = torch.randint(0, 13, (1, 11)), torch.tensor([11])
    with torch.no_grad():
        model.calculate_loss = False
        model.decoder.gate_threshold = 1.0
        gate = model(tokens=tokens, token_len=lengths)[2][0].sigmoid()
        # Fires at the first step whose gate reaches the highest of the first steps.
        threshold = float(gate[: step + 1].max()) - 1e-5
        first = int((gate > threshold).nonzero()[0])
        model.decoder.gate_threshold = threshold
        mel, mel_postnet, _, _, n_frames = model(tokens=tokens, token_len=lengths)
    model.save_to(str(path))
    loaded = load_checkpoint(path, gate_threshold=threshold)
    decoded = loaded.decode(tokens, lengths)
    assert n_frames.tolist() == decoded.steps.tolist() == [first]
    assert mel.shape[2] == max(first, 1)
    found = loaded.infer(tokens, lengths)[0]
    assert found.shape[2] == first + 1
    # The postnet's three convolutions of five see six frames ahead, among them the frame that NeMo drops.
    inside = max(first - 6, 0)
    torch.testing.assert_close(found[:, :, :inside], mel_postnet[:, :, :inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("inferred", [False, True])
def test_waveglow(build, tmp_path, inferred):
    model, path = build("waveglow"), tmp_path / "model.nemo"
    mels, audio, noise = torch.randn(2, 80, 6), 0.1 * torch.randn(2, 6 * 256), torch.randn(2, 8, 6 * 32)
    with torch.no_grad():
        expected = model.waveglow.norm_dist_to_audio(spec=mels, z=noise)
        forward = model.waveglow.audio_to_normal_dist(spec=mels, audio=audio)
        if inferred:  # keeps inverses, and removes weight normalisation
            model.convert_spectrogram_to_audio(spec=mels)
    model.save_to(str(path))
    loaded = load_checkpoint(path, expect="waveglow")
    torch.testing.assert_close(loaded.infer(mels, sigma=1.0, noise=noise), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        z, log_s, log_det = loaded((mels, audio))
    torch.testing.assert_close(z, forward[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(list(log_s), list(forward[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(list(log_det)), torch.stack(list(forward[2])), rtol=1e-5, atol=1e-3)
