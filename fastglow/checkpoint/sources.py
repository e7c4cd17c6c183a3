"""Recognises a checkpoint: its format, model and naming scheme, and its data besides the tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError

from . import nemo
from .containers import Container, StoredTensor
from .layouts import NOT_IN_SHAPES, usable_hint
from .provenance import KEY, TrainedWith, read_coqui_config, read_description, read_training_checkpoint
from .records import Inert, show

FORMAT_VERSION = 1
METADATA_KEY = "fastglow"
_MAX_WRAPPERS = 4
_MAX_MODULES = 10_000
_MAX_NAME = 1000
# Mozilla TTS wrote comments into its config.json; group 1 keeps strings as they are.
_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*')
_PREFIXES = ("module.1.", "module.", "_orig_mod.")
# NeMo keeps the filterbank and the window of its mel spectrograms, and the inverses that an inference computed.
_NEMO_BUFFERS = re.compile(r"audio_to_melspec_precessor\.|waveglow\.convinv\.\d+\.inv_conv\.")

# Key pattern -> the unsupported feature that it indicates.
_UNSUPPORTED = (
    (r"coarse_decoder\.", "double decoder consistency (DDC)"),
    (
        r"decoder\.attention\.(prior|key_layer|static_filter|dynamic_filter)",
        "dynamic convolution attention (DCA)",
    ),
    (r"decoder\.attention\.N_a\.", "Graves attention"),
    (r"decoder\.attention\.ta\.", "forward attention with a transition agent"),
    (r"gst(_layer)?\.", "global style tokens (GST)"),
    (r"capacitron", "a Capacitron VAE"),
    (r"decoder\.prenet_f0\.", "Mellotron's pitch input"),
    (r"(speaker_embedding|speaker_projector|speakers?_embed)", "a multi-speaker model"),
    (r"ms_film_", "SpeechBrain's multi-speaker layers"),
    (r"(encoder|decoder|postnet)\.(.*\.)?cbhg\.", "Tacotron 1"),
    (
        r"(tts\.)?(enc\.(embed|convs|blstm)|dec\.(att|lstm|feat_out))\b",
        "ESPnet's Tacotron 2, another architecture",
    ),
    (r"flows\.\d+\.", "a flow model of another kind, such as Flowtron"),
)


class UnsupportedModel(FastglowError):
    """An intact file of a model other than NVIDIA's."""

    def __init__(self, reason: str):
        super().__init__(f"not supported: {reason}")
        self.reason = reason


@dataclass
class Source:
    """A recognised checkpoint whose tensors are not read yet.

    Attributes:
        format: whose layout it is, for display.
        model: "tacotron2" or "waveglow".
        names: whose tensor names: "nvidia", "torchaudio", "coqui", "nemo" or "waveglow".
        tensors: under the file's names, without wrappers' prefixes.
        hints: constructor keywords from the file that the shapes do not determine.
        foreign_config: coqui's configuration, from the config.json beside the file or from the file.
        trained_with: what the file says about the model's training.
        iteration, epoch: at which the file was written, if it has them.
        notes: what users should know.
        unsupported: why the model cannot be built, or None.
    """

    format: str
    model: str
    names: str
    tensors: dict[str, StoredTensor]
    hints: dict[str, Any] = field(default_factory=dict)
    foreign_config: dict[str, Any] | None = None
    trained_with: TrainedWith = TrainedWith()
    iteration: int | None = None
    epoch: int | None = None
    notes: list[str] = field(default_factory=list)
    unsupported: str | None = None


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and isinstance(value.state.get("_modules"), dict)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _entries(module: Inert, group: str) -> list[tuple[str, Any]]:
    entries = module.state.get(group)
    return [(k, v) for k, v in entries.items() if isinstance(k, str)] if isinstance(entries, dict) else []


def _child(module: Inert, name: str) -> Inert | None:
    child = module.state["_modules"].get(name)
    return child if isinstance(child, Inert) else None


def _flatten(module: Inert) -> dict[str, StoredTensor]:
    """The state_dict of a pickled module."""
    tensors: dict[str, StoredTensor] = {}
    pending = [("", module)]
    # Parts may be shared or contain one another, so a small file can describe an endless tree.
    for _ in range(_MAX_MODULES):
        if not pending:
            return tensors
        prefix, part = pending.pop()
        unsaved = part.state.get("_non_persistent_buffers_set")
        unsaved = unsaved if isinstance(unsaved, set) else set()
        for group in ("_parameters", "_buffers"):
            for name, value in _entries(part, group):
                if _is_tensor(value) and name not in unsaved:
                    tensors[prefix + name] = value
        children = [(f"{prefix}{name}.", child) for name, child in _entries(part, "_modules")]
        pending += [(name, child) for name, child in reversed(children) if _is_module(child)]
        if len(prefix) > _MAX_NAME or len(pending) > _MAX_MODULES:
            break
    raise FastglowError("a pickled model whose parts have no end: save its state_dict")


