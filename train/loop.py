"""The training loop of both models."""

import logging
import signal
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastglow.errors import FastglowError

from .checkpointing import (
    BEST,
    TrainingCheckpoint,
    checkpoint_path,
    load_training_checkpoint,
    random_state,
    remove_older_checkpoints,
    remove_unfinished_checkpoints,
    restore_random_state,
    save_training_checkpoint,
)
from .compiling import check_compiler, uncompiled
from .config import ModelConfig, TrainConfig
from .data import SplitDataset
from .interruption import calling_on_signals, naming_a_dead_loader
from .loading import Loader
from .manifest import PreparedDataset
from .meter import StepMeter
from .precision import DTYPES, pick_amp, resolve_amp, tf32
from .profiling import StepProfiler
from .ranks import ALONE, Ranks, Vote, joined_ranks, launcher
from .recorded_step import check_recordable
from .reporting import Reporter
from .resuming import compare_lexicons, find_checkpoint, item_digests, plan_resumption
from .sampler import Sharing, StepSampler
from .state import TrainState, seed_everything
from .step import TrainStep
from .tasks import TASKS, Task

logger = logging.getLogger(__name__)


def train(
    model_name: str,
    config: TrainConfig,
    model_config: ModelConfig,
    progress: bool = True,
    given: Collection[str] | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Trains a model on a prepared data set, together with the other processes if torchrun started several.

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
        ranks: from `joined_ranks`; None: joins them.

    Returns:
        path of the last checkpoint.

    Raises:
        FastglowError: data, checkpoint or options that do not fit; a loss or a gradient that is not finite, with the
            items of its batch; under float16, a loss scale that collapsed.
    """
    if ranks is None:
        with joined_ranks() as ranks:
            return Trainer(model_name, config, model_config, progress, given, ranks).run()
    return Trainer(model_name, config, model_config, progress, given, ranks).run()


class Trainer:
    """A run in one of its processes."""

    def __init__(
        self,
        model_name: str,
        config: TrainConfig,
        model_config: ModelConfig,
        progress: bool,
        given: Collection[str] | None = None,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.progress = progress and ranks.is_first
        self.out = Path(config.out)
        checkpoint = _agreed_checkpoint(config, model_name, ranks)
        dataset = PreparedDataset.open(config.data)
        if not dataset.items["train"]:
            raise FastglowError(f"{config.data} holds no training items: prepare more data")
        device = ranks.device(config.device)
        resumption = None
        if checkpoint is not None:
            config = replace(config, amp=resolve_amp(config.amp, device))  # as the checkpoint records it
            resumption = plan_resumption(checkpoint, config, model_config, dataset, given)
            config, model_config = resumption.config, resumption.model_config
        config = TASKS[model_name].complete(config, dataset)
        config = self.config = replace(config, amp=pick_amp(config.amp, device))
        if config.cuda_graph:
            check_recordable(model_name, device, ranks)
        if config.compile:
            check_compiler(device)
        self.task: Task = TASKS[model_name](config, model_config, dataset)
        self.item_digests = item_digests(dataset, model_name) if resumption is None else resumption.item_digests
        if resumption is not None:
            compare_lexicons(resumption.trained_with, self.task.trained_with())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastglowError(f"cannot write to {self.out} ({error.strerror}): pass another --out") from error
        if ranks.is_first:
            remove_unfinished_checkpoints(self.out)
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        self.state = TrainState(self.task, config, device, ranks, resumed=checkpoint is not None)
        if checkpoint is not None and resumption is not None:
            self.state.restore(checkpoint, resumption.same_order, resumption.same_validation)
        self.trainset = self.task.build_dataset("train")
        self.valset = self.task.build_dataset("validation")
        self.sharing = Sharing(config.batch_size, ranks.rank, ranks.world_size, config.accumulate)
        self.sampler = StepSampler(self.trainset.lengths(), self.sharing, config.seed, config.bucket_batches)
        self.loader = self._loader(self.trainset, config.num_workers)
        self.meter = StepMeter(device, model_config, DTYPES[config.amp] or torch.float32, self.task.passes)
        self.step = TrainStep(self.state, self.task, config, ranks, self.meter.watch)
        self.reporter = None
        if ranks.is_first:
            self.reporter = Reporter(self.out, config.tensorboard, config.keep_samples, len(self.valset) > 0)
        self.profiler = StepProfiler(self.out, config.profile if ranks.is_first else 0, device)
        self.stop_requested: signal.Signals | None = None  # by a signal to this process
        self.stopping = False  # all processes agree to stop
        self.vote = Vote(ranks)
        self.saved: int | None = None  # iteration of the last checkpoint
        logger.info("%s", self._description())

    def _description(self) -> str:
        config, world = self.config, self.ranks.world_size
        factors = f"batch size {config.batch_size}"
        factors += f" x {world} processes" if world > 1 else ""
        factors += f" x {config.accumulate} passes" if config.accumulate > 1 else ""
        precision = {"off": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast with loss scaling"}
        n_parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        return (
            f"{self.task.name}, {n_parameters / 1e6:.1f} M parameters, on {self.state.device}, {precision[config.amp]}"
            f"{' with TF32' if config.tf32 else ''}; global batch {self.sharing.step_size}: {factors}"
        )

    def _loader(self, dataset: SplitDataset, num_workers: int = 0) -> Loader[Any]:
        return Loader(dataset, self.task.packing, self.config.batch_size, self.state.device, num_workers)

    def run(self) -> Path:
        """Trains until the last epoch or iteration, or SIGINT or SIGTERM, and then saves."""
        state, config = self.state, self.config
        if self._finished():
            logger.warning(
                "nothing to do: the run has completed %d epochs and %d iterations; pass larger --epochs or "
                "--max-iterations to continue",
                state.epoch,
                state.iteration,
            )
        if self.reporter is not None:
            self.reporter.started(self._description(), state.epoch, state.iteration)
        with (
            naming_a_dead_loader(),
            calling_on_signals(self._request_stop),
            tf32(config.tf32),
            self.reporter or nullcontext(),
            self.profiler,
            self.loader,
        ):
            while not self._finished() and not self._stops():
                whole = self._run_epoch()
                self.stopping |= self.vote.settle()
                if self.meter.updates:
                    logger.info("epoch %d: %s", state.epoch + 1, self.meter.epoch_line())
                if not whole:
                    break
                state.next_epoch()
                if state.epoch % config.epochs_per_validation == 0:
                    self.validate()
                if state.epoch % config.epochs_per_checkpoint == 0:
                    self.save()
            if self.saved != state.iteration:
                self.save()
        if self._stops():
            reason = self.stop_requested.name if self.stop_requested else "a signal to another process"
            logger.warning("stopped by %s after iteration %d: pass --resume to continue", reason, state.iteration)
        return checkpoint_path(self.out, state.iteration)

    def _request_stop(self, number: int) -> None:
        self.stop_requested = signal.Signals(number)

    def _stops(self) -> bool:
        """Whether to stop; several processes do so once they agree, a step later."""
        return self.stopping or (self.stop_requested is not None and not self.ranks.several)

    def _finished(self) -> bool:
        return self.state.epoch >= self.config.epochs or 0 < self.config.max_iterations <= self.state.iteration

    def _run_epoch(self) -> bool:
        """Trains on what is left of an epoch; whether it was completed."""
        config, state = self.config, self.state
        self.sampler.start_epoch(state.epoch, state.done)
        batches = self.loader.epoch(state.epoch, self.sampler)
        state.model.train()
        self.meter.start_epoch()
        n_steps = len(self.sampler.steps)
        bar = tqdm(
            desc=f"epoch {state.epoch + 1}/{config.epochs}",
            total=state.batch + n_steps,
            initial=state.batch,
            unit="batch",
            disable=not self.progress,
        )
        with bar:
            try:
                for step in range(n_steps):
                    self.meter.watch.lap("data")
                    group = list(islice(batches, config.accumulate))
                    self.step(group, [self.sampler.weight(step, i) for i in range(config.accumulate)])
                    self.meter.finish_step(group)
                    state.count_step(self.sharing.step_size)
                    bar.update()
                    self.stopping = self.vote(self.stop_requested is not None)
                    self.profiler.step(state.iteration)
                    saves = config.iters_per_checkpoint and state.iteration % config.iters_per_checkpoint == 0
                    if self.step.is_due or saves:
                        self._report_steps(bar)
                    if saves:
                        self.save()
                    if self._stops() or self._finished():
                        self._report_steps(bar)
                        return step + 1 == n_steps
                self._report_steps(bar)
            except Exception:
                if not self.ranks.several:  # which might not all come here
                    with suppress(RuntimeError):
                        self._report_steps(bar)  # may have an earlier error, which is then the one to show
                raise
        return True

    def _report_steps(self, bar: tqdm) -> None:
        """Logs the steps since the last call; waits for the device, and raises the errors that it found."""
        for iteration, scalars in self.step.results():
            values, when = self.meter.measure(scalars)
            bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['items_per_second']:,.0f} items/s")
            if self.reporter is not None:
                self.reporter.scalars("train", values, self.state.epoch, iteration, when)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the validation split, empty if a signal arrived; writes a sample if one is due.

        The processes share the batches. Each batch has its own seed, so that the means do not depend on their number.
        The state of the random generators is restored.
        """
        state, ranks, config = self.state, self.ranks, self.config
        if len(self.valset) == 0:
            return {}
        before = random_state(state.device)
        model = state.averaged
        ranks.broadcast_buffers(model)
        model.eval()
        n, size = len(self.valset), config.batch_size
        own = range(0, n, size)[ranks.rank :: ranks.world_size]
        totals: dict[str, torch.Tensor] = {}
        with self._loader(self.valset) as loader:
            batches = loader.epoch(0, [range(first, min(first + size, n)) for first in own])
            for first, batch in zip(own, batches, strict=True):
                if self.stop_requested:
                    break
                seed_everything(config.seed + first)
                with uncompiled() if config.compile else nullcontext():
                    losses = self.step.losses(model, batch)
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0.0) + value.double() * len(batch.ids)
        restore_random_state(before, state.device)
        own_totals = {name: float(total) for name, total in totals.items()}
        gathered = ranks.gather((own_totals, self.stop_requested is not None))
        self.stopping = any(stop for _, stop in gathered)
        if self.stopping:
            return {}
        names = dict.fromkeys(name for part, _ in gathered for name in part)
        means = {name: sum(part.get(name, 0.0) for part, _ in gathered) / len(self.valset) for name in names}
        logger.info("epoch %d, iteration %d: validation loss %.4f", state.epoch, state.iteration, means["loss"])
        if self.reporter is not None:
            self.reporter.scalars("validation", means, state.epoch, state.iteration)
            earlier = max(0, state.epoch // config.epochs_per_validation - 1)
            if earlier % config.validations_per_sample == 0:
                self._write_sample(self.reporter)
                restore_random_state(before, state.device)
        if means["loss"] < state.best_loss:  # not if it is NaN
            state.best_loss = means["loss"]
            if config.keep_best:
                self._write_checkpoint(self.out / BEST)
        return means

    def _write_sample(self, reporter: Reporter) -> None:
        try:
            seed_everything(self.config.seed)
            sample = self.task.sample(self.state.averaged, self.valset)
            reporter.sample(sample, self.task.dataset.audio.sampling_rate, self.state.iteration)
        except FastglowError as error:
            # An untrained model may produce no sound at all; that must not end the training.
            logger.warning("no validation sample at iteration %d: %s", self.state.iteration, error)

    def save(self) -> Path:
        """Writes a checkpoint of the current state; collective: every process calls it."""
        path = checkpoint_path(self.out, self.state.iteration)
        self._write_checkpoint(path)
        if self.ranks.is_first:
            remove_older_checkpoints(path, self.config.keep_checkpoints)
        self.saved = self.state.iteration
        return path

    def _write_checkpoint(self, path: Path) -> None:
        checkpoint = self.state.checkpoint(self.item_digests)
        if self.ranks.is_first:
            save_training_checkpoint(path, checkpoint)


def _agreed_checkpoint(config: TrainConfig, model_name: str, ranks: Ranks) -> TrainingCheckpoint | None:
    """The checkpoint that the first process finds; collective.

    The others read the same file. If one of them has no such file, as on another machine without a common disk, all get
    the first process's copy.
    """
    launchers = set(ranks.gather(launcher())) - {""}
    found = find_checkpoint(config, model_name, launchers) if ranks.is_first else None
    path = ranks.broadcast(found and found.path)
    if path is None:
        return None
    if not all(ranks.gather(path.is_file())):
        return ranks.broadcast(found and found.checkpoint)
    return found.checkpoint if found else load_training_checkpoint(path, model_name)
