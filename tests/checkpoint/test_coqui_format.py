"""coqui TTS's Tacotron 2: its names, its folded stop layer and prenet, its configuration."""

import json

import pytest
import torch

from fastglow import FastglowError, load_checkpoint
from fastglow.checkpoint import inspect_checkpoint


def coqui_output(state, hidden, context):
    """coqui's decoder step after its LSTMs: (frame, stop token) for [B, ...] vectors."""
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


def test_coqui_with_more_frames_per_step_is_refused(build, tmp_path):
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
