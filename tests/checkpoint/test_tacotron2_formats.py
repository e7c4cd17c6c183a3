"""Every published form of a Tacotron 2 checkpoint gives the same model."""

import pytest
import torch

from fastglow import FastglowError, load_checkpoint, save_checkpoint
from fastglow.checkpoint import inspect_checkpoint

DLE_CONFIG = {"max_decoder_steps": 1234, "gate_threshold": 0.25, "mask_padding": True, "n_mel_channels": 10}


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def training_extras(model):
    """Optimizer, scaler and random states as DeepLearningExamples' train.py saves them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 1500,
        "cuda_rng_state_all": torch.zeros(1, 816, dtype=torch.uint8),
        "random_rng_states_all": torch.get_rng_state().unsqueeze(0),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def contents(build, model):
    """Name -> (saved content, the format's name in `inspect`)."""
    extras = training_extras(model)
    state = model.state_dict()
    names = build.torchaudio_names(state)
    nvidia = {"iteration": 7500, "state_dict": state, "optimizer": extras["optimizer"], "learning_rate": 1e-3}
    dle = {"config": DLE_CONFIG, **extras}
    return {
        "NVIDIA/tacotron2": (nvidia, "NVIDIA/tacotron2"),
        "NVIDIA/tacotron2, DataParallel": (
            {**nvidia, "state_dict": prefixed("module.", state)},
            "NVIDIA/tacotron2",
        ),
        "DLE": ({**dle, "state_dict": state}, "DeepLearningExamples"),
        "DLE, DDP": ({**dle, "state_dict": prefixed("module.", state)}, "DeepLearningExamples"),
        "DLE, 2019": ({**dle, "state_dict": prefixed("module.1.", state)}, "DeepLearningExamples"),
        "SpeechBrain": (state, "flat state_dict in NVIDIA's names (SpeechBrain's, or bare)"),
        "torchaudio": (names, "torchaudio, flat state_dict"),
        "torchaudio, trained": (
            {"state_dict": prefixed("module.", names), "epoch": 3},
            "torchaudio, training checkpoint",
        ),
        "fastglow train": (
            {**dle, "state_dict": state, "model": "tacotron2", "iteration": 9, "random_state": {"python": [3]}},
            "fastglow training checkpoint",
        ),
        "torch.compile": (prefixed("_orig_mod.", state), None),
        "whole module": (model, "pickled fastglow.models.tacotron2.Tacotron2"),
        "whole module in DataParallel": (torch.nn.DataParallel(model), None),
    }


NAMES = [
    *("NVIDIA/tacotron2", "NVIDIA/tacotron2, DataParallel", "DLE", "DLE, DDP", "DLE, 2019", "SpeechBrain"),
    *(
        "torchaudio",
        "torchaudio, trained",
        "fastglow train",
        "torch.compile",
        "whole module",
        "whole module in DataParallel",
    ),
]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_comes_back(build, same_weights, tacotron2_output, tmp_path, name, legacy):
    model = build.tacotron2(n_frames_per_step=2)
    content, format_name = contents(build, model)[name]
    path = tmp_path / "checkpoint_1500"  # NVIDIA's files have no extension
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    same_weights(loaded, model)
    assert torch.equal(tacotron2_output(loaded), tacotron2_output(model))
    info = inspect_checkpoint(path)
    assert format_name in (info.format, None)
    assert info.container == ("torch.save stream (before torch 1.6)" if legacy else "torch.save zip archive")
    assert (info.n_tensors, info.n_symbols, info.dtypes) == (63, 30, {"float32": 58})
    assert info.n_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:the stop gate of item")
def test_infer_agrees_with_the_model_that_was_saved(build, tmp_path):
    model = build.tacotron2(max_decoder_steps=12)
    path = tmp_path / "m.pt"
    torch.save({"state_dict": model.state_dict(), "config": {"max_decoder_steps": 12}}, path)
    text, lengths = torch.randint(0, 30, (2, 6)), torch.tensor([6, 4])
    outputs = [m.infer(text, lengths, seed=3) for m in (model, load_checkpoint(path))]
    for expected, found in zip(*outputs, strict=True):
        assert torch.equal(expected, found)


def test_the_golden_model_gives_the_golden_output(golden, tmp_path):
    tensors = golden("tacotron2_tiny")
    path = tmp_path / "model.ckpt"
    torch.save(tensors.group("state"), path)
    model = load_checkpoint(path, mask_padding=True)
    model.decoder.prenet.p_dropout = 0.0
    inputs = tensors.group("input")
    batch = (inputs["text"], inputs["input_lengths"], inputs["mel"], 24, inputs["output_lengths"])
    with torch.no_grad():
        outputs = model(batch)
    for name, output in zip(("mel", "mel_postnet", "gate", "alignments"), outputs, strict=True):
        torch.testing.assert_close(output, tensors[f"eval/{name}"], rtol=0, atol=1e-5)


def test_keywords_that_shapes_do_not_determine_come_from_the_files_config(build, tmp_path):
    path = tmp_path / "dle.pt"
    config = {**DLE_CONFIG, "n_symbols": 999, "p_attention_dropout": "half", "unknown": 1}
    torch.save({"config": config, "state_dict": build.tacotron2().state_dict()}, path)
    config = load_checkpoint(path).config
    assert (config.max_decoder_steps, config.gate_threshold, config.mask_padding) == (1234, 0.25, True)
    assert (config.n_symbols, config.p_attention_dropout) == (30, 0.1)
    assert "p_attention_dropout=half in the file is unusable" in str(inspect_checkpoint(path))
    assert load_checkpoint(path, max_decoder_steps=5).config.max_decoder_steps == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_symbols": 148}, "n_symbols follows from the tensors of a Tacotron 2"),
        ({"max_decoder_steps": "many"}, "max_decoder_steps=many is not a valid value"),
        ({"gate_threshold": 1.5}, "gate_threshold=1.5 is not a valid value"),
        ({"mask_padding": 1}, "mask_padding=1 is not a valid value"),
    ],
)
def test_overrides_are_checked(build, tmp_path, overrides, message):
    path = tmp_path / "m.pt"
    torch.save(build.tacotron2().state_dict(), path)
    with pytest.raises(FastglowError, match=message):
        load_checkpoint(path, **overrides)


