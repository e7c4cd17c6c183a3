"""NeMo's .nemo archives: its names and configuration, other models' archives, damaged ones."""

import gzip
import io
import random
import re
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastglow import FastglowError, load_checkpoint
from fastglow.checkpoint import convert_checkpoint, inspect_checkpoint

PREPROCESSOR = {
    "sample_rate": 22050,
    "n_fft": 512,
    "n_window_size": 400,
    "n_window_stride": 200,
    "nfilt": 10,
    "lowfreq": 20,
    "highfreq": 7000,
    "log_zero_guard_type": "clamp",
    "log_zero_guard_value": 1e-05,
    "mag_power": 1.0,
    "normalize": None,
    "preemph": None,
}
DECODER = {
    "n_frames_per_step": 1,
    "max_decoder_steps": 123,
    "gate_threshold": 0.4,
    "p_attention_dropout": 0.15,
    "p_decoder_dropout": 0.2,
    "prenet_p_dropout": 0.35,
    "early_stopping": False,
}
TACOTRON2 = {
    "labels": [" ", "!", "'", "a", "b"],
    "preprocessor": PREPROCESSOR,
    "decoder": DECODER,
    "postnet": {"p_dropout": 0.45},
    "target": "nemo.collections.tts.models.tacotron2.Tacotron2Model",
    "nemo_version": "2.7.3",
}
WAVEGLOW = {
    "sigma": 1.0,
    "preprocessor": {**PREPROCESSOR, "nfilt": 5},
    "waveglow": {"n_flows": 6, "n_early_every": 2, "n_early_size": 2},
    "target": "nemo.collections.tts.models.waveglow.WaveGlowModel",
}


# NeMo's is the published upsampler, whatever the configuration.
UPSAMPLER = {"upsample_kernel_size": 1024, "upsample_stride": 256}


def nemo_names(model):
    """NeMo's state_dict of a model: its names, its one cond_layer per flow, the buffers of its preprocessor."""
    buffers = {
        "audio_to_melspec_precessor.window": torch.hann_window(400, periodic=False),
        "audio_to_melspec_precessor.fb": torch.rand(1, 10, 257),
    }
    state = model.state_dict()
    if "embedding.weight" in state:
        return {**buffers, **{re.sub("^embedding", "text_embedding", name): value for name, value in state.items()}}
    renamed, parts = {}, {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"WN\.(\d+)\.cond_layers\.\d+\.(\w+)", name):
            parts.setdefault(f"waveglow.wavenet.{match[1]}.cond_layer.{match[2]}", []).append(tensor)
        else:
            renamed["waveglow." + name.replace("WN.", "wavenet.")] = tensor
    return {**buffers, **renamed, **{name: torch.cat(tensors) for name, tensors in parts.items()}}


