"""The training loop of both models."""

import logging
import random
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastglow._version import __version__
from fastglow.devices import pick_device
from fastglow.errors import FastglowError

from .checkpointing import TrainingCheckpoint, random_state, restore_random_state, save_training_checkpoint
from .config import ModelConfig, TrainConfig
from .data import EpochBatchSampler, SegmentBatch, TextMelBatch
from .interruption import batches_of, begin_loading, calling_on_signals
from .manifest import PreparedDataset
from .reporting import Reporter
from .resuming import compare_lexicons, find_checkpoint, item_digests, plan_resumption
from .tasks import TASKS, Task
from .warm_start import warm_start

logger = logging.getLogger(__name__)


def train(
    model_name: str,
    config: TrainConfig,
    model_config: ModelConfig,
    progress: bool = True,
    given: Collection[str] | None = None,
) -> Path:
    """Trains a model on a prepared data set.

    A resumed run takes its options from the checkpoint, except those in `given`: the log lists the ones that change,
    and an option that would make another model is an error. Data that shares no item with the run's is an error too;
    if items were added, removed or changed, the epoch in progress starts again.

    Args:
        model_name: 'tacotron2' or 'waveglow'.
        config: the task's `TrainConfig`.
        model_config: the model's config.
        progress: show a progress bar on standard error.
        given: names of the chosen options of both configs, WN_config's as 'WN_config.n_layers'; None: those that
            differ from their default.

    Returns:
        path of the last checkpoint.

    Raises:
        FastglowError: data, checkpoint or options that do not fit; a loss that is not finite, with the items of its
            batch.
    """
    return Trainer(model_name, config, model_config, progress, given).run()


