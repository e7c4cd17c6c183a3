"""Loading, saving and converting checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.models import Tacotron2, WaveGlow

from .containers import Container, open_checkpoint
from .layouts import CONFIGS, NOT_IN_SHAPES, TITLES, infer_config, usable_hint
from .provenance import KEY, TrainedWith, trained_with
from .renaming import canonical_state
from .sources import FORMAT_VERSION, METADATA_KEY, Source, UnsupportedModel, identify
from .unpickling import show

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
MODELS: dict[str, type[nn.Module]] = {"tacotron2": Tacotron2, "waveglow": WaveGlow}
# Keywords of ours that the constructors of DeepLearningExamples do not take.
_NOT_NVIDIA = ("p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout")
# Suffixes under which people expect what torch.load reads.
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".th", ".tar", ".pyt", ".model")
_NOT_NVIDIA_WAVEGLOW = {"upsample_kernel_size": 1024, "upsample_stride": 256, "alternate_halves": False}


def read_state(
    container: Container, source: Source, *, data: bool = True, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The model of an open container under canonical names.

    Args:
        source: what `identify` made of the container; gets the hints and notes that the names give.
        data: False reads shapes only (tensors on the meta device).
        dtype: floating-point tensors are converted to it; None keeps the file's.

    Raises:
        FastglowError: not a supported model, or a tensor in the file cannot be used.
    """
    if source.unsupported:
        raise UnsupportedModel(source.unsupported)
    # coqui's stop layer is folded with other weights, whose values are needed for that
    tensors = container.read_all(source.tensors, data=data or source.names == "coqui")
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensor.to(torch.int64)
        elif not tensor.is_floating_point():
            raise FastglowError(f"key {show(name)!r} has dtype {tensor.dtype}: expected floating-point weights")
        elif dtype is not None:
            tensors[name] = tensor.to(dtype)
    return canonical_state(source, tensors)


class _SkipInitialisation(TorchFunctionMode):
    """Leaves large parameters as they are where torch would draw numbers that are overwritten at once."""

    _DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, torch.Tensor.uniform_)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.numel() > 2**12:
                return tensor
        return func(*args, **kwargs)


