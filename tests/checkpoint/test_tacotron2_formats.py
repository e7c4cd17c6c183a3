"""Every published form of a Tacotron 2 checkpoint gives the same model."""

import json

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
    """(name, what is saved, the format's name in `inspect`)."""
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
    path = tmp_path / "checkpoint_1500"  # the reference's files have no extension
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


def test_the_file_s_config_tells_what_the_tensors_do_not(build, tmp_path):
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
def test_relatives_are_described_and_refused(build, tmp_path, extra, reason):
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


def test_the_wrong_one_of_the_two_models_is_refused(build, tmp_path):
    save_checkpoint(build.waveglow(), tmp_path / "w")
    save_checkpoint(build.tacotron2(), tmp_path / "t")
    with pytest.raises(FastglowError, match="a WaveGlow checkpoint, must be a Tacotron 2 checkpoint"):
        load_checkpoint(tmp_path / "w", expect="tacotron2")
    with pytest.raises(FastglowError, match="a Tacotron 2 checkpoint, must be a WaveGlow checkpoint"):
        load_checkpoint(tmp_path / "t", expect="waveglow")
    with pytest.raises(FastglowError, match="expect=vits must be one of tacotron2, waveglow"):
        load_checkpoint(tmp_path / "t", expect="vits")


def coqui_output(state, hidden, context):
    """coqui's decoder step behind its LSTMs: (frame, stop token) for [B, ...] vectors."""
    frame = torch.nn.functional.linear(
        torch.cat((hidden, context), 1),
        state["decoder.linear_projection.linear_layer.weight"],
        state["decoder.linear_projection.linear_layer.bias"],
    )
    stop = torch.nn.functional.linear(
        torch.cat((hidden, frame), 1),
        state["decoder.stopnet.1.linear_layer.weight"],
        state["decoder.stopnet.1.linear_layer.bias"],
    )
    return frame, stop


def save_coqui(build, tmp_path, config, changes=None, **model_changes):
    model = build.tacotron2(**model_changes)
    state = build.coqui_names(model.state_dict(), generator=torch.Generator().manual_seed(4))
    state.update(changes or {})
    torch.save({"model": state, "step": 410000, "epoch": 9, "config": {"r": 1}}, tmp_path / "model_file.pth")
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return model, state, tmp_path / "model_file.pth"


def test_coqui(build, tmp_path):
    config = {"attention_norm": "softmax", "r": 1, "max_decoder_steps": 500}
    model, state, path = save_coqui(build, tmp_path, config)
    loaded = load_checkpoint(path)
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert "gate_layer" in key or torch.equal(found[key], tensor), key
    hidden, context = torch.randn(5, 10), torch.randn(5, 16)
    _, stop = coqui_output(state, hidden, context)
    gate = loaded.decoder.gate_layer(torch.cat((hidden, context), 1))
    torch.testing.assert_close(gate, stop, rtol=0, atol=1e-6)
    assert (loaded.config.p_prenet_dropout, loaded.config.max_decoder_steps) == (0.0, 500)
    info = inspect_checkpoint(path)
    assert (info.format, info.iteration, info.epoch) == ("coqui TTS", 410000, 9)


def test_coqui_keeps_its_prenet_dropout_if_configured(build, tmp_path):
    config = '{"attention_norm": "softmax", // a comment, as Mozilla TTS wrote\n "prenet_dropout_at_inference": true}'
    _, _, path = save_coqui(build, tmp_path, config)
    loaded = load_checkpoint(path)
    assert (loaded.config.p_prenet_dropout, loaded.config.max_decoder_steps) == (0.5, 10000)


