"""A whole step as a CUDA graph. On a CPU, a replay calls the function that a GPU would record, as it was written."""

import math
from contextlib import nullcontext

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.history import read_history
from fastglow.train.loop import Trainer
from fastglow.train.ranks import Ranks
from fastglow.train.recorded_step import MAX_GRAPHS, WARM_UP, RecordedStep, check_recordable

from ..kernels.checks import host_syncs
from .conftest import configs, run

CUDA = torch.device("cuda")


class Replay:
    def __init__(self, function):
        self.replay = function


class Played(RecordedStep):
    """Without a GPU: the recording itself computes nothing, as on a GPU."""

    def _aside(self, run):
        self.n_aside = getattr(self, "n_aside", 0) + 1
        run()

    def _record(self, run):
        def replay():
            with self._tensor_learning_rate():
                run()

        return Replay(replay)


def played(config, model_config):
    trainer = Trainer("waveglow", config, model_config, progress=False)
    trainer.step.recorded = Played(trainer.step._run, trainer.state)
    trainer.run()
    return trainer


OPTIONS = {
    "float32": {},
    "fp16, average": {"amp": "fp16", "init_loss_scale": 2.0**24, "ema": 0.5},
    "accumulate, bf16": {"amp": "bf16", "accumulate": 2, "batch_size": 1, "ema": 0.9},
    "STFT distance": {"stft_weight": 0.5},
}


def last(out, iteration):
    checkpoint = load_training_checkpoint(out / f"checkpoint_{iteration}.pt", "waveglow")
    return {key: value for key, value in checkpoint.items() if key not in ("training", "launchers")}


