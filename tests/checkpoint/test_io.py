"""Saving, converting and inspecting."""

import fcntl
import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastglow import FastglowError, Tacotron2, WaveGlow, load_checkpoint, save_checkpoint
from fastglow.checkpoint import CheckpointInfo, convert_checkpoint, inspect_checkpoint, save_nvidia_checkpoint

DLE_KEYWORDS = {
    *("mask_padding", "n_mel_channels", "n_symbols", "symbols_embedding_dim", "encoder_kernel_size"),
    *("encoder_n_convolutions", "encoder_embedding_dim", "attention_rnn_dim", "attention_dim"),
    *("attention_location_n_filters", "attention_location_kernel_size", "n_frames_per_step", "decoder_rnn_dim"),
    *("prenet_dim", "max_decoder_steps", "gate_threshold", "p_attention_dropout", "p_decoder_dropout"),
    *("postnet_embedding_dim", "postnet_kernel_size", "postnet_n_convolutions", "decoder_no_early_stopping"),
}


def test_our_own_format_keeps_everything(build, same_weights, tmp_path):
    tacotron2 = build.tacotron2(
        n_frames_per_step=3,
        max_decoder_steps=77,
        gate_threshold=0.4,
        mask_padding=True,
        decoder_no_early_stopping=True,
        p_prenet_dropout=0.25,
        p_encoder_dropout=0.0,
        p_postnet_dropout=1.0,
    )
    waveglow = build.waveglow(upsample_stride=32, alternate_halves=True)
    flat = build.waveglow(n_flows=2, n_early_every=7, n_early_size=4)
    for model in (tacotron2, waveglow, flat):
        save_checkpoint(model, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.config == model.config
        same_weights(loaded, model)
        info = inspect_checkpoint(tmp_path / "m.safetensors")
        assert (info.format, info.container) == ("fastglow format 1", "safetensors")
        assert info.n_tensors == len(model.state_dict())


def test_the_file_is_plain_safetensors_with_nvidias_names(build, tmp_path):
    model = build.waveglow()
    save_checkpoint(model, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert "WN.0.cond_layers.0.weight_g" in tensors
    with safe_open(tmp_path / "m.safetensors", "pt") as f:
        metadata = f.metadata()
    assert metadata.keys() == {"fastglow"}
    description = json.loads(metadata["fastglow"])
    assert (description["format"], description["model"]) == (1, "waveglow")
    assert WaveGlow(**description["config"]).config == model.config


def test_storing_in_half_precision(build, tmp_path):
    model = build.tacotron2()
    save_checkpoint(model, tmp_path / "m", dtype=torch.float16)
    loaded, kept = load_checkpoint(tmp_path / "m"), load_checkpoint(tmp_path / "m", dtype=None)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert kept.state_dict()[key].dtype == torch.float16
            assert torch.equal(loaded.state_dict()[key], tensor.half().float())
    assert next(model.parameters()).dtype == torch.float32
    content = (tmp_path / "m").read_bytes()
    n_bytes = sum(t.numel() * t.element_size() for t in kept.state_dict().values())
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + n_bytes


def test_half_and_double_models_are_saved_as_they_are(build, same_weights, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = build.tacotron2().to(dtype)
        save_checkpoint(model, tmp_path / "m")
        same_weights(load_checkpoint(tmp_path / "m", dtype=None), model)


def test_transposed_and_shared_parameters_are_saved(build, same_weights, tmp_path):
    model = build.tacotron2()
    model.embedding.weight = torch.nn.Parameter(model.embedding.weight.detach().t().contiguous().t())
    model.decoder.attention_rnn.bias_hh = model.decoder.attention_rnn.bias_ih
    save_checkpoint(model, tmp_path / "m")
    same_weights(load_checkpoint(tmp_path / "m"), model)


def test_training_continues_from_a_loaded_model(build, tmp_path):
    save_checkpoint(build.tacotron2(), tmp_path / "m")
    model = load_checkpoint(tmp_path / "m").train()
    batch = (torch.randint(0, 30, (2, 5)), torch.tensor([5, 4]), torch.randn(2, 10, 6), 5, torch.tensor([6, 6]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(batch)[1].square().mean().backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {"embedding.weight", "encoder.lstm.weight_hh_l0", "decoder.prenet.layers.0.linear_layer.weight"} <= changed


def test_loading_leaves_the_random_state_and_the_file_alone(build, tmp_path):
    save_checkpoint(build.tacotron2(), tmp_path / "m")
    before, content = torch.get_rng_state(), (tmp_path / "m").read_bytes()
    model = load_checkpoint(tmp_path / "m")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "m").read_bytes() == content


@pytest.mark.parametrize("to", ["fastglow", "nvidia"])
def test_convert_keeps_weights_and_dtypes(build, same_weights, tmp_path, to):
    model = build.tacotron2(max_decoder_steps=99)
    state = build.torchaudio_names({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    torch.save(state, tmp_path / "in.pt")
    convert_checkpoint(tmp_path / "in.pt", tmp_path / "out", to=to)
    expected = load_checkpoint(tmp_path / "in.pt", dtype=None)
    same_weights(load_checkpoint(tmp_path / "out", dtype=None), expected)
    assert expected.embedding.weight.dtype == torch.float16


def test_converting_to_nvidias_layout_and_back_is_exact(build, same_weights, tmp_path):
    waveglow = build.waveglow(upsample_kernel_size=1024, upsample_stride=256)
    for model in (waveglow, build.tacotron2(max_decoder_steps=99)):
        save_checkpoint(model, tmp_path / "a")
        convert_checkpoint(tmp_path / "a", tmp_path / "b", to="nvidia")
        convert_checkpoint(tmp_path / "b", tmp_path / "c")
        same_weights(load_checkpoint(tmp_path / "c"), model)
        assert load_checkpoint(tmp_path / "c").config == model.config
        assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_nvidias_layout(build, tmp_path):
    """What DeepLearningExamples and torch.hub read: `Model(**config)`, then `load_state_dict(state_dict)`."""
    tacotron2 = build.tacotron2(max_decoder_steps=99)
    save_nvidia_checkpoint(tacotron2, tmp_path / "t.pt")
    content = torch.load(tmp_path / "t.pt", weights_only=True)
    assert content.keys() == {"config", "state_dict"}
    assert content["config"].keys() == DLE_KEYWORDS
    assert Tacotron2(**content["config"]).config == tacotron2.config
    Tacotron2(**content["config"]).load_state_dict(content["state_dict"])

    waveglow = build.waveglow(upsample_kernel_size=1024, upsample_stride=256)
    save_nvidia_checkpoint(waveglow, tmp_path / "w.pt")
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    assert list(content["config"]) == [
        *("n_mel_channels", "n_flows", "n_group", "n_early_every", "n_early_size", "WN_config")
    ]
    WaveGlow(**content["config"]).load_state_dict(content["state_dict"])


@pytest.mark.parametrize("changes", [{"alternate_halves": True}, {"upsample_stride": 32}, {"upsample_to_groups": True}])
def test_models_that_nvidias_class_cannot_express_are_refused(build, tmp_path, changes):
    keywords = {"upsample_kernel_size": 1024, "upsample_stride": 256, **changes}
    model = build.waveglow(**keywords)
    (name, value), *_ = changes.items()
    with pytest.raises(FastglowError, match=f"{name}={value} must be .* in NVIDIA's layout"):
        save_nvidia_checkpoint(model, tmp_path / "w.pt")
    assert not (tmp_path / "w.pt").exists()


def test_convert_refuses_other_targets(tmp_path):
    with pytest.raises(FastglowError, match="to=onnx must be one of fastglow, nvidia"):
        convert_checkpoint(tmp_path / "a", tmp_path / "b", to="onnx")


def test_files_are_replaced_in_one_step(build, tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.write_text("old")
    model = build.tacotron2()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for name, save in (("save", save_checkpoint), ("torch.save", save_nvidia_checkpoint)):
        monkeypatch.setattr(f"fastglow.checkpoint.io.{name}", full_disk)
        with pytest.raises(FastglowError) as caught:
            save(model, path)
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
        assert os.listdir(tmp_path) == ["m"] and path.read_text() == "old"


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".link"])
def test_pipes_and_devices_are_written_to_and_not_replaced(build, tmp_path, suffix):
    pipe, path = tmp_path / "pipe", tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    if path != pipe:
        path.symlink_to(pipe)
    model = build.tacotron2()
    save_checkpoint(model, tmp_path / "file")
    expected = (tmp_path / "file").read_bytes()
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # of both ends, so that nothing waits for the other
    try:
        assert fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 2**20) >= len(expected)
        save_checkpoint(model, path)
        assert stat.S_ISFIFO(os.stat(path).st_mode)
        received = b""
        while len(received) < len(expected):
            received += os.read(end, 2**20)
    finally:
        os.close(end)
    assert received == expected


def test_unwritable_outputs(build, tmp_path):
    model = build.tacotron2()
    for save in (save_checkpoint, save_nvidia_checkpoint):
        with pytest.raises(FastglowError, match="none/m: cannot be written: No such file or directory"):
            save(model, tmp_path / "none" / "m")
        with pytest.raises(FastglowError, match="cannot be written: Is a directory"):
            save(model, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_failed_conversion_leaves_the_output_alone(build, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    (tmp_path / "out").write_text("old")
    with pytest.raises(FastglowError):
        convert_checkpoint(tmp_path / "bad.pt", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2


def test_files_get_the_usual_permissions(build, tmp_path):
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for save in (save_checkpoint, save_nvidia_checkpoint):
        save(build.tacotron2(), tmp_path / "m")
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == usual


def test_only_the_two_models_are_saved(tmp_path):
    for save in (save_checkpoint, save_nvidia_checkpoint):
        with pytest.raises(FastglowError, match="a Linear cannot be saved"):
            save(torch.nn.Linear(2, 2), tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"fastglow": '{"format": 2}'}, "fastglow format 2, this fastglow reads 1: update fastglow"),
        ({"fastglow": "[]"}, "fastglow format None, this fastglow reads 1"),
        ({"fastglow": "{"}, "its metadata is not JSON"),
        ({"fastglow": "[" * 100_000}, "its metadata is not JSON"),
    ],
)
def test_metadata_that_cannot_be_read(build, tmp_path, metadata, message):
    save_file(build.tacotron2().state_dict(), tmp_path / "m", metadata)
    with pytest.raises(FastglowError, match=message):
        load_checkpoint(tmp_path / "m")


def test_foreign_safetensors_are_read(build, same_weights, tmp_path):
    model = build.tacotron2()
    save_file(build.torchaudio_names(model.state_dict()), tmp_path / "m.safetensors")
    same_weights(load_checkpoint(tmp_path / "m.safetensors"), model)
    assert inspect_checkpoint(tmp_path / "m.safetensors").format == "torchaudio, flat state_dict"


def test_missing_keys_and_wrong_shapes_name_the_file(build, tmp_path):
    state = build.tacotron2().state_dict()
    path = tmp_path / "m.pt"
    key = "decoder.gate_layer.linear_layer.bias"
    torch.save({**state, key: torch.zeros(4)}, path)
    with pytest.raises(FastglowError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path}: key '{key}' has the wrong shape: expected [1], found [4]"
    del state[key]
    torch.save(state, path)
    with pytest.raises(FastglowError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value) == f"{path}: key '{key}' is missing: Tacotron 2 expects shape [1], found none"


def test_the_report_reads_well(build, tmp_path):
    path = tmp_path / "waveglow.pt"
    build.save_pickled_waveglow(path, build.waveglow().state_dict(), module="glow_old")
    info = inspect_checkpoint(path)
    assert isinstance(info, CheckpointInfo)
    lines = str(info).splitlines()
    assert lines[0] == str(path)
    rows = {line[2:31].strip(): line[31:].strip() for line in lines[1:]}
    assert rows["model"] == "WaveGlow"
    assert rows["format"] == "NVIDIA/waveglow, generation B, pickled glow_old.WaveGlow"
    assert rows["container"] == f"torch.save zip archive, {path.stat().st_size:,} bytes"
    assert rows["tensors"] == f"{info.n_tensors} (float32)"
    assert rows["iteration"] == "580000"
    assert rows["config WN_config.n_layers"] == "3"
    assert rows["note"].startswith("alternating halves")
    assert "symbols" not in rows and "not supported" not in rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device_is_refused(build, tmp_path):
    save_checkpoint(build.tacotron2(), tmp_path / "m")
    with pytest.raises(FastglowError, match="device cuda: ") as caught:
        load_checkpoint(tmp_path / "m", device="cuda")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.gpu
def test_models_go_to_and_come_from_the_gpu(build, same_weights, tmp_path):
    model = build.tacotron2()
    save_checkpoint(model.cuda(), tmp_path / "m")
    loaded = load_checkpoint(tmp_path / "m", device="cuda", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in loaded.parameters()} == {("cuda", torch.float16)}
    same_weights(load_checkpoint(tmp_path / "m"), model.cpu())


def test_convert_to_another_dtype(build, tmp_path):
    save_checkpoint(build.waveglow(), tmp_path / "full.safetensors")
    convert_checkpoint(tmp_path / "full.safetensors", tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = (load_file(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert all(torch.equal(half[key], tensor.half()) for key, tensor in full.items())