def archive(members, compress=False, form=tarfile.PAX_FORMAT):
    """A tar archive of (name, bytes) in a folder, as NeMo packs it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz" if compress else "w", format=form) as tar:
        folder = tarfile.TarInfo(".")
        folder.type, folder.mtime = tarfile.DIRTYPE, 1700000000.25  # PAX stores a fraction in a header of its own
        tar.addfile(folder)
        for name, content in members:
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mtime = len(content), 1700000000.25
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def saved(content):
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


@pytest.fixture
def save_nemo(build, tmp_path):
    """`save_nemo(model, config)`: the path of its .nemo file; `state` replaces the tensors."""

    def save(model, config, *, compress=False, form=tarfile.PAX_FORMAT, extra=(), state=None) -> Path:
        path = tmp_path / "model.nemo"
        members = [] if config is None else [("model_config.yaml", build.block_yaml(config).encode())]
        weights = saved(nemo_names(model) if state is None else state)
        path.write_bytes(archive([*extra, *members, ("model_weights.ckpt", weights)], compress, form))
        return path

    return save


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tacotron2(build, save_nemo, same_weights, compress, form):
    model = build.tacotron2()
    path = save_nemo(model, TACOTRON2, compress=compress, form=form, extra=[("cmudict", b"A  AH0\n" * 999)])
    loaded = load_checkpoint(path, expect="tacotron2")
    same_weights(loaded, model)
    config = loaded.config
    assert (config.max_decoder_steps, config.gate_threshold) == (123, 0.4)
    assert config.decoder_no_early_stopping and not config.mask_padding
    assert (config.p_attention_dropout, config.p_decoder_dropout, config.p_prenet_dropout) == (0.15, 0.2, 0.35)
    assert (config.p_encoder_dropout, config.p_postnet_dropout) == (0.5, 0.45)


@pytest.mark.parametrize("compress", [False, True])
def test_waveglow(build, save_nemo, same_weights, waveglow_output, compress):
    model = build.waveglow(**UPSAMPLER)
    loaded = load_checkpoint(save_nemo(model, WAVEGLOW, compress=compress), expect="waveglow")
    same_weights(loaded, model)
    assert torch.equal(waveglow_output(loaded), waveglow_output(model))


def test_waveglow_after_an_inference(build, save_nemo, waveglow_output):
    """NeMo then keeps the inverted matrices and has removed weight normalisation."""
    model = build.waveglow(**UPSAMPLER)
    state = nemo_names(model)
    for name in [name for name in state if name.endswith(".weight_v")]:
        v, g = state.pop(name), state.pop(name[:-1] + "g")
        state[name.removesuffix("_v")] = g * v / v.norm(dim=(1, 2), keepdim=True)
    for k in range(6):
        state[f"waveglow.convinv.{k}.inv_conv.weight"] = torch.full_like(state[f"waveglow.convinv.{k}.conv.weight"], 9)
    loaded = load_checkpoint(save_nemo(model, WAVEGLOW, state=state))
    torch.testing.assert_close(waveglow_output(loaded), waveglow_output(model), rtol=0, atol=1e-5)


def test_waveglow_without_early_outputs_has_their_interval_from_the_configuration(build, save_nemo):
    model = build.waveglow(n_flows=3, n_early_every=5, n_early_size=4, **UPSAMPLER)
    config = {**WAVEGLOW, "waveglow": {"n_early_every": 5, "n_early_size": 4}}
    loaded = load_checkpoint(save_nemo(model, config))
    assert (loaded.config.n_early_every, loaded.config.n_early_size) == (5, 4)


def test_what_it_says_about_its_training(build, save_nemo, tmp_path):
    path = save_nemo(build.tacotron2(), TACOTRON2)
    info = inspect_checkpoint(path)
    assert (info.format, info.model, info.n_symbols) == ("NVIDIA NeMo", "tacotron2", 30)
    assert info.container == "NeMo archive with a torch.save zip archive"
    assert info.n_tensors == len(build.tacotron2().state_dict())
    assert "pass the ids of its parse()" in str(info)
    expected = {
        **{"sampling_rate": 22050, "filter_length": 512, "hop_length": 200, "win_length": 400},
        **{"n_mel_channels": 10, "mel_fmin": 20.0, "mel_fmax": 7000.0},
    }
    assert info.trained_with.audio.as_dict() == expected
    assert info.trained_with.symbols == "foreign"
    convert_checkpoint(path, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path / "model.safetensors").trained_with == info.trained_with


def test_waveglow_has_no_symbols(build, save_nemo):
    info = inspect_checkpoint(save_nemo(build.waveglow(**UPSAMPLER), WAVEGLOW))
    assert info.trained_with.symbols is None and info.notes == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_fft": None}, {"filter_length": 512}),
        ({"n_fft": None, "n_window_size": 512}, {"filter_length": 512}),
        ({"highfreq": None}, {"mel_fmax": 11025.0}),
        ({"lowfreq": None}, {"mel_fmin": 0.0}),
    ],
)
def test_audio_options_with_defaults(build, save_nemo, options, expected):
    config = {**TACOTRON2, "preprocessor": {**PREPROCESSOR, **options}}
    audio = load_checkpoint(save_nemo(build.tacotron2(), config)).trained_with.audio.as_dict()
    assert expected.items() <= audio.items()


def test_the_first_form_of_the_configuration(build, save_nemo):
    config = {name: {"cls": "nemo.x.Y", "params": value} for name, value in TACOTRON2.items() if name != "labels"}
    config["target"] = TACOTRON2["target"]
    loaded = load_checkpoint(save_nemo(build.tacotron2(), config))
    assert loaded.config.max_decoder_steps == 123
    assert loaded.trained_with.audio.mel_fmax == 7000.0


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("mag_power", 2.0, "mag_power=2.0"),
        ("log", False, "log=False"),
        ("log_zero_guard_type", "add", "log_zero_guard_type=add"),
        ("log_zero_guard_value", 1e-8, "log_zero_guard_value=1e-08"),
        ("normalize", "per_feature", "normalize=per_feature"),
        ("preemph", 0.97, "preemph=0.97"),
        ("preemph", ..., "preemph=0.97"),
        ("mel_norm", None, "mel_norm=None"),
        ("window", "hamming", "window=hamming"),
    ],
)
def test_mel_spectrograms_of_another_scale_are_named(build, save_nemo, caplog, name, value, shown):
    options = {**PREPROCESSOR, name: value}
    if value is ...:  # NeMo's default
        del options[name]
    path = save_nemo(build.tacotron2(), {**TACOTRON2, "preprocessor": options})
    assert load_checkpoint(path).trained_with.audio is None
    assert f"its mel spectrograms are not fastglow's ({shown})" in caplog.text


def test_without_a_configuration_the_defaults_hold(build, save_nemo, same_weights, caplog):
    model = build.tacotron2()
    loaded = load_checkpoint(save_nemo(model, None))
    same_weights(loaded, model)
    assert (loaded.config.max_decoder_steps, loaded.config.p_prenet_dropout) == (2000, 0.5)
    assert loaded.trained_with.audio is None
    (note,) = (message for message in caplog.messages if "audio parameters" in message)
    assert "it has no model_config.yaml with audio parameters: they are unknown" in note


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("decoder", "gate_threshold", "${model.threshold}"),
        ("decoder", "max_decoder_steps", -1),
        ("decoder", "early_stopping", "perhaps"),
        ("postnet", "p_dropout", 7),
    ],
)
def test_unusable_values_are_named(build, save_nemo, caplog, part, name, value):
    config = {**TACOTRON2, part: {**TACOTRON2[part], name: value}}
    loaded = load_checkpoint(save_nemo(build.tacotron2(), config))
    assert loaded.config.gate_threshold in (0.4, 0.5)
    assert f"={value} in the file is unusable: the default is used" in caplog.text


def test_lightning_checkpoint(build, tmp_path, same_weights):
    """What NeMo's trainer writes: the same names, without the archive."""
    model = build.tacotron2()
    torch.save({"epoch": 7, "global_step": 900, "state_dict": nemo_names(model)}, tmp_path / "last.ckpt")
    same_weights(load_checkpoint(tmp_path / "last.ckpt"), model)
    info = inspect_checkpoint(tmp_path / "last.ckpt")
    assert (info.format, info.epoch) == ("NVIDIA NeMo, Lightning checkpoint", 7)


