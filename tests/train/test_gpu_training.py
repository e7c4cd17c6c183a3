"""Training on a GPU: every precision runs on the kernels, learns as on a CPU, and resumes bit for bit."""

import pytest
import torch

from fastglow.kernels import backend
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.history import read_history
from fastglow.train.loop import Trainer

from .conftest import MODELS, configs, run

pytestmark = pytest.mark.gpu

PRECISIONS = [{"amp": "off"}, {"amp": "off", "tf32": True}, {"amp": "bf16"}, {"amp": "fp16"}]


def losses(out):
    return [record.values["loss"] for record in read_history(out) if record.group == "train"]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_precision_learns_as_float32_on_a_cpu(model, noise, tmp_path, precision):
    """The first loss, before anything is learnt, to the precision's rounding; dropout draws others on a GPU."""
    options = {"max_iterations": 30, "learning_rate": 1e-3}
    run(model, noise, tmp_path / "cpu", **options)
    before = sum(backend.launches.values())
    run(model, noise, tmp_path / "gpu", device="cuda", init_loss_scale=1024.0, **options, **precision)
    assert sum(backend.launches.values()) > before
    on_cpu, on_gpu = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    tolerance = 0.1 if model == "tacotron2" else 0.02
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=tolerance, abs=tolerance)
    assert sum(on_gpu[-5:]) < sum(on_gpu[:5])


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_goes_on_as_an_undisturbed_one(model, noise, tmp_path, precision):
    """The same draws and gradients; cuDNN may sum some of these in another order, hence not the same bits."""
    options = {"device": "cuda", "ema": 0.9, "accumulate": 2, "batch_size": 1, "warmup": 3, "learning_rate": 1e-5}
    options |= precision
    whole = run(model, noise, tmp_path / "whole", max_iterations=6, **options)
    run(model, noise, tmp_path / "parts", max_iterations=3, **options)
    parts = run(model, noise, tmp_path / "parts", max_iterations=6, resume=True, **options)
    whole, parts = (load_training_checkpoint(path, model) for path in (whole, parts))
    for key in ("loss_scale", "ema_updates", "done", "iteration"):
        assert whole[key] == parts[key], key
    for name in ("torch", "cuda"):
        states = [torch.as_tensor(c["random_state"][name][0] if name == "cuda" else c["random_state"][name])
                  for c in (whole, parts)]  # fmt: skip
        assert torch.equal(*states)
    first, second = (
        torch.cat([moments["exp_avg"].flatten() for moments in c["optimizer"]["state"].values()])
        for c in (whole, parts)
    )
    assert (first - second).norm() <= 1e-3 * first.norm()


def test_the_optimizer_is_fused_and_time_and_trace_are_the_gpu_s(noise, tmp_path):
    config, model_config = configs("waveglow", noise, tmp_path, device="cuda", max_iterations=8, profile=2, amp="bf16")
    trainer = Trainer("waveglow", config, model_config, progress=False)
    assert trainer.state.optimizer.defaults["fused"]
    trainer.run()
    values = [record.values for record in read_history(tmp_path) if record.group == "train"][-1]
    assert min(values[f"seconds_{part}"] for part in ("data", "model", "optimizer")) > 0
    assert 0 < values["flop_utilisation"] < 1
    assert len(list((tmp_path / "profile").glob("*.json.gz"))) == 1


def test_a_process_under_torchrun_uses_nccl(noise, tmp_path, monkeypatch):
    """With one GPU, the group has one process: enough for NCCL to start, and for the collectives."""
    import torch.distributed as dist

    from fastglow.train.ranks import Ranks

    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    try:
        ranks = Ranks(0, 1, 0)
        monkeypatch.setattr(Ranks, "several", True)
        config, model_config = configs(
            "tacotron2", noise, tmp_path, device="cuda", max_iterations=3, amp="fp16",
            sync_batchnorm=True,
        )  # fmt: skip
        trainer = Trainer("tacotron2", config, model_config, progress=False, ranks=ranks)
        assert isinstance(trainer.step.model, torch.nn.parallel.DistributedDataParallel)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in trainer.state.model.modules())
        trainer.run()
    finally:
        dist.destroy_process_group()
    assert len(losses(tmp_path)) == 3
    plain, model_config = configs("tacotron2", noise, tmp_path / "plain", device="cuda", max_iterations=3, amp="fp16")
    monkeypatch.undo()
    Trainer("tacotron2", plain, model_config, progress=False).run()
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "plain"), rel=0.05)
