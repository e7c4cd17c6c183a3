"""Loading, saving and converting checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.models import Tacotron2, WaveGlow

from .containers import Container, open_checkpoint
from .layouts import CONFIGS, NOT_IN_SHAPES, TITLES, Config, infer_config, usable_hint
from .provenance import KEY, TrainedWith, trained_with
from .records import show
from .renaming import CanonicalState, canonical_state
from .sources import FORMAT_VERSION, METADATA_KEY, Source, UnsupportedModel, identify

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
Model = Tacotron2 | WaveGlow
MODELS: dict[str, type[Model]] = {"tacotron2": Tacotron2, "waveglow": WaveGlow}
# fastglow's keywords that DeepLearningExamples' constructors do not take; for WaveGlow with the values it implies.
_NOT_NVIDIA = ("p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout")
_NOT_NVIDIA_WAVEGLOW = {
    "upsample_kernel_size": 1024,
    "upsample_stride": 256,
    "alternate_halves": False,
    "upsample_to_groups": False,
}
# Suffixes of files for torch.load.
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".th", ".tar", ".pyt", ".model")


def read_state(
    container: Container, source: Source, *, data: bool = True, dtype: torch.dtype | None = None
) -> CanonicalState:
    """The model of an open container under canonical names.

    Args:
        source: from `identify`.
        data: False reads shapes only (tensors on the meta device).
        dtype: of the floating-point tensors; None keeps the file's.

    Raises:
        FastglowError: not a supported model, or a tensor in the file cannot be used.
    """
    if source.unsupported:
        raise UnsupportedModel(source.unsupported)
    # Folding coqui's stop layer needs the values of its weights.
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
    """Skips the random initialisation of large parameters, which the checkpoint overwrites at once."""

    _DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, torch.Tensor.uniform_)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.numel() > 2**12:
                return tensor
        return func(*args, **kwargs)


def _build(model: str, config: Config, state: Mapping[str, Tensor]) -> Model:
    with _SkipInitialisation(), torch.random.fork_rng(devices=[]):
        network = MODELS[model](**asdict(config))
    network.load_state_dict(state, assign=True)
    return network.eval()


def _checked_overrides(model: str, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if name not in NOT_IN_SHAPES[model]:
            raise FastglowError(
                f"{show(name)} follows from the tensors of a {TITLES[model]} checkpoint and cannot be overridden "
                f"(choices: {', '.join(NOT_IN_SHAPES[model])})"
            )
        if not usable_hint(model, name, value):
            raise FastglowError(f"{name}={show(value)} is not a valid value for {TITLES[model]}")


@overload
def load_checkpoint(
    path: PathLike,
    device: str | torch.device = ...,
    *,
    dtype: torch.dtype | None = ...,
    expect: Literal["tacotron2"],
    **overrides: Any,
) -> Tacotron2: ...
@overload
def load_checkpoint(
    path: PathLike,
    device: str | torch.device = ...,
    *,
    dtype: torch.dtype | None = ...,
    expect: Literal["waveglow"],
    **overrides: Any,
) -> WaveGlow: ...
@overload
def load_checkpoint(
    path: PathLike,
    device: str | torch.device = ...,
    *,
    dtype: torch.dtype | None = ...,
    expect: str | None = ...,
    **overrides: Any,
) -> Model: ...
@torch.inference_mode(False)  # else no change of its parameters could be noticed, and inference caches nothing
def load_checkpoint(
    path: PathLike,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = torch.float32,
    expect: str | None = None,
    **overrides: Any,
) -> Model:
    """Builds the model in a checkpoint file.

    Reads NVIDIA/tacotron2, DeepLearningExamples (NGC, torch.hub), torchaudio, SpeechBrain, coqui TTS (plain
    location-sensitive attention, one frame per step), NeMo (`.nemo`), NVIDIA/waveglow of every generation including
    whole pickled modules, and `save_checkpoint`'s safetensors. Runs no code from the file and does not use torch's own
    loader, see `fastglow.checkpoint.unpickling`. Every dimension follows from the tensors' shapes.

    Args:
        path: the file.
        device: where the model goes.
        dtype: of the weights; float32 by default, since CPUs are slow with 16-bit floats. None keeps each tensor's.
        expect: "tacotron2" or "waveglow" to refuse the other one.
        overrides: constructor keywords that do not follow from the tensors; they replace the file's values and the
            defaults. For Tacotron 2 mask_padding, max_decoder_steps, gate_threshold, decoder_no_early_stopping and
            the p_* dropouts; for WaveGlow upsample_stride and alternate_halves, and, if it has no early outputs,
            n_early_every and n_early_size.

    Returns:
        `fastglow.Tacotron2` or `fastglow.WaveGlow` in eval mode. coqui's `p_prenet_dropout` is 0 unless its
        configuration keeps the dropout at inference. The attribute `trained_with` holds what the file says about
        the training (audio parameters, text cleaners, lexicon); the savers keep it.

    Raises:
        FastglowError: one line that begins with the path: the file is missing, damaged, asks for code to run (names
            the code), holds another model, lacks a key or has one of the wrong shape (names the key and both
            shapes). Also if the device is missing or full.
    """
    path = Path(path)
    if expect is not None and expect not in CONFIGS:
        raise FastglowError(f"expect={show(expect)} must be one of {', '.join(CONFIGS)}")
    if dtype is not None and not dtype.is_floating_point:
        raise FastglowError(f"dtype={dtype} must be a floating-point type")
    with open_checkpoint(path) as container:
        source = identify(container, path)
        if expect is not None and expect != source.model:
            raise FastglowError(f"this is a {TITLES[source.model]} checkpoint, must be a {TITLES[expect]} checkpoint")
        _checked_overrides(source.model, overrides)
        state, hints, notes = read_state(container, source, dtype=dtype)
        config = infer_config(source.model, state, {**hints, **overrides})
        for name, value in overrides.items():
            if getattr(config, name) != value:  # WaveGlow's early outputs, if it has any
                raise FastglowError(f"{name}={show(value)} must be {getattr(config, name)}, as its tensors have it")
    for note in notes:
        logger.warning("%s: %s", path, note)
    model = _build(source.model, config, state)
    setattr(model, KEY, source.trained_with)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # AssertionError: torch was built without the device
        raise FastglowError(f"device {device}: {show(str(e).partition(chr(10))[0])}") from None


def read_trained_with(path: PathLike) -> TrainedWith:
    """What a checkpoint file says about its model's training, without reading the weights.

    Raises:
        FastglowError: as `load_checkpoint`.
    """
    path = Path(path)
    with open_checkpoint(path) as container:
        return identify(container, path).trained_with


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replacing`, with the writers' errors as a FastglowError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else show(" ".join(str(e).split()))
        raise FastglowError(f"{path}: cannot be written: {reason}") from None


def _checked_model(model: nn.Module) -> Model:
    if isinstance(model, Tacotron2 | WaveGlow):
        return model
    raise FastglowError(f"a {type(model).__name__} cannot be saved: expected fastglow.Tacotron2 or fastglow.WaveGlow")


def _plain_state(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state_dict as contiguous CPU tensors that share no memory."""
    state = {}
    for key, tensor in model.state_dict().items():
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[key] = tensor.detach().to("cpu", wanted).clone(memory_format=torch.contiguous_format)
    return state