def _state(top: Any) -> tuple[Any, str | None]:
    """(dictionary of tensors or pickled module, key of `top` under which it was found)."""
    if _is_module(top):
        return top, None
    if isinstance(top, dict):
        for key in ("state_dict", "model"):
            value = top.get(key)
            if _is_module(value) or (isinstance(value, dict) and any(_is_tensor(v) for v in value.values())):
                return value, key
        if any(_is_tensor(value) for value in top.values()):
            return top, None
    content = f"a dictionary of {', '.join(show(k, 30) for k in list(top)[:5])}" if isinstance(top, dict) else None
    content = content or (top.class_name if isinstance(top, Inert) else type(top).__name__)
    raise FastglowError(f"holds no model weights (its content is {show(content)})")


def _without_prefixes(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Strips the prefixes of DistributedDataParallel, apex and torch.compile."""
    for _ in range(_MAX_WRAPPERS):
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _unsupported(tensors: Mapping[str, StoredTensor]) -> str | None:
    reasons = []
    for pattern, reason in _UNSUPPORTED:
        match = next((name for name in tensors if re.match(pattern, name)), None)
        if match is not None:
            reasons.append(f"{reason} ('{show(match)}')")
    return "; ".join(reasons) or None


def _model(tensors: Mapping[str, StoredTensor]) -> tuple[str, str]:
    """(model, origin of the tensor names): see `Source`."""
    if any(name.startswith("waveglow.wavenet.") for name in tensors):
        return "waveglow", "nemo"
    if "text_embedding.weight" in tensors and any(name.startswith("decoder.attention") for name in tensors):
        return "tacotron2", "nemo"
    if any(re.match(r"(convinv|WN)\.\d+\.", name) for name in tensors):
        return "waveglow", "waveglow"
    if any(re.search(r"\.convolution1d\.|^decoder\.(attention|stopnet)\.", name) for name in tensors):
        return "tacotron2", "coqui"
    parts = ("embedding.", "encoder.", "decoder.", "postnet.")
    named = sum(name.startswith(parts) for name in tensors)
    attention = any(name.startswith("decoder.attention") for name in tensors)
    if attention and 2 * named > len(tensors):
        wrapped = any(re.search(r"\.linear_layer\.|\.0\.conv\.", name) for name in tensors)
        return "tacotron2", "nvidia" if wrapped else "torchaudio"
    raise FastglowError(
        f"neither a Tacotron 2 nor a WaveGlow: {len(tensors)} tensors such as "
        f"{', '.join(repr(show(name, 60)) for name in list(tensors)[:3])}"
    )


def _integer(top: Any, key: str) -> int | None:
    value = top.get(key) if isinstance(top, dict) else None
    return value if type(value) is int else None


def _foreign_config(top: Any, path: Path) -> dict[str, Any] | None:
    """coqui's configuration: from config.json beside the file, else from the copy in recent files."""
    beside = path.parent / "config.json"
    if beside.is_file():
        try:
            config = json.loads(_COMMENT.sub(r"\1", beside.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as e:
            raise FastglowError(f"config.json beside it is not JSON ({show(str(e))})") from None
        if isinstance(config, dict):
            return config
    config = top.get("config") if isinstance(top, dict) else None
    return config if isinstance(config, dict) else None


def _module_hints(module: Inert, model: str) -> dict[str, Any]:
    """Constructor keywords among the attributes of a pickled module and its parts."""
    names = NOT_IN_SHAPES[model]
    parts = [_child(module, "decoder"), module, module.state.get("config")]  # fastglow's models have a config
    hints = {
        name: part.state[name] for part in parts if isinstance(part, Inert) for name in names if name in part.state
    }
    if model == "waveglow":
        upsample = _child(module, "upsample")
        stride = upsample.state.get("stride") if upsample is not None else None
        # A config's is in samples; the module's need not be.
        if "upsample_stride" not in hints and isinstance(stride, tuple) and len(stride) == 1:
            hints["upsample_stride"] = stride[0]
        if module.class_name.split(".")[-2:] == ["glow_old", "WaveGlow"]:
            hints["alternate_halves"] = True
    return hints


def _unwrap(module: Inert) -> Inert:
    """The model inside DataParallel and the like."""
    for _ in range(_MAX_WRAPPERS):
        children = module.state["_modules"]
        inner = children.get("module")
        if len(children) != 1 or not _is_module(inner):
            break
        module = inner
    return module


def _is_own_training(top: Any) -> bool:
    return isinstance(top, dict) and isinstance(top.get("model"), str) and "random_state" in top


def _waveglow_generation(tensors: Mapping[str, StoredTensor]) -> str:
    if any(".skip_layers." in name for name in tensors):
        return "A"
    return "C" if any(".cond_layer." in name for name in tensors) else "B"


def _format(top: Any, state: Any, key: str | None, model: str, names: str, generation: str) -> str:
    if _is_module(state):
        form = f"pickled {show(state.class_name)}"
        return f"NVIDIA/waveglow, generation {generation}, {form}" if model == "waveglow" else form
    if names == "coqui":
        return "coqui TTS"
    if names == "nemo":
        return "NVIDIA NeMo, Lightning checkpoint" if key else "NVIDIA NeMo"
    if names == "torchaudio":
        return "torchaudio, training checkpoint" if key else "torchaudio, flat state_dict"
    if key is not None and isinstance(top.get("config"), dict):
        return "fastglow training checkpoint" if _is_own_training(top) else "DeepLearningExamples"
    if model == "waveglow":
        return f"NVIDIA/waveglow names, generation {generation}, {'wrapped' if key else 'flat'} state_dict"
    if key is not None:
        return "NVIDIA/tacotron2"
    return "flat state_dict in NVIDIA's names (SpeechBrain's, or bare)"


def _own_description(container: Container) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote beside the tensors; None in other files."""
    if METADATA_KEY not in container.metadata:
        return None
    try:
        description = json.loads(container.metadata[METADATA_KEY])
    except (ValueError, RecursionError) as e:
        raise FastglowError(f"its metadata is not JSON ({show(str(e))})") from None
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise FastglowError(f"fastglow format {show(version)}, this fastglow reads {FORMAT_VERSION}: update fastglow")
    return description


def identify(container: Container, path: Path) -> Source:
    """Recognises the model in an open container.

    Raises:
        FastglowError: the container holds no weights, or another model's.
    """
    top = container.top
    state, key = _state(top)
    if _is_module(state):
        state = _unwrap(state)
        tensors = _flatten(state)
    else:
        tensors = {k: v for k, v in state.items() if isinstance(k, str) and _is_tensor(v)}
    tensors = _without_prefixes(tensors)
    unsupported = _unsupported(tensors)
    if unsupported and not any(name.startswith(("decoder.attention", "WN.")) for name in tensors):
        raise UnsupportedModel(unsupported)
    nemo_config = nemo.read_config(container.metadata)
    try:
        model, names = _model(tensors)
    except FastglowError:
        if other := nemo.other_model(nemo_config):
            raise UnsupportedModel(other) from None
        raise
    if names == "nemo":
        tensors = {name: tensor for name, tensor in tensors.items() if not _NEMO_BUFFERS.match(name)}
    source = Source(
        format="",
        model=model,
        names=names,
        tensors=tensors,
        iteration=_integer(top, "iteration") if key else None,
        epoch=_integer(top, "epoch") if key else None,
        unsupported=unsupported,
    )
    generation = _waveglow_generation(tensors) if model == "waveglow" else ""
    source.format = _format(top, state, key, model, names, generation)

    own = _own_description(container)
    config: Any = None
    if own is not None:
        source.format = f"fastglow format {FORMAT_VERSION}"
        config = own.get("config")
        description = read_description(own.get(KEY))
    elif names == "coqui":
        source.iteration = _integer(top, "step")
        source.foreign_config = _foreign_config(top, path)
        description = read_coqui_config(source.foreign_config or {})
    elif names == "nemo":
        config = nemo.constructor_keywords(nemo_config, model)
        description = nemo.describe(nemo_config, model)
    elif _is_module(state):
        config = _module_hints(state, model)
        description = read_description(state.state.get(KEY))
    else:
        config = top.get("config") if key else None
        description = (
            read_training_checkpoint(top) if _is_own_training(top) else read_description(top.get(KEY) if key else None)
        )
    source.trained_with = description.trained_with.with_lexicon_from(path.absolute().parent)
    source.notes += description.notes
    config = config if isinstance(config, dict) else {}
    for name in NOT_IN_SHAPES[model]:
        if name not in config:
            continue
        if usable_hint(model, name, config[name]):
            source.hints[name] = config[name]
        else:
            source.notes.append(f"{name}={show(config[name])} in the file is unusable: the default is used")
    return source