def test_coqui_without_configuration_says_what_it_assumes(build, tmp_path, caplog):
    _, _, path = save_coqui(build, tmp_path, None)
    load_checkpoint(path)
    assert "softmax is assumed" in caplog.text
    assert "softmax is assumed" in str(inspect_checkpoint(path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_norm": "sigmoid"}, "attention_norm=sigmoid: NVIDIA's attention is a softmax"),
        ({"attention_norm": "softmax", "use_forward_attn": True}, "use_forward_attn=True"),
        ({"attention_norm": "softmax", "r": 3}, "coqui model with r=3 frames per step"),
        ({"attention_norm": "softmax", "use_d_vector_file": True}, "multi-speaker models are not supported"),
        ("{", "config.json beside it is not JSON"),
    ],
)
def test_coqui_configurations_that_are_another_model(build, tmp_path, config, message):
    _, _, path = save_coqui(build, tmp_path, config)
    with pytest.raises(FastglowError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("coarse_decoder.attention_rnn.weight_ih", "double decoder consistency (DDC)"),
        ("decoder.attention.static_filter_conv.weight", "dynamic convolution attention (DCA)"),
        ("decoder.attention.N_a.0.weight", "Graves attention"),
        ("decoder.attention.ta.weight", "forward attention with a transition agent"),
        ("gst_layer.encoder.weight", "global style tokens (GST)"),
        ("speaker_embedding.weight", "a multi-speaker model"),
    ],
)
def test_coqui_tensors_that_are_another_model(build, tmp_path, key, message):
    _, _, path = save_coqui(build, tmp_path, None, {key: torch.zeros(4)})
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(path)
    assert f"not supported: {message} ('{key}')" in str(caught.value)
    assert message in inspect_checkpoint(path).unsupported


def test_coqui_with_more_frames_a_step_is_refused(build, tmp_path):
    _, _, path = save_coqui(build, tmp_path, None, n_frames_per_step=2)
    with pytest.raises(FastglowError, match="r=2 frames per step .* has 20 rows for 10 mel channels"):
        load_checkpoint(path)
    assert "r=2 frames per step" in inspect_checkpoint(path).unsupported


def test_coqui_backward_decoder_is_dropped(build, tmp_path):
    changes = {"decoder_backward.linear_projection.linear_layer.bias": torch.zeros(10)}
    _, _, path = save_coqui(build, tmp_path, None, changes)
    assert load_checkpoint(path).config.n_frames_per_step == 1


def batch_norm(n, bias):
    return {
        "weight": torch.rand(n) + 0.5,
        "bias": torch.full((n,), bias),
        "running_mean": torch.zeros(n),
        "running_var": torch.rand(n) + 0.5,
        "num_batches_tracked": torch.tensor(5),
    }


def test_coqui_prenet_normalisation_is_folded_where_that_is_exact(build, tmp_path):
    norms = [batch_norm(6, 0.0), batch_norm(6, 0.0)]
    changes = {
        f"decoder.prenet.linear_layers.{i}.batch_normalization.{name}": tensor
        for i, norm in enumerate(norms)
        for name, tensor in norm.items()
    }
    model, state, path = save_coqui(build, tmp_path, {"attention_norm": "softmax"}, changes)
    loaded = load_checkpoint(path)
    x = torch.randn(4, 10)
    expected = x
    for i, norm in enumerate(norms):
        weight = state[f"decoder.prenet.linear_layers.{i}.linear_layer.weight"]
        expected = torch.nn.functional.batch_norm(
            expected @ weight.t(), norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
        ).relu()
    torch.testing.assert_close(loaded.decoder.prenet(x), expected, rtol=0, atol=1e-6)


def test_coqui_prenet_normalisation_with_a_bias_is_refused(build, tmp_path):
    changes = {
        f"decoder.prenet.linear_layers.1.batch_normalization.{name}": tensor
        for name, tensor in batch_norm(6, 0.1).items()
    }
    _, _, path = save_coqui(build, tmp_path, None, changes)
    with pytest.raises(FastglowError, match="not supported: coqui prenet_type=bn: .* adds a bias"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("decoder.stopnet.1.linear_layer.weight", [1, 19]), ("decoder.stopnet.1.linear_layer.bias", None)],
)
def test_coqui_stop_layers_that_do_not_fit(build, tmp_path, name, shape):
    _, state, path = save_coqui(build, tmp_path, None)
    if shape:
        state[name] = torch.zeros(shape)
        message = r"has the wrong shape: expected \[1, 20\], found \[1, 19\]"
    else:
        del state[name]
        message = "is missing"
    torch.save({"model": state}, path)
    with pytest.raises(FastglowError, match=f"key '{name}' {message}"):
        load_checkpoint(path)