def test_step_counters_may_be_missing(build, tmp_path):
    model = build.tacotron2()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert loaded["postnet.convolutions.0.1.num_batches_tracked"].item() == 0


def test_shared_and_strided_storages_are_read(build, same_weights, tmp_path):
    """cuDNN keeps an LSTM's weights in one buffer; a transposed tensor is saved with its strides."""
    model = build.tacotron2()
    state = dict(model.state_dict())
    names = [name for name in state if name.startswith("encoder.lstm.")]
    buffer = torch.cat([state[name].flatten() for name in names])
    start = 0
    for name in names:
        n = state[name].numel()
        state[name] = buffer[start : start + n].view(state[name].shape)
        start += n
    state["embedding.weight"] = state["embedding.weight"].t().contiguous().t()
    for legacy in (False, True):
        torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        same_weights(load_checkpoint(tmp_path / "m.pt"), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(build, tmp_path, dtype):
    model = build.tacotron2()
    state = {k: v.to(dtype) if v.is_floating_point() and ".1." not in k else v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    loaded, kept = load_checkpoint(tmp_path / "m.pt"), load_checkpoint(tmp_path / "m.pt", dtype=None)
    asked = load_checkpoint(tmp_path / "m.pt", dtype=torch.float64)
    for key, tensor in state.items():
        is_float = tensor.is_floating_point()
        assert loaded.state_dict()[key].dtype == (torch.float32 if is_float else torch.int64)
        assert torch.equal(loaded.state_dict()[key], tensor.float() if is_float else tensor)
        assert kept.state_dict()[key].dtype == tensor.dtype and torch.equal(kept.state_dict()[key], tensor)
        assert asked.state_dict()[key].dtype == (torch.float64 if is_float else torch.int64)
    name = str(dtype).removeprefix("torch.")
    assert inspect_checkpoint(tmp_path / "m.pt").dtypes[name] > 20


def test_integer_weights_are_refused(build, tmp_path):
    state = build.tacotron2().state_dict()
    state["embedding.weight"] = state["embedding.weight"].to(torch.int8)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(FastglowError, match=r"'embedding.weight' has dtype torch.int8: expected floating-point"):
        load_checkpoint(tmp_path / "m.pt")


def test_symbol_tables_and_wavernn_are_noted(build, tmp_path):
    model = build.tacotron2(n_symbols=38)
    path = tmp_path / "tacotron2_english_characters_1500_epochs_wavernn_ljspeech.pth"
    torch.save(build.torchaudio_names(model.state_dict()), path)
    notes = " ".join(inspect_checkpoint(path).notes)
    assert "torchaudio's character table" in notes
    assert "do not fit WaveGlow" in notes


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("speaker_embedding.weight", "a multi-speaker model ('speaker_embedding.weight')"),
        ("gst.encoder.convs.0.weight", "global style tokens (GST)"),
        ("decoder.prenet_f0.conv.weight", "Mellotron's pitch input"),
        ("ms_film_h.linear_layer.weight", "SpeechBrain's multi-speaker layers"),
    ],
)
def test_related_models_are_described_and_refused(build, tmp_path, extra, reason):
    path = tmp_path / "m.pt"
    torch.save({"state_dict": {**build.tacotron2().state_dict(), extra: torch.zeros(3, 3)}}, path)
    with pytest.raises(FastglowError, match="not supported: ") as caught:
        load_checkpoint(path)
    assert reason in str(caught.value)
    info = inspect_checkpoint(path)
    assert reason in info.unsupported and reason in str(info)
    assert info.config == {}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"tts.enc.embed.weight": torch.zeros(2, 2)}, "not supported: ESPnet's Tacotron 2"),
        ({"flows.0.conv.weight": torch.zeros(2, 2)}, "not supported: a flow model of another kind"),
        ({"generator.1.bias": torch.zeros(2)}, "neither a Tacotron 2 nor a WaveGlow: 1 tensors such as 'generator"),
        ({"state_dict": {}}, "holds no model weights"),
        ([1, 2], "holds no model weights"),
    ],
)
def test_other_models_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "m.pt")
    for function in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError, match=message):
            function(tmp_path / "m.pt")


def test_the_model_that_is_not_expected_is_refused(build, tmp_path):
    save_checkpoint(build.waveglow(), tmp_path / "w")
    save_checkpoint(build.tacotron2(), tmp_path / "t")
    with pytest.raises(FastglowError, match="this is a WaveGlow checkpoint, must be a Tacotron 2 checkpoint"):
        load_checkpoint(tmp_path / "w", expect="tacotron2")
    with pytest.raises(FastglowError, match="this is a Tacotron 2 checkpoint, must be a WaveGlow checkpoint"):
        load_checkpoint(tmp_path / "t", expect="waveglow")
    with pytest.raises(FastglowError, match="expect=vits must be one of tacotron2, waveglow"):
        load_checkpoint(tmp_path / "t", expect="vits")