@pytest.mark.parametrize(
    ("target", "state"),
    [
        ("nemo.collections.tts.models.fastpitch.FastPitchModel", {"fastpitch.encoder.word_emb.weight": (9, 4)}),
        ("nemo.collections.tts.models.hifigan.HifiGanModel", {"generator.conv_pre.weight_v": (8, 5, 7)}),
    ],
)
def test_other_models_of_nemo_are_named(build, save_nemo, target, state):
    path = save_nemo(None, {"target": target}, state={name: torch.zeros(shape) for name, shape in state.items()})
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError) as caught:
            read(path)
        expected = f"not supported: NeMo's {target}: of NeMo's models only Tacotron2Model and WaveGlowModel are read"
        assert str(caught.value) == f"{path}: {expected}"


def test_a_missing_tensor_is_named(build, save_nemo):
    state = nemo_names(build.tacotron2())
    del state["decoder.gate_layer.linear_layer.bias"]
    with pytest.raises(FastglowError, match="key 'decoder.gate_layer.linear_layer.bias' is missing"):
        load_checkpoint(save_nemo(None, TACOTRON2, state=state))


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from the file ran')",))


def test_no_code_runs(build, save_nemo):
    config = {"decoder": {"x": "!!python/object/apply:os.abort []"}, **TACOTRON2}
    assert load_checkpoint(save_nemo(build.tacotron2(), config)).config.max_decoder_steps == 123
    with pytest.raises(FastglowError, match="exec"):
        load_checkpoint(save_nemo(None, TACOTRON2, state={"text_embedding.weight": Exploit()}))


