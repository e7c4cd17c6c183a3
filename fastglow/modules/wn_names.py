"""The names of a WN's tensors in other versions of NVIDIA's code."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastglow.errors import FastglowError


def unify_layers(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A WN's tensors with the names of `fastglow.modules.WN`, whatever the form of their weight normalisation.

    Current versions of NVIDIA/waveglow have one `cond_layer`, the first ones `res_layers` and `skip_layers`.

    Args:
        state: by name within the WN.
        prefix: of the names, in errors.

    Raises:
        FastglowError: a tensor is missing or does not fit, so that it cannot be split or joined.
    """
    return _join_residual_and_skip(_split_fused_conditioning(state, prefix), prefix)


def _layers(state: Mapping[str, Tensor], kind: str) -> dict[str, list[int]]:
    """Tensor name -> the layer numbers of `<kind>.i.<name>`, ascending."""
    found: dict[str, list[int]] = {}
    for key in state:
        if match := re.fullmatch(rf"{kind}\.(\d{{1,6}})\.(.+)", key):
            found.setdefault(match[2], []).append(int(match[1]))
    return {key: sorted(numbers) for key, numbers in found.items()}


def _split_fused_conditioning(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Splits the one `cond_layer` by layer; exact, since each row is normalised alone."""
    result: dict[str, Tensor] = {}
    numbers = _layers(state, "in_layers").get("bias")
    for key, tensor in state.items():
        if not key.startswith("cond_layer."):
            result[key] = tensor
            continue
        if numbers is None:
            raise FastglowError(f"key '{prefix}in_layers.0.bias' is missing: expected shape [?], found none")
        n_rows = state[f"in_layers.{numbers[0]}.bias"].numel()
        n_layers = numbers[-1] + 1
        if not n_rows or tensor.dim() == 0 or tensor.shape[0] != n_layers * n_rows:
            expected = [n_layers * n_rows, *tensor.shape[1:]]
            raise FastglowError(
                f"key '{prefix}{key}' has the wrong shape: expected {expected}, found {list(tensor.shape)}"
            )
        name = key.removeprefix("cond_layer.")
        for i, part in enumerate(tensor.split(n_rows)):
            result[f"cond_layers.{i}.{name}"] = part.clone()
    return result


def _join_residual_and_skip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Joins `res_layers` and `skip_layers` to `res_skip_layers`, residual rows first."""
    result = {key: tensor for key, tensor in state.items() if not key.startswith(("res_layers.", "skip_layers."))}
    inputs = _layers(state, "in_layers")
    for name, numbers in _layers(state, "skip_layers").items():
        last = max(inputs.get(name, numbers))
        for i in numbers:
            parts = [state[f"skip_layers.{i}.{name}"]]
            if i < last:
                residual = f"res_layers.{i}.{name}"
                if residual not in state:
                    expected = list(parts[0].shape)
                    raise FastglowError(f"key '{prefix}{residual}' is missing: expected shape {expected}, found none")
                parts.insert(0, state[residual])
            if any(part.dim() == 0 or part.shape[1:] != parts[0].shape[1:] for part in parts):
                raise FastglowError(
                    f"key '{prefix}skip_layers.{i}.{name}' has the wrong shape: "
                    f"expected {list(parts[0].shape)}, found {list(parts[-1].shape)}"
                )
            result[f"res_skip_layers.{i}.{name}"] = torch.cat(parts)
    return result
