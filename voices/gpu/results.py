"""What comes back from the machine with the GPU: result.safetensors and the log.

The tensors: "trained.NAME" and, with --ema, "average.NAME" in float16; "square.I", Adam's mean square of the I-th
parameter's gradient, in bfloat16. Its mean of the gradient is rebuilt within ten updates.
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
LOG = "log.jsonl"


@dataclass
class Result:
    """A training on the other machine.

    Attributes:
        pack: id of the pack that it began with.
        model, config: of the model.
        iterations: since the pack.
        trained, average, square: tensors by name, see above.
    """

    pack: str
    model: str
    config: dict[str, Any]
    iterations: int
    trained: dict[str, Tensor]
    average: dict[str, Tensor]
    square: dict[str, Tensor]

    @classmethod
    def of(cls, checkpoint: TrainingCheckpoint, pack: str) -> "Result":
        averaged = "trained_state_dict" in checkpoint
        states = checkpoint["optimizer"]["state"]
        return cls(
            pack=pack,
            model=checkpoint["model"],
            config=checkpoint["config"],
            iterations=checkpoint["iteration"],
            trained=_as(torch.float16, checkpoint.get("trained_state_dict", checkpoint["state_dict"])),
            average=_as(torch.float16, checkpoint["state_dict"]) if averaged else {},
            square=_as(torch.bfloat16, {str(index): state["exp_avg_sq"] for index, state in states.items()}),
        )

    def write(self, folder: Path) -> int:
        """Writes `FILE`; returns its size in bytes."""
        values = {name: value for name, value in vars(self).items() if name not in _TENSORS}
        tensors = {f"{part}.{name}": tensor for part in _TENSORS for name, tensor in getattr(self, part).items()}
        data = save(tensors, {"result": json.dumps(values)})
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(data)
        return len(data)

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Raises FastglowError if there is none, or a damaged one."""
        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads((file.metadata() or {})["result"])
                parts: dict[str, dict[str, Tensor]] = {part: {} for part in _TENSORS}
                for name in file.keys():
                    part, _, key = name.partition(".")
                    tensor = file.get_tensor(name)
                    parts[part][key] = tensor.float() if tensor.is_floating_point() else tensor
            return cls(**(values | parts))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FastglowError(f"{path} is no result of `python -m voices.gpu train`, or is damaged") from error


_TENSORS = ("trained", "average", "square")


def _as(dtype: torch.dtype, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