def _build(model: str, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
    with _SkipInitialisation(), torch.random.fork_rng(devices=[]):
        network = MODELS[model](**asdict(config))
    network.load_state_dict(state, assign=True)
    return network.eval()


def _checked_overrides(model: str, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if name not in NOT_IN_SHAPES[model]:
            raise FastglowError(
                f"{show(name)} cannot be chosen for a {TITLES[model]} checkpoint, its tensors decide it "
                f"(choices: {', '.join(NOT_IN_SHAPES[model])})"
            )
        if not usable_hint(model, name, value):
            raise FastglowError(f"{name}={show(value)} is not a value of the kind that {TITLES[model]} takes")


def load_checkpoint(
    path: PathLike,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = torch.float32,
    expect: str | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build the model that a checkpoint file holds.

    Reads NVIDIA/tacotron2, DeepLearningExamples (NGC, torch.hub), torchaudio, SpeechBrain, coqui TTS (plain
    location-sensitive attention, one frame a step), NVIDIA/waveglow of every generation including whole
    pickled modules, and `save_checkpoint`'s safetensors. No code in the file is run: torch's own loader is
    not used, see `fastglow.checkpoint.unpickling`. Every dimension follows from the tensors' shapes.

    Args:
        path: the file.
        device: where the model goes.
        dtype: of the weights; float32 whatever the file has, since CPUs are slow in half precision. None
            keeps the file's, tensor by tensor.
        expect: "tacotron2" or "waveglow" to refuse the other one.
        overrides: constructor keywords that are in no tensor, instead of the file's or the default:
            for Tacotron 2 mask_padding, max_decoder_steps, gate_threshold, decoder_no_early_stopping and
            the p_* dropouts; for WaveGlow upsample_stride and alternate_halves, and, where it has no
            early outputs, n_early_every and n_early_size.

    Returns:
        `fastglow.Tacotron2` or `fastglow.WaveGlow` in eval mode. coqui's `p_prenet_dropout` is 0 unless
        its configuration keeps the dropout at inference. What the file tells besides of its training (audio
        parameters, text cleaners, lexicon) is the model's attribute `trained_with`, which the savers keep.

    Raises:
        FastglowError: one line that begins with the path: the file is missing, damaged, asks for code to be
            run (the name it asked for), holds another model, lacks a key or has one of the wrong shape
            (key, shape expected, shape found). Also where the device is not there or full.
    """
    path = Path(path)
    if expect is not None and expect not in CONFIGS:
        raise FastglowError(f"expect={show(expect)}: expected one of {', '.join(CONFIGS)}")
    if dtype is not None and not dtype.is_floating_point:
        raise FastglowError(f"dtype {dtype} is not a floating-point type")
    with open_checkpoint(path) as container:
        source = identify(container, path)
        if expect not in (None, source.model):
            raise FastglowError(f"this is a {TITLES[source.model]} checkpoint, a {TITLES[expect]} is needed")
        _checked_overrides(source.model, overrides)
        state = read_state(container, source, dtype=dtype)
        config = infer_config(source.model, state, {**source.hints, **overrides})
        for name, value in overrides.items():
            if getattr(config, name) != value:  # WaveGlow's early outputs, where there are some
                raise FastglowError(f"{name}={show(value)} does not fit: its tensors say {getattr(config, name)}")
    for note in source.notes:
        logger.warning("%s: %s", path, note)
    model = _build(source.model, config, state)
    setattr(model, KEY, source.trained_with)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # the latter where torch was built without the device
        raise FastglowError(f"device {device}: {show(str(e).partition(chr(10))[0])}") from None


def read_trained_with(path: PathLike) -> TrainedWith:
    """What a checkpoint file tells of its model's training, without reading its weights.

    Raises:
        FastglowError: as `load_checkpoint`.
    """
    path = Path(path)
    with open_checkpoint(path) as container:
        return identify(container, path).trained_with


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replacing`, with the ways in which writers fail as a FastglowError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else show(" ".join(str(e).split()))
        raise FastglowError(f"{path}: cannot be written: {reason}") from None


def _model_name(model: nn.Module) -> str:
    for name, cls in MODELS.items():
        if isinstance(model, cls):
            return name
    raise FastglowError(f"a {type(model).__name__} cannot be saved: expected fastglow.Tacotron2 or fastglow.WaveGlow")


def _plain_state(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """state_dict as contiguous CPU tensors with memory of their own."""
    state = {}
    for key, tensor in model.state_dict().items():
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[key] = tensor.detach().to("cpu", wanted).clone(memory_format=torch.contiguous_format)
    return state


def layout_of(path: PathLike, to: str | None = None) -> str:
    """The layout that a file is to be written in: "fastglow" (safetensors) or "nvidia" (torch.save).

    Args:
        path: its suffix decides where `to` is None: one of `TORCH_SUFFIXES` is for torch.load; all else is safetensors.
        to: the layout that was asked for.

    Raises:
        FastglowError: no such layout, or a suffix that promises the other one.
    """
    suffix = Path(path).suffix.lower()
    if to not in (None, "fastglow", "nvidia"):
        raise FastglowError(f"to={show(to)}: expected one of fastglow, nvidia")
    if to == "fastglow" and suffix in TORCH_SUFFIXES:
        raise FastglowError(
            f"{path}: fastglow's layout is safetensors, which torch.load does not read: name it "
            f"{Path(path).with_suffix('.safetensors').name}, or write NVIDIA's layout "
            "(--to nvidia, save_nvidia_checkpoint)"
        )
    if to == "nvidia" and suffix == ".safetensors":
        raise FastglowError(
            f"{path}: NVIDIA's layout is a file of torch.save, not safetensors: name it "
            f"{Path(path).with_suffix('.pt').name}, or write fastglow's layout "
            "(--to fastglow, save_checkpoint)"
        )
    return to or ("nvidia" if suffix in TORCH_SUFFIXES else "fastglow")


def save_checkpoint(model: nn.Module, path: PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write a model as safetensors: NVIDIA's key names, and in the metadata what the tensors do not tell.

    The metadata's one entry, "fastglow", is JSON: {"format": 1, "model": "tacotron2" or "waveglow",
    "config": the constructor's keywords, "trained_with": what is known of the model's training}.

    Args:
        model: `fastglow.Tacotron2` or `fastglow.WaveGlow`, on any device.
        path: replaced in one step once everything is written; not with a suffix that is for torch.load.
        dtype: floating-point tensors are stored as this; None keeps each as it is.

    Raises:
        FastglowError: another kind of model, a suffix such as .pt, or the file cannot be written.
    """
    layout_of(path, "fastglow")
    description = {"format": FORMAT_VERSION, "model": _model_name(model), "config": asdict(model.config)}
    if known := trained_with(model).as_dict():
        description[KEY] = known
    # one entry: safetensors writes several in random order, and the same model should give the same bytes
    metadata = {METADATA_KEY: json.dumps(description)}
    state = _plain_state(model, dtype)
    with _writing(Path(path)) as temporary:
        # not save_file: it puts a file of its own in the place of whatever is there, devices and pipes included
        temporary.write_bytes(save(state, metadata))


def _nvidia_config(name: str, model: nn.Module) -> dict[str, Any]:
    """The configuration with the keywords that the constructors of DeepLearningExamples take."""
    config = asdict(model.config)
    if name == "waveglow":
        for keyword, fixed in _NOT_NVIDIA_WAVEGLOW.items():
            if (value := config.pop(keyword)) != fixed:
                raise FastglowError(f"{keyword}={value} has no place in NVIDIA's layout, whose WaveGlow has {fixed}")
        return config
    return {keyword: value for keyword, value in config.items() if keyword not in _NOT_NVIDIA}


def save_nvidia_checkpoint(model: nn.Module, path: PathLike) -> None:
    """Write a model as DeepLearningExamples does: torch.save of {"config", "state_dict"}, plain tensors.

    torch.load reads it with weights_only=True, and so do DeepLearningExamples' inference.py and torch.hub's
    code. What is known of the model's training is a third entry, "trained_with". `infer`'s prenet dropout, which
    the reference fixes at 0.5, is not recorded; another one is told in the log.

    Raises:
        FastglowError: another kind of model, a WaveGlow that NVIDIA's class cannot express (alternating
            halves, another upsampler), the suffix .safetensors, or the file cannot be written.
    """
    layout_of(path, "nvidia")
    name = _model_name(model)
    content = {"config": _nvidia_config(name, model), "state_dict": _plain_state(model)}
    if known := trained_with(model).as_dict():
        content[KEY] = known
    if getattr(model.config, "p_prenet_dropout", 0.5) != 0.5:
        logger.warning(
            "%s: NVIDIA's layout does not record p_prenet_dropout %g: it will be read as 0.5",
            path,
            model.config.p_prenet_dropout,
        )
    with _writing(Path(path)) as temporary:
        torch.save(content, temporary)


def convert_checkpoint(
    src: PathLike, dst: PathLike, to: str | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Read a checkpoint of any supported format and write it as ours or NVIDIA's.

    Where the source's weight normalisation was removed, g is each row's norm, rounded to the file's dtype.

    Args:
        to: "fastglow" (safetensors) or "nvidia" (DeepLearningExamples' layout); None: NVIDIA's where the suffix of
            `dst` is one for torch.load (.pt, .pth, .ckpt, .bin, ...), else fastglow's.
        dtype: of the weights that are written; None keeps the file's.

    Raises:
        FastglowError: a suffix that does not go with `to`; else as `load_checkpoint` and the savers; `dst` is left
            as it was.
    """
    writers = {"fastglow": save_checkpoint, "nvidia": save_nvidia_checkpoint}
    write = writers[layout_of(dst, to)]
    write(load_checkpoint(src, dtype=dtype), dst)
