"""Starting a new model from checkpoints of other symbol tables, shapes and audio."""

import logging

import pytest
import torch

from fastglow import Tacotron2, WaveGlow, save_checkpoint
from fastglow.audio import MelConfig
from fastglow.checkpoint import TrainedWith
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config
from fastglow.text import symbols
from fastglow.train.loop import train
from fastglow.train.warm_start import warm_start

from .conftest import SMALL_TACOTRON2, SMALL_WAVEGLOW, configs

CHARACTERS = [*"_-!'(),.:;? abcdefghijklmnopqrstuvwxyz"]
PHONES = [*CHARACTERS[:12], *(symbol for symbol in symbols if symbol.startswith("@"))]


def tacotron2(seed=0, **options):
    torch.manual_seed(seed)
    return Tacotron2(**{**SMALL_TACOTRON2, **options})


def waveglow(seed=0, **options):
    torch.manual_seed(seed)
    return WaveGlow(**{**SMALL_WAVEGLOW, **options})


def torchaudio_file(path, model):
    state = {k.replace(".linear_layer.", ".").replace(".conv.", "."): v for k, v in model.state_dict().items()}
    torch.save(state, path)
    return path


def described(model, **known):
    model.trained_with = TrainedWith(**known)
    return model


def changed_rows(model, path, *arguments):
    """The model's embedding before and after a warm start."""
    before = model.embedding.weight.detach().clone()
    warm_start(model, path, *arguments)
    return before, model.embedding.weight.detach()


@pytest.mark.parametrize("table", [CHARACTERS, PHONES, symbols], ids=["characters", "phones", "nvidia"])
@pytest.mark.parametrize("n_symbols", [148, 200, 64])
def test_rows_are_assigned_to_their_symbols(table, n_symbols, tmp_path):
    source = tacotron2(1, n_symbols=len(table))
    path = torchaudio_file(tmp_path / "source.pt", source)
    model = tacotron2(2, n_symbols=n_symbols)
    before, after = changed_rows(model, path)
    taken = 0
    for row in range(n_symbols):
        symbol = symbols[row] if row < 148 else None
        if symbol in table:
            assert torch.equal(after[row], source.embedding.weight[table.index(symbol)]), symbol
            taken += 1
        else:
            assert torch.equal(after[row], before[row]), symbol
    assert taken == len(set(table) & set(symbols[:n_symbols])) > 10
    for name, tensor in source.state_dict().items():
        assert name == "embedding.weight" or torch.equal(model.state_dict()[name], tensor), name


def test_a_checkpoint_of_fastglow_has_the_first_of_nvidias_symbols(tmp_path):
    """By their number, 38 symbols would be torchaudio's."""
    source = described(tacotron2(1, n_symbols=38), symbols="nvidia")
    save_checkpoint(source, tmp_path / "s.safetensors")
    before, after = changed_rows(tacotron2(2), tmp_path / "s.safetensors")
    assert torch.equal(after[:38], source.embedding.weight)
    assert torch.equal(after[38:], before[38:])


@pytest.mark.parametrize(("n_symbols", "table"), [(154, None), (37, None), (130, None), (148, "foreign")])
def test_an_unknown_table_starts_a_new_embedding_when_asked(n_symbols, table, tmp_path):
    source = described(tacotron2(1, n_symbols=n_symbols), symbols=table)
    path = tmp_path / "s.safetensors"
    save_checkpoint(source, path)
    model = tacotron2(2)
    with pytest.raises(
        FastglowError, match=rf"{n_symbols} symbols of an unknown table, .* --ignore-layers embedding.weight$"
    ) as e:
        warm_start(model, path)
    assert "--n-symbols" not in str(e.value) and "\n" not in str(e.value)
    for name in ("embedding.weight", "embedding", "embedding."):
        before, after = changed_rows(model, path, [name])
        assert torch.equal(before, after)
        assert torch.equal(model.encoder.lstm.weight_ih_l0, source.encoder.lstm.weight_ih_l0)


def test_custom_tables_of_equal_size_are_loaded_unchanged(tmp_path):
    source = tacotron2(1, n_symbols=160)
    save_checkpoint(source, tmp_path / "s.safetensors")
    _, after = changed_rows(tacotron2(2, n_symbols=160), tmp_path / "s.safetensors")
    assert torch.equal(after, source.embedding.weight)


