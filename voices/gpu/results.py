"""What comes back from the machine with the GPU: result.safetensors and the log.

The tensors: "weight.NAME", in float16, the average if the run has one; "square.I", Adam's mean square of the I-th
parameter's gradient, as the code of its logarithm. Adam's mean of the gradient is rebuilt within ten updates.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import TrainingCheckpoint

FILE = "result.safetensors"
BYTES = 3  # per parameter

PER_OCTAVE, OFFSET = 3, 210
"""Codes of positive numbers from 2^-69.7 to 2^15: steps of a third of an octave, which change Adam's steps by 6 % at
most."""


@dataclass
class Result:
    """A training on the other machine.

    Attributes:
        pack: id of the pack that it began with.
        model, config: of the model.
        iterations: since the pack.
        weights: float32, by name.
        squares: of each parameter, by index.
    """

    pack: str
    model: str
    config: dict[str, Any]
    iterations: int
    weights: dict[str, Tensor]
    squares: dict[int, Tensor]

    @classmethod
    def of(cls, checkpoint: TrainingCheckpoint, pack: str) -> "Result":
        """What is written of a checkpoint."""
        squares = {index: state["exp_avg_sq"] for index, state in checkpoint["optimizer"]["state"].items()}
        names = (checkpoint["model"], checkpoint["config"], checkpoint["iteration"])
        return cls(pack, *names, checkpoint["state_dict"], squares)

    def write(self, folder: Path) -> int:
        """Writes `FILE`; returns its size in bytes."""
        values = {name: getattr(self, name) for name in ("pack", "model", "config", "iterations")}
        tensors = {f"weight.{name}": _halved(tensor) for name, tensor in self.weights.items()}
        tensors |= {f"square.{index}": encode(tensor) for index, tensor in self.squares.items()}
        data = save(tensors, {"result": json.dumps(values)})
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(data)
        return len(data)

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Raises FastglowError if there is none, or a damaged one."""
        path = folder / FILE
        weights: dict[str, Tensor] = {}
        squares: dict[int, Tensor] = {}
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads((file.metadata() or {})["result"])
                for key in file.keys():
                    kind, _, name = key.partition(".")
                    tensor = file.get_tensor(key)
                    if kind == "square":
                        squares[int(name)] = decode(tensor)
                    else:
                        weights[name] = tensor.float() if tensor.is_floating_point() else tensor
            return cls(**values, weights=weights, squares=squares)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FastglowError(f"{path} is no result of `python -m voices.gpu train`, or is damaged") from error


def encode(values: Tensor) -> Tensor:
    """Numbers that are not negative as uint8, see `PER_OCTAVE`; 0 is 0."""
    codes = (PER_OCTAVE * torch.log2(values.float())).round() + OFFSET
    return torch.where(values > 0, codes.clamp(1, 255), torch.zeros_like(codes)).to(torch.uint8)


def decode(codes: Tensor) -> Tensor:
    values = torch.exp2((codes.float() - OFFSET) / PER_OCTAVE)
    return torch.where(codes > 0, values, torch.zeros_like(values))


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor
