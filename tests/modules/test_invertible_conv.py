"""InvertibleConv1x1 as a drop-in for the published Invertible1x1Conv."""

import copy
import pickle

import pytest
import torch

from fastglow.modules import InvertibleConv1x1


def test_state_dict_has_the_published_key():
    assert {k: tuple(v.shape) for k, v in InvertibleConv1x1(6).state_dict().items()} == {"conv.weight": (6, 6, 1)}


@pytest.mark.parametrize("seed", range(6))
def test_starts_as_a_rotation(seed):
    torch.manual_seed(seed)
    matrix = InvertibleConv1x1(4).conv.weight.detach().squeeze(2)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(4), atol=1e-6, rtol=0)
    assert torch.det(matrix).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_forward_and_back(sign):
    module = InvertibleConv1x1(4).double()
    with torch.no_grad():
        module.conv.weight.mul_(1.5)
        module.conv.weight[0].mul_(sign)
    z = torch.randn(2, 4, 5, dtype=torch.float64)
    output, log_det = module(z)
    assert log_det.item() == pytest.approx(2 * 5 * 4 * torch.tensor(1.5).log().item(), rel=1e-6)
    torch.testing.assert_close(module.infer(output), z, atol=1e-7, rtol=0)


def test_infer_follows_the_weight():
    """The cached inverse is not stale after training or loading."""
    module, z = InvertibleConv1x1(4), torch.randn(1, 4, 3)
    module.infer(z)
    with torch.no_grad():
        module.conv.weight.mul_(2)
    torch.testing.assert_close(module.infer(module(z)[0]), z, atol=1e-5, rtol=0)
    module.load_state_dict(InvertibleConv1x1(4).state_dict())
    torch.testing.assert_close(module.infer(module(z)[0]), z, atol=1e-5, rtol=0)


def test_copies():
    module, z = InvertibleConv1x1(4), torch.randn(1, 4, 3)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z)[0], module(z)[0])
    half = copy.deepcopy(module).half()
    output, log_det = half(z.half())
    assert (output.dtype, log_det.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(half.infer(output), z.half(), atol=0.02, rtol=0)
    assert "Conv1d(4, 4" in repr(module)


def test_built_on_the_meta_device():
    with torch.device("meta"):
        assert InvertibleConv1x1(4).conv.weight.is_meta
