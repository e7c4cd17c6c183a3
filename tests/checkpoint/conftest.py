"""Small random models, and builders of the files that other projects' code would save."""

from __future__ import annotations

import re
import sys
import types
import warnings

import pytest
import torch
from torch import nn

from fastglow.models import Tacotron2, WaveGlow

TACOTRON2 = {
    "n_mel_channels": 10,
    "n_symbols": 30,
    "symbols_embedding_dim": 16,
    "encoder_embedding_dim": 16,
    "encoder_kernel_size": 3,
    "encoder_n_convolutions": 2,
    "attention_rnn_dim": 12,
    "attention_dim": 7,
    "attention_location_n_filters": 4,
    "attention_location_kernel_size": 9,
    "decoder_rnn_dim": 10,
    "prenet_dim": 6,
    "postnet_embedding_dim": 14,
    "postnet_kernel_size": 5,
    "postnet_n_convolutions": 3,
}
WAVEGLOW = {
    "n_mel_channels": 5,
    "n_flows": 6,
    "n_group": 8,
    "n_early_every": 2,
    "n_early_size": 2,
    "WN_config": {"n_layers": 3, "n_channels": 6, "kernel_size": 3},
    "upsample_kernel_size": 64,
    "upsample_stride": 16,
}
NORMED = re.compile(r"(WN\.\d+\..*)\.weight_(g|v)")


def _randomised(model: nn.Module) -> nn.Module:
    """Changes every value from its initial one, including the statistics of batch normalisation."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(17)
            elif not name.startswith("convinv"):
                tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()


def _module_tree(state: dict[str, torch.Tensor], classes: types.ModuleType, attributes: dict) -> nn.Module:
    """An nn.Module of the classes WaveGlow, WN and Invertible1x1Conv of `classes` with this state_dict."""
    root = classes.WaveGlow()
    for key, tensor in state.items():
        *path, name = key.split(".")
        module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                within = path[:depth]
                kind = {1: {"WN": classes.WN, "convinv": classes.Invertible1x1Conv}}.get(depth, {})
                module.add_module(part, kind[within[0]]() if within and within[0] in kind else nn.Module())
            module = module._modules[part]
        module.register_parameter(name, nn.Parameter(tensor))
    for name, value in attributes.items():
        setattr(root, name, value)
    return root


class Builders:
    """Builders of foreign files; each method takes canonical tensors and returns the content to save."""

    @staticmethod
    def tacotron2(**changes) -> Tacotron2:
        return _randomised(Tacotron2(**{**TACOTRON2, **changes}))

    @staticmethod
    def waveglow(**changes) -> WaveGlow:
        return _randomised(WaveGlow(**{**WAVEGLOW, **changes}))

    @staticmethod
    def torchaudio_names(state):
        """The rename of pytorch/audio's own conversion."""
        return {
            key.replace(".linear_layer.", ".").replace(".conv.weight", ".weight").replace(".conv.bias", ".bias"): tensor
            for key, tensor in state.items()
        }

    @staticmethod
    def fused_conditioning(state):
        """WaveGlow generation C: one cond_layer per flow."""
        result, parts = {}, {}
        for key, tensor in state.items():
            if match := re.fullmatch(r"(WN\.\d+)\.cond_layers\.\d+\.(\w+)", key):
                parts.setdefault(f"{match[1]}.cond_layer.{match[2]}", []).append(tensor)
            else:
                result[key] = tensor
        return {**result, **{key: torch.cat(tensors) for key, tensors in parts.items()}}

    @staticmethod
    def separate_residual(state):
        """WaveGlow generation A: res_layers and skip_layers."""
        result = {}
        for key, tensor in state.items():
            match = re.fullmatch(r"(WN\.\d+)\.res_skip_layers\.(\d+)\.(\w+)", key)
            if match is None:
                result[key] = tensor
                continue
            flow, i, name = match.groups()
            n_channels = state[f"{flow}.start.bias"].numel()
            if tensor.shape[0] > n_channels:
                result[f"{flow}.res_layers.{i}.{name}"], tensor = tensor.split(n_channels)
            result[f"{flow}.skip_layers.{i}.{name}"] = tensor
        return result

    @staticmethod
    def weight_norm_spelling(state, spelling):
        """`weight_g`/`weight_v`, torch's parametrizations, or the plain product."""
        result = {}
        for key, tensor in state.items():
            match = NORMED.fullmatch(key)
            if match is None or spelling == "g/v":
                result[key] = tensor
            elif spelling == "parametrizations":
                number = 0 if match[2] == "g" else 1
                result[f"{match[1]}.parametrizations.weight.original{number}"] = tensor
            elif match[2] == "v":
                norm = tensor.norm(dim=(1, 2), keepdim=True)
                result[f"{match[1]}.weight"] = state[f"{match[1]}.weight_g"] * tensor / norm
        return result

    @staticmethod
    def save_pickled_waveglow(path, state, *, module="glow", legacy=False, stride=16, extra=None):
        """torch.save of a whole WaveGlow object whose classes no longer exist when the file is read."""
        fake = types.ModuleType(module)
        for name in ("WaveGlow", "WN", "Invertible1x1Conv"):
            setattr(fake, name, type(name, (nn.Module,), {"__module__": module}))
        sys.modules[module] = fake
        try:
            model = _module_tree(state, fake, {"n_flows": 6, "n_group": 8, "n_early_every": 2})
            kernel = state["upsample.weight"]
            upsample = nn.ConvTranspose1d(*kernel.shape, stride=stride)
            upsample.load_state_dict({"weight": kernel, "bias": state["upsample.bias"]}, assign=True)
            model.upsample = upsample
            content = {"model": model, "iteration": 580000, "learning_rate": 1e-4, **(extra or {})}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Couldn't retrieve source code")
                torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        finally:
            del sys.modules[module]

    @staticmethod
    def coqui_names(state, *, generator):
        """A coqui state_dict with the same weights, except for its own stop layer, which is random."""
        renamed = {}
        for key, tensor in state.items():
            if "gate_layer" in key:
                continue
            key = re.sub(r"(convolutions\.\d+)\.0\.conv\.", r"\1.convolution1d.", key)
            key = re.sub(r"(convolutions\.\d+)\.1\.", r"\1.batch_normalization.", key)
            key = key.replace("prenet.layers", "prenet.linear_layers")
            key = key.replace("attention_layer", "attention").replace("memory_layer", "inputs_layer")
            renamed[key.replace("location_conv.conv", "location_conv1d")] = tensor
        n_frame, n_in = state["decoder.linear_projection.linear_layer.weight"].shape
        n_hidden = state["decoder.decoder_rnn.weight_hh"].shape[1]
        renamed["decoder.stopnet.1.linear_layer.weight"] = torch.randn(1, n_hidden + n_frame, generator=generator)
        renamed["decoder.stopnet.1.linear_layer.bias"] = torch.randn(1, generator=generator)
        renamed["decoder.attention.v.linear_layer.bias"] = torch.randn(1, generator=generator)
        return renamed

    @staticmethod
    def block_yaml(values, indent=0):
        """Block YAML, as OmegaConf writes it."""
        text = ""
        for name, value in values.items():
            text += " " * indent + name + ":"
            if isinstance(value, dict):
                text += "\n" + Builders.block_yaml(value, indent + 2)
            elif isinstance(value, list):
                text += "\n" + "".join(" " * indent + "- '" + item.replace("'", "''") + "'\n" for item in value)
            else:
                words = {None: "null", True: "true", False: "false"}
                text += f" {words[value] if value is None or isinstance(value, bool) else value}\n"
        return text