def layout_of(path: PathLike, to: str | None = None) -> str:
    """The layout to write a file in: "fastglow" (safetensors) or "nvidia" (torch.save).

    Args:
        path: its suffix decides if `to` is None: "nvidia" for `TORCH_SUFFIXES`, else "fastglow".
        to: the requested layout.

    Raises:
        FastglowError: unknown layout, or a suffix that stands for the other layout.
    """
    suffix = Path(path).suffix.lower()
    if to not in (None, "fastglow", "nvidia"):
        raise FastglowError(f"to={show(to)} must be one of fastglow, nvidia")
    if to == "fastglow" and suffix in TORCH_SUFFIXES:
        raise FastglowError(
            f"{path}: fastglow's layout is safetensors, which torch.load cannot read: name it "
            f"{Path(path).with_suffix('.safetensors').name}, or write NVIDIA's layout "
            "(--to nvidia, save_nvidia_checkpoint)"
        )
    if to == "nvidia" and suffix == ".safetensors":
        raise FastglowError(
            f"{path}: NVIDIA's layout is a torch.save file, not safetensors: name it "
            f"{Path(path).with_suffix('.pt').name}, or write fastglow's layout "
            "(--to fastglow, save_checkpoint)"
        )
    return to or ("nvidia" if suffix in TORCH_SUFFIXES else "fastglow")