def linked(name, target):
    """A member that is a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return stream.getvalue()


WITHOUT_WEIGHTS = "a tar archive without NeMo's model_weights.ckpt"
NEGATIVE = bytearray(archive([("model_weights.ckpt", b"x" * 600)], form=tarfile.USTAR_FORMAT))
NEGATIVE[512 + 124 : 512 + 136] = b"-0000000600\0"
NEGATIVE[512 + 148 : 512 + 156] = b" " * 8
NEGATIVE[512 + 148 : 512 + 156] = b"%06o\0 " % sum(NEGATIVE[512:1024])
LONG = archive([("model_weights.ckpt", b"x" * 5000)])[:4000]
NOISE = random.Random(1).randbytes(9000)
BAD_ARCHIVES = {
    "other members": (archive([("notes.txt", b"x" * 700)]), WITHOUT_WEIGHTS),
    "outside": (archive([("../../model_weights.ckpt", b"x")]), WITHOUT_WEIGHTS),
    "empty": (archive([("model_weights.ckpt", b"")]), WITHOUT_WEIGHTS),
    "link": (linked("model_weights.ckpt", "/etc/passwd"), WITHOUT_WEIGHTS),
    "not torch.save": (archive([("model_weights.ckpt", b"x" * 700)]), "neither a torch.save nor a safetensors file"),
    "gzip of text": (gzip.compress(b"not a tar archive " * 99), "gzip-compressed: unpack it first"),
    "configuration": (archive([("model_config.yaml", b"#" * 2**21), ("model_weights.ckpt", b"x")]), "2,097,152 bytes"),
    "gzip of zeros": (gzip.compress(archive([("model_weights.ckpt", bytes(2**25))])), "declares 33,554,432 bytes"),
    "gzip of headers": (gzip.compress(archive([(f"{i}", b"") for i in range(2500)])), "unpacks to far more bytes than"),
    "negative size": (bytes(NEGATIVE), "the header of a member is wrong"),
    "gzip of a negative size": (gzip.compress(NEGATIVE), "the header of a member is wrong"),
    "cut": (LONG, "declares 5,000 bytes, at most 928 can be left"),
    "gzip of cut": (gzip.compress(LONG), "it ends inside member model_weights.ckpt"),
    "cut gzip": (
        archive([("model_weights.ckpt", NOISE)], compress=True)[:-4000],
        "its gzip data end early or are wrong",
    ),
    "gzip of nothing": (gzip.compress(LONG)[:40], "gzip-compressed: unpack it first"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_archives_that_hold_no_weights(tmp_path, kind):
    data, message = BAD_ARCHIVES[kind]
    path = tmp_path / "model.nemo"
    path.write_bytes(data)
    before = set(tmp_path.parent.rglob("*"))
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(FastglowError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert message in str(caught.value)
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.fixture(scope="module")
def valid(build):
    """`valid("plain" or "compressed")`: a small archive."""
    torch.manual_seed(0)
    weights = saved(nemo_names(build.waveglow(n_flows=1, **UPSAMPLER)))
    members = [("model_config.yaml", build.block_yaml(WAVEGLOW).encode()), ("model_weights.ckpt", weights)]
    return {"plain": archive(members), "compressed": archive(members, compress=True)}.get


@given(st.sampled_from(["plain", "compressed"]), st.floats(0, 1), st.integers(1, 255), st.booleans())
def test_damaged_archives_load_or_are_explained(valid, tmp_path_factory, form, place, change, cut):
    data = bytearray(valid(form))
    position = min(int(place**3 * len(data)), len(data) - 1)  # most of them in the headers
    if cut:
        del data[position:]
    else:
        data[position] ^= change
    path = tmp_path_factory.getbasetemp() / "damaged.nemo"
    path.write_bytes(data)
    for read in (load_checkpoint, inspect_checkpoint):
        try:
            read(path)
        except FastglowError as e:
            assert str(e).startswith(f"{path}: ") and "\n" not in str(e)


def test_later_members_replace_earlier_ones(build, tmp_path, same_weights):
    """As when an archive is unpacked."""
    old, new = build.waveglow(**UPSAMPLER), build.waveglow(**UPSAMPLER)
    members = [("model_weights.ckpt", saved(nemo_names(model))) for model in (old, new)]
    (tmp_path / "model.nemo").write_bytes(archive(members))
    same_weights(load_checkpoint(tmp_path / "model.nemo"), new)