class Trainer:
    """State of a run: model, optimizer, position in the data."""

    reporter: Reporter

    def __init__(
        self,
        model_name: str,
        config: TrainConfig,
        model_config: ModelConfig,
        progress: bool,
        given: Collection[str] | None = None,
    ):
        self.progress = progress
        self.out = Path(config.out)
        checkpoint = find_checkpoint(config, model_name)
        dataset = PreparedDataset.open(config.data)
        if not dataset.items["train"]:
            raise FastglowError(f"{config.data} holds no training items: prepare more data")
        resumption = None
        if checkpoint is not None:
            resumption = plan_resumption(checkpoint, config, model_config, dataset, given)
            config, model_config = resumption.config, resumption.model_config
        config = self.config = TASKS[model_name].complete(config, dataset)
        self.task: Task = TASKS[model_name](config, model_config, dataset)
        self.item_digests = item_digests(dataset, model_name) if resumption is None else resumption.item_digests
        if resumption is not None:
            compare_lexicons(resumption.trained_with, self.task.trained_with())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastglowError(f"cannot write to {self.out} ({error.strerror}): pass another --out") from error
        self.device = pick_device(config.device)
        seed_everything(config.seed)
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        self.model = self._build_model(resumed=checkpoint is not None)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.epoch = self.iteration = self.batch = 0
        self.stop_requested: signal.Signals | None = None
        if checkpoint is not None and resumption is not None:
            self._restore(checkpoint)
            if not resumption.same_batches:
                self.batch = 0

        self.trainset = self.task.build_dataset("train")
        self.valset = self.task.build_dataset("validation")
        self.sampler = EpochBatchSampler(self.trainset.lengths(), config.batch_size, config.seed, config.bucket_batches)

    def run(self) -> Path:
        """Trains until the last epoch or iteration, or SIGINT or SIGTERM, and then saves."""
        last_saved = None
        if self._finished():
            logger.warning(
                "nothing to do: the run has completed %d epochs and %d iterations; pass larger --epochs or "
                "--max-iterations to continue",
                self.epoch,
                self.iteration,
            )
        reporter = Reporter(self.out, self.config.tensorboard, self.config.keep_samples)
        with calling_on_signals(self._request_stop), reporter as self.reporter:
            while not self._finished() and not self.stop_requested:
                self._run_epoch()
                if self.batch < self.sampler.batches_per_epoch:
                    continue  # max_iterations or a signal ended the epoch
                self.epoch, self.batch = self.epoch + 1, 0
                if self.epoch % self.config.epochs_per_checkpoint == 0:
                    last_saved = self.save()
                if self.epoch % self.config.epochs_per_validation == 0:
                    self.validate()
            if last_saved is None or last_saved.name != f"checkpoint_{self.iteration}.pt":
                last_saved = self.save()
        if self.stop_requested:
            logger.warning(
                "stopped by %s after iteration %d: pass --resume to continue",
                self.stop_requested.name,
                self.iteration,
            )
        return last_saved

    def _request_stop(self, number: int) -> None:
        self.stop_requested = signal.Signals(number)

    def _finished(self) -> bool:
        config = self.config
        return self.epoch >= config.epochs or 0 < config.max_iterations <= self.iteration

    def _run_epoch(self) -> None:
        config = self.config
        self.sampler.epoch, self.sampler.start = self.epoch, self.batch
        self.trainset.set_epoch(self.epoch)
        loader = DataLoader(
            self.trainset,
            batch_sampler=self.sampler,
            collate_fn=self.task.collate,
            num_workers=config.num_workers,
            worker_init_fn=begin_loading,
            # Each epoch, the loader draws a seed from its generator: keep training's own generator out of that.
            generator=torch.Generator().manual_seed(config.seed),
        )
        if not config.use_saved_learning_rate:
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate_at(self.epoch)
        self.model.train()
        with batches_of(loader) as batches:
            bar = tqdm(
                batches,
                desc=f"epoch {self.epoch + 1}/{config.epochs}",
                total=self.sampler.batches_per_epoch,
                initial=self.batch,
                unit="batch",
                disable=not self.progress,
            )
            for batch in _plain_errors(bar):
                started = time.perf_counter()
                scalars = self.step(batch.to(self.device))
                scalars["items_per_second"] = batch.n_items / (time.perf_counter() - started)
                self.iteration += 1
                self.batch += 1
                self.reporter.scalars("train", scalars, self.iteration)
                bar.set_postfix_str(f"loss {scalars['loss']:.4f}, {scalars['items_per_second']:,.0f} items/s")
                if config.iters_per_checkpoint and self.iteration % config.iters_per_checkpoint == 0:
                    self.save()
                if self.stop_requested or self._finished():
                    break
            bar.close()

    def step(self, batch: TextMelBatch | SegmentBatch) -> dict[str, float]:
        """One step of the optimizer; returns the scalars to report."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.task.losses(self.model, batch)
        scalars = {name: value.item() for name, value in losses.items()}
        self._check_finite("loss", scalars["loss"], batch)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip_thresh)
        self._check_finite("the norm of the gradient", norm.item(), batch)
        self.optimizer.step()
        return {**scalars, "grad_norm": norm.item(), "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _check_finite(self, name: str, value: float, batch: TextMelBatch | SegmentBatch) -> None:
        if not np.isfinite(value):
            raise FastglowError(
                f"{name} is {value} at iteration {self.iteration}, batch {self.batch} of epoch {self.epoch}, "
                f"items {', '.join(batch.ids)}: look at these items, or lower the learning rate and resume"
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the validation split, empty if a signal arrived; writes a sample if one is due.

        The state of the random generators is restored.
        """
        if len(self.valset) == 0:
            return {}
        before = random_state()
        seed_everything(self.config.seed)
        self.model.eval()
        loader = DataLoader(self.valset, batch_size=self.config.batch_size, collate_fn=self.task.collate)
        totals: dict[str, float] = {}
        for batch in loader:
            if self.stop_requested:
                restore_random_state(before)
                return {}
            for name, value in self.task.losses(self.model, batch.to(self.device)).items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(batch.ids)
        means = {name: total / len(self.valset) for name, total in totals.items()}
        self.reporter.scalars("validation", means, self.iteration)
        earlier = max(0, self.epoch // self.config.epochs_per_validation - 1)
        if earlier % self.config.validations_per_sample == 0 and not self.stop_requested:
            self._write_sample()
        logger.info("epoch %d, iteration %d: validation loss %.4f", self.epoch, self.iteration, means["loss"])
        restore_random_state(before)
        return means

    def _write_sample(self) -> None:
        try:
            sample = self.task.sample(self.model, self.valset)
            self.reporter.sample(sample, self.task.dataset.audio.sampling_rate, self.iteration)
        except FastglowError as error:
            # An untrained model may produce no sound at all; that must not end the training.
            logger.warning("no validation sample at iteration %d: %s", self.iteration, error)

    def save(self) -> Path:
        """Writes a checkpoint of the current state."""
        checkpoint: TrainingCheckpoint = {
            "model": self.task.name,
            "config": asdict(self.task.model_config),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "iteration": self.iteration,
            "batch": self.batch,
            "random_state": random_state(),
            "training": self.config.as_dict(),
            "items": self.item_digests,
            "trained_with": self.task.trained_with().as_dict(),
            "versions": {"fastglow": __version__, "torch": str(torch.__version__)},
        }
        return save_training_checkpoint(self.out, checkpoint, self.config.keep_checkpoints)

    def _build_model(self, resumed: bool) -> nn.Module:
        model = self.task.build_model()
        if self.config.uniform_initialize_bn_weight:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    nn.init.uniform_(module.weight)
        if self.config.init_from and not resumed:
            warm_start(model, self.config.init_from, self.config.ignore_layers, self.task.dataset.audio)
        return model.to(self.device)

    def _restore(self, checkpoint: TrainingCheckpoint) -> None:
        try:
            self.model.load_state_dict(checkpoint["state_dict"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise FastglowError(
                f"the checkpoint does not fit its own config: {' '.join(str(error).split())}"
            ) from error
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay  # may have changed, like the learning rate
        self.epoch, self.iteration, self.batch = checkpoint["epoch"], checkpoint["iteration"], checkpoint["batch"]
        restore_random_state(checkpoint["random_state"])
        logger.info("resumed at epoch %d, iteration %d", self.epoch, self.iteration)


def _plain_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; a FastglowError from a loader process is raised without that process's traceback."""
    try:
        yield from batches
    except FastglowError as error:
        message = str(error).rstrip().split("\n")[-1]
        raise FastglowError(message.partition(f"{FastglowError.__name__}: ")[2] or message) from error


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