def save_checkpoint(model: nn.Module, path: PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Writes a model as safetensors: NVIDIA's key names, and in the metadata what the tensors do not say.

    The metadata's only entry, "fastglow", is JSON: {"format": 1, "model": "tacotron2" or "waveglow",
    "config": the constructor's keywords, "trained_with": what is known about the model's training}.

    Args:
        model: `fastglow.Tacotron2` or `fastglow.WaveGlow`, on any device.
        path: replaced in one step once everything is written; a suffix for torch.load is refused.
        dtype: of the stored floating-point tensors; None keeps each tensor's.

    Raises:
        FastglowError: another kind of model, a suffix such as .pt, or the file cannot be written.
    """
    layout_of(path, "fastglow")
    model = _checked_model(model)
    name = "tacotron2" if isinstance(model, Tacotron2) else "waveglow"
    description = {"format": FORMAT_VERSION, "model": name, "config": asdict(model.config)}
    if known := trained_with(model).as_dict():
        description[KEY] = known
    # One entry only: safetensors writes entries in random order, and the same model should give the same bytes.
    metadata = {METADATA_KEY: json.dumps(description)}
    state = _plain_state(model, dtype)
    with _writing(Path(path)) as temporary:
        # Not save_file, which replaces whatever is there, devices and pipes included.
        temporary.write_bytes(save(state, metadata))


def _nvidia_config(model: Model) -> dict[str, Any]:
    """The configuration in the keywords that DeepLearningExamples' constructors take."""
    config = asdict(model.config)
    if isinstance(model, WaveGlow):
        for keyword, fixed in _NOT_NVIDIA_WAVEGLOW.items():
            if (value := config.pop(keyword)) != fixed:
                raise FastglowError(f"{keyword}={value} must be {fixed} in NVIDIA's layout: write fastglow's layout")
        return config
    return {keyword: value for keyword, value in config.items() if keyword not in _NOT_NVIDIA}


def save_nvidia_checkpoint(model: nn.Module, path: PathLike) -> None:
    """Writes a model as DeepLearningExamples does: torch.save of {"config", "state_dict"}, plain tensors.

    torch.load reads it with weights_only=True, and so do DeepLearningExamples' inference.py and torch.hub's
    code. A third entry, "trained_with", holds what is known about the model's training. `infer`'s prenet dropout,
    which NVIDIA fixes at 0.5, is not stored; the log says so if it differs.

    Raises:
        FastglowError: another kind of model, a WaveGlow that NVIDIA's class cannot express (alternating
            halves, another upsampler), the suffix .safetensors, or the file cannot be written.
    """
    layout_of(path, "nvidia")
    model = _checked_model(model)
    content = {"config": _nvidia_config(model), "state_dict": _plain_state(model)}
    if known := trained_with(model).as_dict():
        content[KEY] = known
    if isinstance(model, Tacotron2) and model.config.p_prenet_dropout != 0.5:
        logger.warning(
            "%s: NVIDIA's layout does not store p_prenet_dropout=%g: it will be read as 0.5",
            path,
            model.config.p_prenet_dropout,
        )
    with _writing(Path(path)) as temporary:
        torch.save(content, temporary)


def convert_checkpoint(
    src: PathLike, dst: PathLike, to: str | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Reads a checkpoint of any supported format and writes it in fastglow's or NVIDIA's layout.

    If the source's weight normalisation was removed, g is each row's norm, rounded to the file's dtype.

    Args:
        to: "fastglow" (safetensors) or "nvidia" (DeepLearningExamples' layout); None: NVIDIA's if `dst` has a suffix
            for torch.load (.pt, .pth, .ckpt, .bin, ...), else fastglow's.
        dtype: of the written weights; None keeps the file's.

    Raises:
        FastglowError: the suffix of `dst` contradicts `to`; else as `load_checkpoint` and the savers. `dst` is left
            unchanged.
    """
    writers = {"fastglow": save_checkpoint, "nvidia": save_nvidia_checkpoint}
    write = writers[layout_of(dst, to)]
    write(load_checkpoint(src, dtype=dtype), dst)