@pytest.mark.parametrize(
    ("make", "layers", "parts"),
    [
        (tacotron2, ["decoder.prenet"], ("decoder.prenet.",)),
        (tacotron2, ["postnet.convolutions.1", "decoder.gate_layer.linear_layer.bias"],
         ("postnet.convolutions.1.", "decoder.gate_layer.linear_layer.bias")),
        (tacotron2, ["encoder.lstm.weight_ih_l0"], ("encoder.lstm.weight_ih_l0",)),
        (lambda seed: waveglow(seed, n_flows=12, n_early_every=20), ["WN.1"], ("WN.1.",)),
        (waveglow, ["upsample", "convinv"], ("upsample.", "convinv.")),
    ],
)  # fmt: skip
def test_ignored_layers_keep_their_initial_values_and_no_others(make, layers, parts, tmp_path):
    source, model = make(1), make(2)
    save_checkpoint(source, tmp_path / "s.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    warm_start(model, tmp_path / "s.safetensors", layers)
    kept = 0
    for name, tensor in model.state_dict().items():
        ignored = (
            name == "encoder.lstm.weight_ih_l0" if "encoder.lstm.weight_ih_l0" in parts else name.startswith(parts)
        )
        kept += ignored
        assert torch.equal(tensor, (before if ignored else source.state_dict())[name]), name
    assert kept


@pytest.mark.parametrize("layer", ["prenet", "embedding.weights", "decoder.pre", "WN.1", "postnet.convolutions.7", ""])
def test_an_unknown_layer_is_refused_with_the_existing_names(layer, tmp_path):
    save_checkpoint(tacotron2(1), tmp_path / "s.safetensors")
    model = tacotron2(2)
    with pytest.raises(FastglowError, match="must be a layer of the model: it has ") as error:
        warm_start(model, tmp_path / "s.safetensors", ["embedding", layer])
    nearest = {"decoder.pre": "decoder.prenet", "embedding.weights": "embedding.weight",
               "postnet.convolutions.7": "postnet.convolutions.1"}  # fmt: skip
    assert nearest.get(layer, "encoder") in str(error.value).partition("it has")[2]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"n_frames_per_step": 2}, "--n-frames-per-step 2"),
        ({"prenet_dim": 20}, "--prenet-dim 20"),
        ({"postnet_n_convolutions": 3}, "--postnet-n-convolutions 3"),
        ({"n_mel_channels": 40}, "prepare the data with --n-mel-channels 40 and pass --n-mel-channels 40"),
        ({"encoder_embedding_dim": 32, "symbols_embedding_dim": 32}, "--encoder-embedding-dim 32"),
    ],
)
def test_other_shapes_name_the_option_and_layers_that_can_be_ignored(options, flag, tmp_path):
    source = tacotron2(1, **options)
    save_checkpoint(source, tmp_path / "s.safetensors")
    model = tacotron2(2)
    with pytest.raises(FastglowError) as error:
        warm_start(model, tmp_path / "s.safetensors")
    message = str(error.value)
    assert flag in message and "\n" not in message
    for name, value in options.items():
        assert f"{name}={value} (this run: {getattr(model.config, name)})" in message
    warm_start(model, tmp_path / "s.safetensors", message.partition(": --ignore-layers ")[2].split(" --ignore-layers "))
    warm_start(tacotron2(3, **options), tmp_path / "s.safetensors")
    equal = [torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items() if n in source.state_dict()]
    assert any(equal) and not all(equal)


def test_waveglow_of_other_halves_is_refused(tmp_path):
    save_checkpoint(waveglow(1, alternate_halves=True), tmp_path / "s.safetensors")
    with pytest.raises(FastglowError, match="alternate_halves=True: pass --alternate-halves$"):
        warm_start(waveglow(2), tmp_path / "s.safetensors")
    warm_start(waveglow(2, alternate_halves=True), tmp_path / "s.safetensors")


def test_waveglow_of_another_stride_is_logged_and_loaded(tmp_path, caplog):
    source = waveglow(1)
    save_checkpoint(source, tmp_path / "s.safetensors")
    for stride, logged in ((256, False), (200, True), (128, True)):
        model = waveglow(2, upsample_stride=stride)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warm_start(model, tmp_path / "s.safetensors")
        assert (f"makes 256 samples per frame, this run {stride}" in caplog.text) is logged
        assert torch.equal(model.upsample.weight, source.upsample.weight)


def test_another_model_is_refused(tmp_path):
    save_checkpoint(waveglow(1), tmp_path / "s.safetensors")
    with pytest.raises(FastglowError, match="is a WaveGlow, not a Tacotron2"):
        warm_start(tacotron2(2), tmp_path / "s.safetensors", ["embedding.weight"])


def test_other_audio_is_logged_and_the_weights_are_loaded(tmp_path, caplog):
    save_checkpoint(described(waveglow(1), audio=MelConfig(16000, mel_fmax=None)), tmp_path / "s.safetensors")
    for audio, logged in ((MelConfig(16000), False), (None, False), (MelConfig(), True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warm_start(waveglow(2), tmp_path / "s.safetensors", (), audio)
        assert ("sampling_rate 16000 and 22050" in caplog.text) is logged


@pytest.mark.parametrize("n_symbols", [38, 96, 154])
def test_a_run_from_another_table(n_symbols, prepared, tmp_path):
    source = tacotron2(1, n_symbols=n_symbols)
    path = torchaudio_file(tmp_path / "source.pt", source)
    ignored = {"ignore_layers": ["embedding.weight"]} if n_symbols == 154 else {}
    config, _ = configs(
        "tacotron2",
        prepared,
        tmp_path / "run",
        init_from=str(path),
        max_iterations=1,
        **{**ignored, "learning_rate": 1e-9},
    )
    saved = train("tacotron2", config, Tacotron2Config(**SMALL_TACOTRON2), progress=False)
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert state["embedding.weight"].shape == (148, 16)
    torch.testing.assert_close(
        state["decoder.attention_rnn.weight_hh"], source.decoder.attention_rnn.weight_hh.detach()
    )
    space = torch.allclose(state["embedding.weight"][11], source.embedding.weight[11], atol=1e-6)
    assert space is (n_symbols != 154)


def test_layers_to_ignore_need_a_checkpoint(prepared, tmp_path):
    with pytest.raises(FastglowError, match="needs init_from"):
        configs("tacotron2", prepared, tmp_path, ignore_layers=["embedding.weight"])