def assert_same(first, second, path=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}.{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second and type(first) is type(second), path


def scalars(out):
    names = ("loss", "grad_norm", "learning_rate", "skipped", "loss_scale")
    return [
        (r.iteration, *(repr(r.values.get(name)) for name in names)) for r in read_history(out) if r.group == "train"
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replays_are_the_ordinary_steps(options, prepared, tmp_path):
    """Of seven items, in steps of two and three, with a learning rate that changes; powers of 2 fit float32."""
    options = {"learning_rate": 2.0**-8, "warmup": 32, "max_iterations": 18, "log_interval": 4, **options}
    run("waveglow", prepared, tmp_path / "plain", **options)
    trainer = played(*configs("waveglow", prepared, tmp_path / "played", **options))
    recorded = trainer.step.recorded
    assert 1 <= recorded.n_graphs <= MAX_GRAPHS
    assert recorded.n_aside < 18 and recorded.n_aside >= WARM_UP * recorded.n_graphs
    assert scalars(tmp_path / "played") == scalars(tmp_path / "plain")
    assert_same(last(tmp_path / "played", 18), last(tmp_path / "plain", 18))


def test_a_run_goes_on_with_and_without_graphs(prepared, tmp_path):
    """Checkpoints hold no trace of the tensor that a recorded step takes its learning rate from."""
    options = {"learning_rate": 2.0**-8, "resume": True, "ema": 0.5}
    run("waveglow", prepared, tmp_path / "plain", max_iterations=27, **options)
    played(*configs("waveglow", prepared, tmp_path / "mixed", max_iterations=9, **options))
    group = last(tmp_path / "mixed", 9)["optimizer"]["param_groups"][0]
    assert type(group["lr"]) is float and group["capturable"] is False
    run("waveglow", prepared, tmp_path / "mixed", max_iterations=12, **options)
    played(*configs("waveglow", prepared, tmp_path / "mixed", max_iterations=27, **options))
    assert_same(last(tmp_path / "mixed", 27), last(tmp_path / "plain", 27))


def test_inference_sees_the_weights_that_a_replay_wrote(prepared, tmp_path):
    trainer = Trainer("waveglow", *configs("waveglow", prepared, tmp_path, ema=0.5), progress=False)
    model, state, batch = trainer.state.model.train(), trainer.state, trainer.task.collate([trainer.trainset[0]])
    step = Played(trainer.step._run, state)

    def unseen(graph, writes):
        """As the GPU writes: PyTorch counts neither the optimizer's step nor the version of a tensor."""

        def replay():
            with torch.no_grad():
                for parameter in [*model.parameters(), *state.ema.model.parameters()]:
                    parameter.data.mul_(1.01)

        return Replay(replay)

    mel = torch.linspace(-3, 0, 160).view(1, 80, 2)
    for _ in range(WARM_UP):
        step([batch], [1.0])
    step._record = lambda run: unseen(run, None)
    for network in (model, state.ema.model):
        before = network.infer(mel, seed=1)
        step([batch], [1.0])
        assert not torch.equal(network.infer(mel, seed=1), before)


@pytest.mark.parametrize(
    ("model", "device", "ranks", "message"),
    [
        (
            "tacotron2",
            CUDA,
            Ranks(),
            "cuda_graph=True needs the fixed shapes of WaveGlow's segments, tacotron2's differ",
        ),
        ("waveglow", torch.device("cpu"), Ranks(), "cuda_graph=True needs a GPU, device=cpu is none"),
        ("waveglow", CUDA, Ranks(0, 2, 0), "cuda_graph=True records the steps of one process, there are 2"),
        ("waveglow", CUDA, Ranks(), None),
    ],
)
def test_what_cannot_be_recorded_is_refused(model, device, ranks, message):
    with pytest.raises(FastglowError, match=f"^{message}.*: pass --no-cuda-graph$") if message else nullcontext():
        check_recordable(model, device, ranks)


def test_the_command_refuses_it_before_it_writes(prepared, tmp_path):
    with pytest.raises(FastglowError, match="needs a GPU"):
        run("waveglow", prepared, tmp_path / "run", cuda_graph=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [*OPTIONS.values(), {"compile": True}], ids=[*OPTIONS, "compiled"])
def test_a_gpu_replays_the_ordinary_steps(options, noise, tmp_path):
    """Up to the order in which cuDNN sums, which grows with the steps."""
    options = {"device": "cuda", "learning_rate": 2.0**-12, "max_iterations": 18, "warmup": 32, **options}
    run("waveglow", noise, tmp_path / "plain", **options)
    config, model_config = configs("waveglow", noise, tmp_path / "graphs", cuda_graph=True, **options)
    trainer = Trainer("waveglow", config, model_config, progress=False)
    trainer.run()
    assert trainer.step.recorded.n_graphs >= 1
    first, second = (
        [(r.values["loss"], r.values["grad_norm"], r.values["skipped"]) for r in read_history(tmp_path / name)
         if r.group == "train"]
        for name in ("graphs", "plain")
    )  # fmt: skip
    assert len(first) == len(second) == 18
    for ours, theirs in zip(first, second, strict=True):
        if math.isfinite(theirs[0]):
            assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-2)
    ours, theirs = (last(tmp_path / name, 18) for name in ("graphs", "plain"))
    for key in ("loss_scale", "iteration", "done"):
        assert ours[key] == theirs[key]
    assert ours.get("ema_updates") == theirs.get("ema_updates")
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    assert_same(
        [moments["step"] for moments in ours["optimizer"]["state"].values()],
        [moments["step"] for moments in theirs["optimizer"]["state"].values()],
    )


@pytest.mark.gpu
def test_neither_recording_nor_replaying_synchronises(noise, tmp_path):
    config, model_config = configs("waveglow", noise, tmp_path, device="cuda", cuda_graph=True, amp="fp16", ema=0.9)
    trainer = Trainer("waveglow", config, model_config, progress=False)
    trainer.state.model.train()
    batch = trainer.task.collate([trainer.trainset[0], trainer.trainset[1]])
    for _ in range(WARM_UP + 1):
        trainer.step([batch], [1.0])
    list(trainer.step.results())
    with host_syncs("error"):
        for _ in range(5):
            trainer.step([batch], [1.0])
    assert len(list(trainer.step.results())) == 5
    assert trainer.step.recorded.n_graphs == 1
