"""What a run changes: weights, optimizer, loss scale, average of the weights, position in the data."""

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from math import inf

import numpy as np
import torch
from torch import nn

from fastglow._version import __version__
from fastglow.errors import FastglowError

from .checkpointing import RandomState, TrainingCheckpoint, random_state, restore_random_state
from .config import TrainConfig
from .ema import ExponentialMovingAverage
from .precision import LossScaler
from .ranks import Ranks, launcher
from .sampler import Stretch
from .tasks import Task
from .warm_start import warm_start

logger = logging.getLogger(__name__)


class TrainState:
    """The state of a run in one process.

    Attributes:
        model: on `device`, in float32.
        optimizer: Adam over its parameters.
        scaler: of the loss under float16.
        ema: average of the weights; None: off.
        epoch: in progress, from 0; iteration: updates so far, skipped ones included.
        done: what was read of the epoch.
        best_loss: lowest validation loss so far.
    """

    def __init__(self, task: Task, config: TrainConfig, device: torch.device, ranks: Ranks, resumed: bool):
        self.task = task
        self.config = config
        self.device = device
        self.ranks = ranks
        seed_everything(config.seed)  # the same initial weights in all processes
        self.model = self._build_model(resumed)
        if ranks.rank:
            seed_everything(config.seed + ranks.rank)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scaler = LossScaler(device, config.amp, config.loss_scale, config.init_loss_scale, config.max_skipped)
        self.ema = ExponentialMovingAverage(self.model, config.ema) if config.ema else None
        self.epoch = self.iteration = 0
        self.done: list[Stretch] = []
        self.best_loss = inf

    @property
    def batch(self) -> int:
        """Updates done of the epoch."""
        return sum(stretch.steps for stretch in self.done)

    @property
    def averaged(self) -> nn.Module:
        """The model that validation and export use."""
        return self.model if self.ema is None else self.ema.model

    def count_step(self, step_size: int) -> None:
        self.iteration += 1
        if self.done and self.done[-1].step_size == step_size:
            self.done[-1] = Stretch(step_size, self.done[-1].steps + 1)
        else:
            self.done.append(Stretch(step_size, 1))

    def next_epoch(self) -> None:
        self.epoch, self.done = self.epoch + 1, []

    def checkpoint(self, items: dict[str, torch.Tensor]) -> TrainingCheckpoint:
        """Everything that a run needs to continue; collective: every process calls it."""
        gathered = self.ranks.gather((random_state(self.device), launcher()))
        own, *others = [state for state, _ in gathered]
        checkpoint: TrainingCheckpoint = {
            "model": self.task.name,
            "config": asdict(self.task.model_config),
            "state_dict": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "iteration": self.iteration,
            "batch": self.batch,
            "done": [list(stretch) for stretch in self.done],
            "random_state": own,
            "random_states": others,
            "loss_scale": self.scaler.state_dict(),
            "best_loss": self.best_loss,
            "launchers": sorted({name for _, name in gathered if name}),
            "training": self.config.as_dict(),
            "items": items,
            "trained_with": self.task.trained_with().as_dict(),
            "versions": {"fastglow": __version__, "torch": str(torch.__version__)},
        }
        if self.ema is not None:
            checkpoint["trained_state_dict"] = self.model.state_dict()
            checkpoint["ema_updates"] = self.ema.updates
        return checkpoint

    def restore(self, checkpoint: TrainingCheckpoint, same_order: bool, same_validation: bool) -> None:
        """Inverse of `checkpoint`.

        Args:
            same_order: whether the items of an epoch have the order that they had; if not, the epoch starts again.
            same_validation: whether validation losses compare with those before; if not, the lowest is forgotten.

        Raises:
            FastglowError: it does not fit its own config.
        """
        try:
            averaged = checkpoint["state_dict"]
            self.model.load_state_dict(checkpoint.get("trained_state_dict", averaged))
            # Only a fused one leaves out what is not finite; the first versions wrote checkpoints of another.
            groups = [{**group, "fused": True} for group in checkpoint["optimizer"]["param_groups"]]
            self.optimizer.load_state_dict({**checkpoint["optimizer"], "param_groups": groups})
            self.scaler.load_state_dict(checkpoint.get("loss_scale", {"scaler": {}}))
            if self.ema is not None:  # an average that is new to the run starts from its weights
                self.ema.restore(averaged, checkpoint.get("ema_updates", 0))
            self.best_loss = float(checkpoint.get("best_loss", inf)) if same_validation else inf
            if same_order:
                self.done = [Stretch(*map(int, stretch)) for stretch in checkpoint.get("done", [])]
                if any(step_size < 1 or steps < 0 for step_size, steps in self.done):
                    raise ValueError(f"its position in the data, {self.done}, is damaged")
            states = [checkpoint["random_state"], *checkpoint.get("random_states", [])]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FastglowError(
                f"the checkpoint does not fit its own config: {' '.join(str(error).split())}"
            ) from error
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay  # may have changed, like the learning rate
        self.epoch, self.iteration = checkpoint["epoch"], checkpoint["iteration"]
        self._restore_random_state(states)
        logger.info("resumed at epoch %d, iteration %d", self.epoch, self.iteration)

    def _restore_random_state(self, states: Sequence[RandomState]) -> None:
        if self.ranks.rank < len(states):
            restore_random_state(states[self.ranks.rank], self.device)
        else:  # of a process that the run did not have
            seed_everything(self.config.seed + self.ranks.rank + self.iteration)
        if len(states) != self.ranks.world_size:
            logger.warning(
                "%d processes continue a run of %d: their random draws, such as dropout, are not those of an "
                "undisturbed run",
                self.ranks.world_size,
                len(states),
            )

    def _build_model(self, resumed: bool) -> nn.Module:
        config = self.config
        model = self.task.build_model()
        if config.uniform_initialize_bn_weight:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    nn.init.uniform_(module.weight)
        if not config.init_from and not resumed:
            self.task.begin(model)
        if config.init_from and not resumed:
            warm_start(model, config.init_from, config.ignore_layers, self.task.dataset.audio)
        return self.task.for_ranks(model.to(self.device), self.ranks)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