@pytest.fixture(scope="session")
def build() -> type[Builders]:
    return Builders


@pytest.fixture(scope="session")
def same_weights():
    """`same_weights(model, other)`: the same keys, shapes, dtypes and bits."""

    def check(model: nn.Module, other: nn.Module) -> None:
        state, expected = model.state_dict(), other.state_dict()
        assert state.keys() == expected.keys()
        for key, tensor in expected.items():
            assert state[key].dtype == tensor.dtype, key
            assert torch.equal(state[key], tensor), key

    return check


@pytest.fixture(scope="session")
def tacotron2_output():
    """Teacher-forced output of a model without the prenet's noise, as one flat tensor."""

    def run(model: Tacotron2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        model.decoder.prenet.p_dropout = 0.0
        text = torch.randint(0, model.config.n_symbols, (2, 9), generator=generator)
        n_frames = 4 * model.config.n_frames_per_step
        mels = torch.randn(2, model.config.n_mel_channels, n_frames, generator=generator)
        lengths = torch.tensor([9, 5]), torch.tensor([n_frames, n_frames])
        with torch.no_grad():
            outputs = model.eval()((text, lengths[0], mels, 9, lengths[1]))
        return torch.cat([output.flatten() for output in outputs])

    return run


@pytest.fixture(scope="session")
def waveglow_output():
    """A model's audio for a fixed mel spectrogram and fixed noise."""

    def run(model: WaveGlow) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        mel = torch.randn(1, model.config.n_mel_channels, 7, generator=generator)
        n_groups = 7 * model.config.upsample_stride // model.config.n_group
        noise = torch.randn(1, model.config.n_group, n_groups, generator=generator)
        return model.eval().infer(mel, sigma=0.7, noise=noise)

    return run
