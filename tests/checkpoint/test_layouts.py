"""The tables of names and shapes against the models themselves."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError, Tacotron2, WaveGlow
from fastglow.checkpoint.io import _SkipInitialisation
from fastglow.checkpoint.layouts import infer_config, is_parameter


def meta(state):
    return {key: tensor.to("meta") for key, tensor in state.items()}


odd = st.sampled_from([1, 3, 5, 7])
small = st.integers(1, 9)


@settings(max_examples=25)
@given(
    n_mel_channels=small,
    n_symbols=small,
    half=small,
    encoder_kernel_size=odd,
    encoder_n_convolutions=st.integers(1, 4),
    attention_rnn_dim=small,
    attention_dim=small,
    attention_location_n_filters=small,
    attention_location_kernel_size=odd,
    n_frames_per_step=st.integers(1, 4),
    decoder_rnn_dim=small,
    prenet_dim=small,
    postnet_embedding_dim=small,
    postnet_kernel_size=odd,
    postnet_n_convolutions=st.integers(2, 6),
)
def test_every_tacotron2_is_inferred_from_its_shapes(half, **keywords):
    model = Tacotron2(symbols_embedding_dim=2 * half, encoder_embedding_dim=2 * half, **keywords)
    assert infer_config("tacotron2", meta(model.state_dict()), {}) == model.config


@settings(max_examples=25)
@given(
    n_mel_channels=small,
    n_flows=st.integers(1, 9),
    n_early_every=st.integers(1, 5),
    half_early=st.integers(1, 2),
    half_last=st.integers(1, 3),
    n_layers=st.integers(1, 3),
    n_channels=st.sampled_from([2, 4, 6]),
    kernel_size=odd,
    upsample_to_groups=st.booleans(),
)
def test_every_waveglow_is_inferred_from_its_shapes(
    n_mel_channels, n_flows, n_early_every, half_early, half_last, upsample_to_groups, **wn_config
):
    n_early = (n_flows - 1) // n_early_every
    n_group = 2 * (half_last + half_early * n_early)
    model = WaveGlow(
        n_mel_channels,
        n_flows,
        n_group,
        n_early_every,
        2 * half_early,
        wn_config,
        upsample_kernel_size=4 * n_group,
        upsample_stride=n_group,
        upsample_to_groups=upsample_to_groups,
    )
    config = infer_config("waveglow", meta(model.state_dict()), {})
    if n_early == 0:  # the file does not say when early outputs would come
        assert not any(config.is_early(k) for k in range(n_flows))
        config.n_early_every, config.n_early_size = n_early_every, 2 * half_early
    assert config == model.config


def test_settings_of_absent_early_outputs_come_from_the_hints(build):
    model = build.waveglow(n_flows=3, n_early_every=5, n_early_size=4)
    hints = {"n_early_every": 5, "n_early_size": 4, "upsample_stride": 16}
    assert infer_config("waveglow", meta(model.state_dict()), hints) == model.config


@pytest.mark.parametrize(
    ("model", "keywords", "n_tensors", "n_parameters"),
    [
        (Tacotron2, {}, 84, 28_193_153),
        (WaveGlow, {"WN_config": {"n_layers": 8, "n_channels": 256, "kernel_size": 3}}, 938, 87_879_272),
    ],
)
def test_published_sizes(model, keywords, n_tensors, n_parameters):
    with _SkipInitialisation():
        network = model(**keywords)
    state = network.state_dict()
    assert len(state) == n_tensors
    assert sum(prod(t.shape) for key, t in state.items() if is_parameter(key)) == n_parameters
    name = model.__name__.lower()
    assert infer_config(name, meta(state), {}) == network.config


TACOTRON2_KEYS = [
    "embedding.weight",
    "encoder.convolutions.1.0.conv.weight",
    "encoder.convolutions.1.1.running_var",
    "encoder.lstm.bias_hh_l0_reverse",
    "decoder.prenet.layers.0.linear_layer.weight",
    "decoder.attention_rnn.weight_ih",
    "decoder.attention_layer.v.linear_layer.weight",
    "decoder.attention_layer.location_layer.location_conv.conv.weight",
    "decoder.decoder_rnn.weight_hh",
    "decoder.linear_projection.linear_layer.bias",
    "decoder.gate_layer.linear_layer.bias",
    "postnet.convolutions.1.0.conv.bias",
]


@pytest.mark.parametrize("key", TACOTRON2_KEYS)
def test_a_missing_key_is_named_with_the_shape_it_should_have(build, key):
    state = meta(build.tacotron2().state_dict())
    shape = list(state.pop(key).shape)
    if key == "embedding.weight":
        shape = ["?", 16]
    text = "[" + ", ".join(map(str, shape)) + "]"
    with pytest.raises(FastglowError) as caught:
        infer_config("tacotron2", state, {})
    if key.endswith("location_conv.conv.weight"):
        text = "[4, 2, ?]"
    assert str(caught.value) == f"key '{key}' is missing: Tacotron 2 expects shape {text}, found none"


@pytest.mark.parametrize("key", [k for k in TACOTRON2_KEYS if "location_conv" not in k])
def test_a_wrong_shape_is_named_with_both_shapes(build, key):
    state = meta(build.tacotron2().state_dict())
    shape = list(state[key].shape)
    state[key] = torch.empty([shape[0], *(n + 1 for n in shape[1:])] if shape[1:] else [99], device="meta")
    with pytest.raises(FastglowError) as caught:
        infer_config("tacotron2", state, {})
    expected, found = shape, list(state[key].shape)
    assert str(caught.value) == f"key '{key}' has the wrong shape: expected {expected}, found {found}"


@pytest.mark.parametrize(
    "key", ["convinv.3.conv.weight", "WN.0.start.weight_v", "WN.4.cond_layers.2.weight_v", "WN.5.end.bias"]
)
def test_one_odd_tensor_of_a_waveglow_is_found(build, key):
    state = meta(build.waveglow().state_dict())
    shape = list(state[key].shape)
    state[key] = torch.empty([n + 2 for n in shape], device="meta")
    with pytest.raises(FastglowError) as caught:
        infer_config("waveglow", state, {})
    found = [n + 2 for n in shape]
    assert str(caught.value) == f"key '{key}' has the wrong shape: expected {shape}, found {found}"


def test_unexpected_keys_are_refused(build):
    state = meta(build.tacotron2().state_dict())
    state["decoder.extra\n.weight"] = torch.empty(3, 4, device="meta")
    with pytest.raises(FastglowError, match=r"extra.*not part of Tacotron 2.*found shape \[3, 4\]") as caught:
        infer_config("tacotron2", state, {})
    assert "\n" not in str(caught.value)


def test_even_kernels_are_refused(build):
    state = meta(build.tacotron2().state_dict())
    for i in range(2):
        state[f"encoder.convolutions.{i}.0.conv.weight"] = torch.empty(16, 16, 4, device="meta")
    with pytest.raises(FastglowError, match="encoder_kernel_size=4 must be odd"):
        infer_config("tacotron2", state, {})


def test_stray_keys_do_not_make_huge_layouts(build):
    state = meta(build.waveglow().state_dict())
    extra = {f"WN.{k}.in_layers.{k}.bias": torch.empty(1, device="meta") for k in range(3000)}
    with pytest.raises(FastglowError, match="WN.0.res_skip_layers.2.bias"):
        infer_config("waveglow", {**extra, **state}, {})
