"""Every published form of a WaveGlow checkpoint gives the same model."""

import pytest
import torch

from fastglow import FastglowError, WaveGlow, load_checkpoint
from fastglow.checkpoint import inspect_checkpoint

GENERATIONS = {"A": "separate_residual", "B": None, "C": "fused_conditioning"}
SPELLINGS = ("g/v", "parametrizations", "plain")


def foreign_state(build, model, generation, spelling="g/v"):
    state = model.state_dict()
    if GENERATIONS[generation]:
        state = getattr(build, GENERATIONS[generation])(state)
    return build.weight_norm_spelling(state, spelling)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_flat_state_dicts(build, same_weights, waveglow_output, tmp_path, generation, spelling):
    model = build.waveglow()
    path = tmp_path / "waveglow.pt"
    state = foreign_state(build, model, generation, spelling)
    assert any(".weight_v" in key for key in state) == (spelling == "g/v")
    torch.save(state, path)
    loaded = load_checkpoint(path)
    if spelling == "plain":
        for key, tensor in model.state_dict().items():
            if not key.endswith(("weight_g", "weight_v")):
                assert torch.equal(loaded.state_dict()[key], tensor), key
        torch.testing.assert_close(waveglow_output(loaded), waveglow_output(model), rtol=1e-5, atol=1e-5)
    else:
        same_weights(loaded, model)
        assert torch.equal(waveglow_output(loaded), waveglow_output(model))
    assert f"generation {generation}" in inspect_checkpoint(path).format


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("module", ["glow", "glow_old"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_whole_pickled_modules(build, same_weights, waveglow_output, tmp_path, generation, module, legacy):
    model = build.waveglow(alternate_halves=module == "glow_old")
    path = tmp_path / "waveglow_256channels.pt"
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    build.save_pickled_waveglow(
        path,
        foreign_state(build, model, generation),
        module=module,
        legacy=legacy,
        extra={"optimizer": optimizer},
    )
    with pytest.raises(Exception, match="glow|weights_only|Weights only"):
        torch.load(path, weights_only=True)
    loaded = load_checkpoint(path)
    same_weights(loaded, model)
    assert loaded.config == model.config
    assert torch.equal(waveglow_output(loaded), waveglow_output(model))
    info = inspect_checkpoint(path)
    assert info.format == f"NVIDIA/waveglow, generation {generation}, pickled {module}.WaveGlow"
    assert info.iteration == 580000
    assert any("alternating halves" in note for note in info.notes) == (module == "glow_old")


def test_alternating_halves_are_another_function(build, waveglow_output):
    model = build.waveglow()
    other = build.waveglow(alternate_halves=True)
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(waveglow_output(model), waveglow_output(other), atol=1e-2)


@pytest.mark.parametrize("prefix", ["module.", "module.1."])
def test_deep_learning_examples(build, same_weights, tmp_path, prefix):
    model = build.waveglow()
    config = {"n_mel_channels": 5, "n_flows": 6, "WN_config": model.config.WN_config}
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "config": config, "epoch": 3}, tmp_path / "w.pt")
    same_weights(load_checkpoint(tmp_path / "w.pt"), model)
    assert inspect_checkpoint(tmp_path / "w.pt").format == "DeepLearningExamples"


def test_the_golden_model(golden, tmp_path):
    tensors = golden("waveglow_tiny")
    torch.save({"state_dict": tensors.group("state")}, tmp_path / "w.pt")
    loaded = load_checkpoint(tmp_path / "w.pt")
    for key, tensor in tensors.group("state").items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert loaded.config == WaveGlow(**tensors.config).config


def test_the_stride_is_a_quarter_of_the_kernel_by_default(build, tmp_path):
    model = build.waveglow(upsample_stride=32)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt").config.upsample_stride == 16
    assert load_checkpoint(tmp_path / "w.pt", upsample_stride=32).config == model.config
    assert "a quarter of the kernel is assumed" in str(inspect_checkpoint(tmp_path / "w.pt"))
    with pytest.raises(FastglowError, match="upsample_stride=7 must be a multiple of n_group=8"):
        load_checkpoint(tmp_path / "w.pt", upsample_stride=7)
    build.save_pickled_waveglow(tmp_path / "p.pt", model.state_dict(), stride=32)
    assert load_checkpoint(tmp_path / "p.pt").config == model.config


