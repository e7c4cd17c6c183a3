"""Which kernels and tiles a WaveNet layer picks for a GPU and a size."""

import pytest
import torch

from fastglow.kernels import launch
from fastglow.kernels.wavenet_layer import common, forward
from fastglow.kernels.wavenet_layer.common import LayerInputs


def picked(monkeypatch, dtype: torch.dtype, B: int, C: int, T: int, arch: int = 90, shared: int = 227) -> dict:
    """The configurations of a forward pass by kernel, on a GPU with `shared` KiB of shared memory per block."""
    monkeypatch.setattr(forward, "architecture", lambda device: arch)
    monkeypatch.setattr(common, "_shared_memory", lambda device: 1024 * shared)
    h, weight = torch.empty(B, T, C, dtype=dtype, device="meta"), torch.empty(2 * C, C, 3, dtype=dtype, device="meta")
    inputs = LayerInputs(h, *[None] * 5, weight, None, None, None, weight[:, :, :1], None)
    monkeypatch.setattr(forward, "launch", lambda op, kernel, grid, *args, **options: grids.append(grid))
    grids: list[tuple[int, ...]] = []
    chosen = {}

    def keep(kernel, candidates, heuristic, tensor, **shape):
        chosen[kernel] = launch.pick_config(kernel, candidates, heuristic, tensor, **shape)
        return chosen[kernel]

    monkeypatch.setattr(forward, "pick_config", keep)
    monkeypatch.setattr(common, "pick_config", keep)
    forward.layer_forward(inputs, 1, save_gate=False)
    return chosen | {"grids": grids}


def test_large_problems_get_wide_tiles(monkeypatch):
    chosen = picked(monkeypatch, torch.float16, 1, 512, 27520)
    assert chosen["wavenet_gate_fwd"] == common.config(128, 128, 64, 8, 3)
    assert chosen["wavenet_res_skip_fwd"] == common.config(128, 128, 64, 8, 3)
    assert chosen["grids"] == [(215 * 4, 1), (215 * 8, 1)]


def test_tiles_shrink_until_they_fill_the_gpu(monkeypatch):
    assert picked(monkeypatch, torch.float16, 1, 512, 2752)["wavenet_gate_fwd"] == common.config(128, 64, 64, 8, 3)
    assert picked(monkeypatch, torch.float16, 1, 512, 100)["wavenet_gate_fwd"] == common.config(32, 32, 32, 4, 2)


def test_tiles_fit_the_shared_memory_and_the_registers_of_the_gpu(monkeypatch):
    ampere = picked(monkeypatch, torch.float16, 1, 512, 27520, arch=80, shared=163)
    ada = picked(monkeypatch, torch.float16, 1, 512, 27520, arch=80, shared=99)
    assert ampere["wavenet_gate_fwd"] == ada["wavenet_gate_fwd"] == common.config(128, 128, 32, 8, 4)
    assert picked(monkeypatch, torch.float16, 1, 96, 27520, shared=227)["wavenet_layer_fwd"]["BT"] == 64
    monkeypatch.undo()
    with launch.use_config("wavenet_layer_form", forward.FUSED):
        assert picked(monkeypatch, torch.float16, 1, 256, 27520, shared=99)["wavenet_layer_fwd"]["BT"] == 32


@pytest.mark.parametrize("channels, kernels", [(128, 1), (136, 2), (256, 2), (264, 2)])
def test_few_channels_take_one_kernel_whatever_the_batch(channels, kernels, monkeypatch):
    for B in (1, 64):
        assert len(picked(monkeypatch, torch.float16, B, channels, 100)["grids"]) == kernels
        monkeypatch.undo()
