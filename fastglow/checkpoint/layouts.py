"""The canonical (NVIDIA) names and shapes of every tensor of both models.

A layout maps a key to one expression per dimension: sums of terms such as "4*attention_rnn_dim", in the constructor's
keywords and a few further names: `encoder_half` is half of encoder_embedding_dim, `step_width` is
n_mel_channels * n_frames_per_step, `half.K` is half the channels of WaveGlow's flow K, `conditioning` is
n_mel_channels * frames_per_group. The same table infers the dimensions from a file and checks the file against them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config, WaveGlowConfig

from .records import show

Config = Tacotron2Config | WaveGlowConfig
CONFIGS: dict[str, type[Config]] = {"tacotron2": Tacotron2Config, "waveglow": WaveGlowConfig}
TITLES = {"tacotron2": "Tacotron 2", "waveglow": "WaveGlow"}

Shape = tuple[int, ...]
Layout = Iterator[tuple[str, tuple[str, ...]]]

# Constructor keywords that do not follow from the tensors' shapes. WaveGlow's last two do follow if the model has
# early outputs.
NOT_IN_SHAPES = {
    "tacotron2": (
        *("mask_padding", "max_decoder_steps", "gate_threshold", "decoder_no_early_stopping"),
        *("p_attention_dropout", "p_decoder_dropout", "p_prenet_dropout", "p_encoder_dropout"),
        "p_postnet_dropout",
    ),
    "waveglow": ("upsample_stride", "alternate_halves", "n_early_every", "n_early_size"),
}


def is_parameter(key: str) -> bool:
    """Whether a canonical key is a trained parameter, rather than a statistic."""
    return not key.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def _batch_norm(prefix: str, channels: str) -> Layout:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{name}", (channels,)
    yield f"{prefix}.num_batches_tracked", ()


def _lstm(prefix: str, suffix: str, n_in: str, n_hidden: str) -> Layout:
    gates = f"4*{n_hidden}"
    yield f"{prefix}.weight_ih{suffix}", (gates, n_in)
    yield f"{prefix}.weight_hh{suffix}", (gates, n_hidden)
    yield f"{prefix}.bias_ih{suffix}", (gates,)
    yield f"{prefix}.bias_hh{suffix}", (gates,)


def tacotron2_layout(encoder_n_convolutions: int, postnet_n_convolutions: int) -> Layout:
    """Keys and shapes of Tacotron 2."""
    encoder, memory = "2*encoder_half", "+2*encoder_half"
    yield "embedding.weight", ("n_symbols", encoder)
    for i in range(encoder_n_convolutions):
        conv = f"encoder.convolutions.{i}"
        yield f"{conv}.0.conv.weight", (encoder, encoder, "encoder_kernel_size")
        yield f"{conv}.0.conv.bias", (encoder,)
        yield from _batch_norm(f"{conv}.1", encoder)
    yield from _lstm("encoder.lstm", "_l0", encoder, "encoder_half")
    yield from _lstm("encoder.lstm", "_l0_reverse", encoder, "encoder_half")

    yield "decoder.prenet.layers.0.linear_layer.weight", ("prenet_dim", "step_width")
    yield "decoder.prenet.layers.1.linear_layer.weight", ("prenet_dim", "prenet_dim")
    yield from _lstm("decoder.attention_rnn", "", "prenet_dim" + memory, "attention_rnn_dim")
    attention = "decoder.attention_layer"
    yield f"{attention}.query_layer.linear_layer.weight", ("attention_dim", "attention_rnn_dim")
    yield f"{attention}.memory_layer.linear_layer.weight", ("attention_dim", encoder)
    yield f"{attention}.v.linear_layer.weight", ("1", "attention_dim")
    yield (
        f"{attention}.location_layer.location_conv.conv.weight",
        ("attention_location_n_filters", "2", "attention_location_kernel_size"),
    )
    yield (
        f"{attention}.location_layer.location_dense.linear_layer.weight",
        ("attention_dim", "attention_location_n_filters"),
    )
    yield from _lstm("decoder.decoder_rnn", "", "attention_rnn_dim" + memory, "decoder_rnn_dim")
    yield "decoder.linear_projection.linear_layer.weight", ("step_width", "decoder_rnn_dim" + memory)
    yield "decoder.linear_projection.linear_layer.bias", ("step_width",)
    yield "decoder.gate_layer.linear_layer.weight", ("1", "decoder_rnn_dim" + memory)
    yield "decoder.gate_layer.linear_layer.bias", ("1",)

    last = postnet_n_convolutions - 1
    for i in range(postnet_n_convolutions):
        n_in = "n_mel_channels" if i == 0 else "postnet_embedding_dim"
        n_out = "n_mel_channels" if i == last else "postnet_embedding_dim"
        conv = f"postnet.convolutions.{i}"
        yield f"{conv}.0.conv.weight", (n_out, n_in, "postnet_kernel_size")
        yield f"{conv}.0.conv.bias", (n_out,)
        yield from _batch_norm(f"{conv}.1", n_out)


def _weight_norm(prefix: str, n_out: str, n_in: str, kernel_size: str = "1") -> Layout:
    yield f"{prefix}.bias", (n_out,)
    yield f"{prefix}.weight_g", (n_out, "1", "1")
    yield f"{prefix}.weight_v", (n_out, n_in, kernel_size)


def waveglow_layout(n_flows: int, n_layers: int) -> Layout:
    """Keys and shapes of WaveGlow with one conditioning layer per layer (generation B)."""
    yield "upsample.weight", ("n_mel_channels", "n_mel_channels", "upsample_kernel_size")
    yield "upsample.bias", ("n_mel_channels",)
    for k in range(n_flows):
        wn, half = f"WN.{k}", f"half.{k}"
        yield f"convinv.{k}.conv.weight", (f"2*{half}", f"2*{half}", "1")
        yield from _weight_norm(f"{wn}.start", "n_channels", half)
        for i in range(n_layers):
            skip = "n_channels" if i == n_layers - 1 else "2*n_channels"
            yield from _weight_norm(f"{wn}.in_layers.{i}", "2*n_channels", "n_channels", "kernel_size")
            yield from _weight_norm(f"{wn}.cond_layers.{i}", "2*n_channels", "conditioning")
            yield from _weight_norm(f"{wn}.res_skip_layers.{i}", skip, "n_channels")
        yield f"{wn}.end.weight", (f"2*{half}", "n_channels", "1")
        yield f"{wn}.end.bias", (f"2*{half}",)


def _terms(expression: str) -> list[tuple[int, str]]:
    """ "4*a+b" -> [(4, "a"), (1, "b")]; a bare number is (number, "")."""
    terms = []
    for term in expression.split("+"):
        factor, _, name = term.rpartition("*")
        terms.append((int(term), "") if term.isdigit() else (int(factor or 1), name))
    return terms


def _evaluate(expression: str, dims: Mapping[str, int]) -> int | None:
    total = 0
    for factor, name in _terms(expression):
        if name and name not in dims:
            return None
        total += factor * (dims[name] if name else 1)
    return total


def _infer_dims(layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Each name's value by majority vote, so that the error about one odd tensor names that tensor."""
    votes: dict[str, Counter[int]] = {}
    # A few stray keys can make a layout of millions of keys; only its beginning can be in the file.
    for key, expressions in islice(layout, 2 * len(shapes) + 100):
        shape = shapes.get(key, ())
        if len(shape) != len(expressions):
            continue
        for size, expression in zip(shape, expressions, strict=True):
            (factor, name), *more = _terms(expression)
            if name and not more and size > 0 and size % factor == 0:
                votes.setdefault(name, Counter())[size // factor] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in votes.items()}


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"


def _check_shapes(layout: Layout, shapes: Mapping[str, Shape], dims: Mapping[str, int], title: str) -> None:
    known = set()
    for key, expressions in layout:
        expected: tuple[int | None, ...] = tuple(_evaluate(expression, dims) for expression in expressions)
        if key not in shapes:
            raise FastglowError(f"key '{key}' is missing: {title} expects shape {_sizes(expected)}, found none")
        if shapes[key] != expected:
            raise FastglowError(
                f"key '{key}' has the wrong shape: expected {_sizes(expected)}, found {_sizes(shapes[key])}"
            )
        known.add(key)
    extra = [key for key in shapes if key not in known]
    if extra:
        raise FastglowError(
            f"key {show(extra[0])!r} is not part of {title}: expected no such tensor, "
            f"found shape {_sizes(shapes[extra[0]])} ({len(extra)} such keys)"
        )


def _count(pattern: str, shapes: Mapping[str, Shape], least: int = 1) -> int:
    """One more than the largest number that `pattern` finds, bounded by the number of keys."""
    found = [int(match[1]) for key in shapes if (match := re.match(pattern, key)) and len(match[1]) < 7]
    return max(min(max(found, default=0) + 1, len(shapes)), least)


def _odd_kernel(name: str, dims: Mapping[str, int]) -> None:
    if dims[name] % 2 == 0:
        raise FastglowError(f"{name}={dims[name]} must be odd: even kernels change the length")


def _tacotron2_dims(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    counts = {
        "encoder_n_convolutions": _count(r"encoder\.convolutions\.(\d+)\.", shapes),
        "postnet_n_convolutions": _count(r"postnet\.convolutions\.(\d+)\.", shapes, least=2),
    }
    dims = _infer_dims(tacotron2_layout(**counts), shapes)
    _check_shapes(tacotron2_layout(**counts), shapes, dims, "Tacotron 2")
    for name in ("encoder_kernel_size", "attention_location_kernel_size", "postnet_kernel_size"):
        _odd_kernel(name, dims)
    step_width, n_mel_channels = dims.pop("step_width"), dims["n_mel_channels"]
    if step_width % n_mel_channels:
        raise FastglowError(
            "key 'decoder.linear_projection.linear_layer.weight' has the wrong shape: expected a first size that is "
            f"a multiple of the postnet's {n_mel_channels} mel channels, found {step_width}"
        )
    width = 2 * dims.pop("encoder_half")
    return {
        **dims,
        **counts,
        "n_frames_per_step": step_width // n_mel_channels,
        "encoder_embedding_dim": width,
        "symbols_embedding_dim": width,
    }


def _waveglow_dims(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> dict[str, Any]:
    n_flows = _count(r"(?:WN|convinv)\.(\d+)\.", shapes)
    n_layers = _count(r"WN\.\d+\.(?:in|res_skip|cond)_layers\.(\d+)\.", shapes)
    dims = _infer_dims(waveglow_layout(n_flows, n_layers), shapes)
    halves = [dims.get(f"half.{k}") for k in range(n_flows)]
    first = halves[0]
    # Without early outputs every interval past the last flow gives the same model.
    every, size = max(n_flows, hints.get("n_early_every", 4)), hints.get("n_early_size", 2)
    for k, half in enumerate(halves):
        if first and half and half < first:
            every, size = k, 2 * (first - half)
            break
    if first:
        dims.update({f"half.{k}": first - (k // every) * size // 2 for k in range(n_flows)})
    to_groups = first is not None and dims.get("conditioning") == dims.get("n_mel_channels")
    if first and "n_mel_channels" in dims:
        dims["conditioning"] = dims["n_mel_channels"] * (1 if to_groups else 2 * first)
    _check_shapes(waveglow_layout(n_flows, n_layers), shapes, dims, "WaveGlow")
    _odd_kernel("kernel_size", dims)
    assert first is not None  # or else the check of shapes has failed
    kernel_size = dims["upsample_kernel_size"] * (2 * first if to_groups else 1)
    return {
        "n_mel_channels": dims["n_mel_channels"],
        "n_flows": n_flows,
        "n_group": 2 * first,
        "n_early_every": every,
        "n_early_size": size,
        "WN_config": {
            "n_layers": n_layers,
            "n_channels": dims["n_channels"],
            "kernel_size": dims["kernel_size"],
        },
        "upsample_kernel_size": kernel_size,
        "upsample_stride": max(kernel_size // 4, 1),
        "upsample_to_groups": to_groups,
    }


def usable_hint(model: str, name: str, value: Any) -> bool:
    """Whether `value` has the type of the keyword's default; a float must be a probability."""
    default = getattr(CONFIGS[model](), name)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and 0 <= value <= 1
    return isinstance(value, int) and 0 < value < 2**31


def infer_config(model: str, state: Mapping[str, Tensor], hints: Mapping[str, Any]) -> Config:
    """The configuration of a canonical state_dict.

    Args:
        model: "tacotron2" or "waveglow".
        state: canonical keys; the tensors may be on the meta device.
        hints: values of `NOT_IN_SHAPES` that passed `usable_hint`.

    Returns:
        Tacotron2Config or WaveGlowConfig. Keywords in neither shapes nor hints have their defaults;
        upsample_stride is a quarter of the kernel, as in every published WaveGlow.

    Raises:
        FastglowError: a key is missing, left over or of the wrong shape; names the key and both shapes.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    dims = _tacotron2_dims(shapes) if model == "tacotron2" else _waveglow_dims(shapes, hints)
    early = ("n_early_every", "n_early_size")  # already in `dims`
    return CONFIGS[model](**{**dims, **{k: v for k, v in hints.items() if k not in early}})