def test_early_outputs_can_be_overridden_only_if_the_file_has_none(build, tmp_path):
    torch.save(build.waveglow().state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt", n_early_every=2).config.n_early_every == 2
    with pytest.raises(FastglowError, match="n_early_every=3 must be 2, as its tensors have it"):
        load_checkpoint(tmp_path / "w.pt", n_early_every=3)
    torch.save(build.waveglow(n_flows=2).state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt", n_early_every=5, n_early_size=4).config.n_early_every == 5


def test_alternate_halves_can_be_overridden(build, tmp_path):
    torch.save(build.waveglow().state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt", alternate_halves=True).config.alternate_halves
    assert not load_checkpoint(tmp_path / "w.pt").config.alternate_halves


def test_rows_of_zeros_survive_without_weight_norm(build, waveglow_output, tmp_path):
    model = build.waveglow()
    with torch.no_grad():
        model.WN[2].in_layers[1].weight_g[3] = 0.0
    torch.save(build.weight_norm_spelling(model.state_dict(), "plain"), tmp_path / "w.pt")
    loaded = load_checkpoint(tmp_path / "w.pt")
    weight = loaded.WN[2].in_layers[1].weight
    assert torch.isfinite(weight).all() and not weight[3].any()
    torch.testing.assert_close(waveglow_output(loaded), waveglow_output(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("generation", "key", "message"),
    [
        ("A", "WN.1.res_layers.0.bias", "is missing: expected shape [6], found none"),
        ("A", "WN.1.skip_layers.2.weight_v", "is missing: WaveGlow expects shape [6, 6, 1], found none"),
        ("B", "WN.1.cond_layers.0.weight_g", "is missing: WaveGlow expects shape [12, 1, 1], found none"),
        ("B", "upsample.bias", "is missing: WaveGlow expects shape [5], found none"),
        ("C", "WN.3.cond_layer.weight_v", "is missing: WaveGlow expects shape [12, 40, 1], found none"),
    ],
)
def test_missing_keys(build, tmp_path, generation, key, message):
    state = foreign_state(build, build.waveglow(), generation)
    del state[key]
    torch.save(state, tmp_path / "w.pt")
    for function in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError) as caught:
            function(tmp_path / "w.pt")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "key", "expected"),
    [
        ("A", "WN.1.skip_layers.0.weight_v", [6, 6, 1]),
        ("C", "WN.3.cond_layer.weight_v", [36, 40, 1]),
        ("C", "WN.3.cond_layer.bias", [36]),
        ("B", "convinv.5.conv.weight", [4, 4, 1]),
    ],
)
def test_wrong_shapes(build, tmp_path, generation, key, expected):
    state = foreign_state(build, build.waveglow(), generation)
    found = [n + 1 for n in state[key].shape]
    state[key] = torch.zeros(found)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(tmp_path / "w.pt")
    assert "has the wrong shape: expected [" in str(caught.value)
    assert str(found) in str(caught.value)
    if generation != "C" or key.endswith("bias"):
        assert str(expected) in str(caught.value)


@pytest.mark.parametrize("extra", ["WN.1.mystery.weight", "WN.1.start.weight_scale"])
def test_unexpected_keys(build, tmp_path, extra):
    torch.save({**build.waveglow().state_dict(), extra: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(FastglowError, match=f"key '{extra}' is not part of WaveGlow"):
        load_checkpoint(tmp_path / "w.pt")


def test_a_pickled_waveglow_upsampled_to_groups(build, tmp_path):
    """Its upsampling layer's stride is in groups."""
    model = build.waveglow(upsample_to_groups=True)
    torch.save(model, tmp_path / "w.pt")
    torch.save({"model": model}, tmp_path / "d.pt")
    for name in ("w.pt", "d.pt"):
        assert load_checkpoint(tmp_path / name).config == model.config
