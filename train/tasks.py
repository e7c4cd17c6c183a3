"""The model-specific parts of training: model, data, loss, and validation samples."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastglow.audio import griffin_lim
from fastglow.audio.griffinlim import PREDICTED_POWER
from fastglow.checkpoint import LexiconFile, TrainedWith
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, Tacotron2Config, WaveGlow, WaveGlowConfig
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text import Lexicon, symbols
from fastglow.text.cleaners import DEFAULT_CLEANERS
from fastglow.text.symbol_tables import NVIDIA

from .compiling import compile_model
from .config import Tacotron2TrainConfig, TrainConfig, WaveGlowTrainConfig
from .data import SegmentBatch, SegmentDataset, SplitDataset, TextMelBatch, TextMelDataset
from .data_init import N_ITEMS, fit_to_data
from .losses import GuidedAttentionLoss, Tacotron2Loss, WaveGlowLoss
from .manifest import PreparedDataset
from .mel_losses import delta_loss, l1_loss, ssim_loss
from .packing import Packing, SegmentPacking, TextMelPacking, mel_spectrogram
from .ranks import Ranks
from .stft_loss import stft_distance

logger = logging.getLogger(__name__)

SAMPLE_SEED = 0  # the same noise in each validation, so that samples differ by the model only

SAMPLE_SECONDS = 10.0  # of the recording in a sample; Tacotron 2's speech may be half as long again


@dataclass
class Sample:
    """Audio and pictures of one validation item.

    Attributes:
        audio: float32 [N] in [-1, 1].
        mels: log-mels [n_mel_channels, T] by caption.
        alignment: [decoder steps, symbols], or None for a vocoder.
        text: what is spoken.
    """

    audio: np.ndarray
    mels: dict[str, np.ndarray]
    alignment: np.ndarray | None
    text: str


ConfigT = TypeVar("ConfigT", bound=TrainConfig)
ModelConfigT = TypeVar("ModelConfigT", bound=Tacotron2Config | WaveGlowConfig)
ModelT = TypeVar("ModelT", bound=Tacotron2 | WaveGlow)
DataT = TypeVar("DataT", bound=TextMelDataset | SegmentDataset)
BatchT = TypeVar("BatchT", bound=TextMelBatch | SegmentBatch)


class Task(ABC, Generic[ConfigT, ModelConfigT, ModelT, DataT, BatchT]):
    """What the training loop needs from one model.

    Attributes:
        packing: makes its batches.
        has_dynamic_shapes: of its batches.
        passes: how often a batch goes through the model.
    """

    name: str
    packing: Packing
    has_dynamic_shapes: bool
    passes = 1

    def __init__(self, config: ConfigT, model_config: ModelConfigT, dataset: PreparedDataset):
        if model_config.n_mel_channels != dataset.audio.n_mel_channels:
            raise FastglowError(
                f"the model takes {model_config.n_mel_channels} mel channels, {dataset.folder} was prepared with "
                f"{dataset.audio.n_mel_channels}: pass --n-mel-channels {dataset.audio.n_mel_channels}, or prepare it "
                f"with --n-mel-channels {model_config.n_mel_channels}"
            )
        self.config = config
        self.model_config = model_config
        self.dataset = dataset

    def trained_with(self) -> TrainedWith:
        """The settings that synthesis needs; recorded in the checkpoints."""
        return TrainedWith(audio=self.dataset.audio)

    @classmethod
    def complete(cls, config: ConfigT, dataset: PreparedDataset) -> ConfigT:
        """The options, completed by those that the data set determines."""
        return config

    @abstractmethod
    def build_model(self) -> ModelT: ...

    @abstractmethod
    def begin(self, model: ModelT) -> None:
        """Fits the initial weights of a model that begins from nothing to the data, where options ask for it."""

    def for_ranks(self, model: nn.Module, ranks: Ranks) -> nn.Module:
        """The model as the processes of a run train it together."""
        return model

    @abstractmethod
    def build_dataset(self, split: str) -> DataT: ...

    def collate(self, items: list[Any]) -> BatchT:
        """A batch of items of a data set, on the CPU."""
        return self.packing(items).to(torch.device("cpu"))

    @abstractmethod
    def losses(self, model: nn.Module, batch: BatchT) -> dict[str, Tensor]:
        """Named scalars, means over the batch; 'loss' is minimised. `model` may be wrapped for parallel training."""

    @abstractmethod
    def losses_of(self, output: Any, batch: BatchT) -> dict[str, Tensor]:
        """`losses` of the model's output."""

    def compile(self, model: nn.Module) -> None:
        """Has torch.compile compile the model's forward pass and the losses, at their first call."""
        compile_model(model, self.has_dynamic_shapes)
        self.losses_of = torch.compile(self.losses_of, dynamic=self.has_dynamic_shapes)  # type: ignore[method-assign]

    @abstractmethod
    def sample(self, model: ModelT, valset: DataT) -> Sample:
        """Synthesis of the item `sample_index(valset)`."""

    def sample_index(self, valset: SplitDataset[Any]) -> int:
        """Index of the item to listen to: the first that lasts SAMPLE_SECONDS at most, or the shortest."""
        frames = [item.frames for item in valset.items]
        return next((i for i, n in enumerate(frames) if n <= self.max_sample_frames), int(np.argmin(frames)))

    @property
    def max_sample_frames(self) -> int:
        return int(SAMPLE_SECONDS * self.dataset.audio.sampling_rate / self.dataset.audio.hop_length)


LossTerm = Callable[[list[Tensor], TextMelBatch], Tensor]
"""(output of `Tacotron2.forward`, batch) -> scalar."""


def of_both_mels(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LossTerm:
    """The sum of a loss before and after the postnet, as the reference adds its squared errors."""

    def term(output: list[Tensor], batch: TextMelBatch) -> Tensor:
        before, after = (loss(mel, batch.mel, batch.output_lengths) for mel in output[:2])
        return before + after

    return term


class Tacotron2Task(Task[Tacotron2TrainConfig, Tacotron2Config, Tacotron2, TextMelDataset, TextMelBatch]):
    name = "tacotron2"
    has_dynamic_shapes = True

    @classmethod
    def complete(cls, config: Tacotron2TrainConfig, dataset: PreparedDataset) -> Tacotron2TrainConfig:
        """Takes the data set's text cleaners if none are given."""
        prepared = dataset.text_cleaners
        if not config.text_cleaners:
            return replace(config, text_cleaners=list(DEFAULT_CLEANERS if prepared is None else prepared))
        if prepared is not None and prepared != config.text_cleaners:
            logger.warning(
                "text cleaners: %s, as given, not %s, with which %s was prepared",
                ", ".join(config.text_cleaners),
                ", ".join(prepared) or "none",
                dataset.folder,
            )
        return config

    def __init__(self, config: Tacotron2TrainConfig, model_config: Tacotron2Config, dataset: PreparedDataset):
        # Here and not in the config: a resumed run may have one of the two from its checkpoint.
        if config.upper_band_weight != 1 and not config.l1_weight:
            raise FastglowError(
                f"upper_band_weight={config.upper_band_weight} weighs the absolute error: pass l1_weight too, or "
                "upper_band_weight=1"
            )
        super().__init__(config, model_config, dataset)
        self.packing = TextMelPacking(model_config.n_frames_per_step)
        self.criterion = Tacotron2Loss(config.gate_positive_weight)
        self.guided_attention = GuidedAttentionLoss(config.guided_attention_sigma)
        self.further_terms: dict[str, tuple[float, LossTerm]] = {
            "guided_attention_loss": (config.guided_attention_weight, self.guided_attention_loss),
            "l1_loss": (config.l1_weight, of_both_mels(partial(l1_loss, upper_band_weight=config.upper_band_weight))),
            "delta_loss": (config.delta_weight, of_both_mels(delta_loss)),
            "ssim_loss": (config.ssim_weight, of_both_mels(ssim_loss)),
        }
        self.lexicon = Lexicon(config.lexicon) if config.lexicon else None

    def trained_with(self) -> TrainedWith:
        lexicon = None
        if self.lexicon is not None and self.config.p_arpabet > 0:
            lexicon = LexiconFile(str(Path(self.config.lexicon).resolve()), self.lexicon.digest)
        return TrainedWith(self.dataset.audio, tuple(self.config.text_cleaners), lexicon, NVIDIA)

    def build_model(self) -> Tacotron2:
        model = Tacotron2(**asdict(self.model_config))
        model.gradient_checkpointing = self.config.gradient_checkpointing
        return model

    def begin(self, model: Tacotron2) -> None:
        if self.config.init_mel_bias:
            items = self.dataset.items["train"][:N_ITEMS]
            mean = np.mean([self.dataset.mel(item).mean(axis=1, dtype=np.float32) for item in items], axis=0)
            bias = torch.from_numpy(mean).repeat(self.model_config.n_frames_per_step)
            with torch.no_grad():
                model.decoder.linear_projection.linear_layer.bias.copy_(bias)

    def for_ranks(self, model: nn.Module, ranks: Ranks) -> nn.Module:
        if not (self.config.sync_batchnorm and ranks.several):
            return model
        if not next(model.parameters()).is_cuda:
            raise FastglowError("sync_batchnorm=True needs GPUs: leave out --sync-batchnorm on a CPU")
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def build_dataset(self, split: str) -> TextMelDataset:
        config = self.config
        # Validation reads as synthesis does: every word of the lexicon as ARPAbet.
        p_arpabet = config.p_arpabet if split == "train" else float(config.p_arpabet > 0)
        dataset = TextMelDataset(self.dataset, split, config.text_cleaners, self.lexicon, p_arpabet, config.seed)
        if self.lexicon is not None and p_arpabet > 0:
            highest = len(symbols) - 1  # the phones that are drawn differ between epochs
        else:
            highest = max((int(dataset.sequence(index).max()) for index in range(len(dataset))), default=0)
        if highest >= self.model_config.n_symbols:
            raise FastglowError(
                f"the texts can have symbol {highest}, the model has n_symbols={self.model_config.n_symbols}: "
                f"use --n-symbols {len(symbols)}"
            )
        return dataset

    def losses(self, model: nn.Module, batch: TextMelBatch) -> dict[str, Tensor]:
        previous = self.drop_frames(batch.mel) if model.training else batch.mel
        lengths = batch.lengths_on_host[0]
        output = model((batch.text, lengths, previous, batch.text.shape[1], batch.output_lengths))
        return self.losses_of(output, batch)

    def losses_of(self, output: list[Tensor], batch: TextMelBatch) -> dict[str, Tensor]:
        losses = {"loss": self.criterion(output, (batch.mel, batch.gate))}
        for name, (weight, term) in self.further_terms.items():
            if weight > 0:
                losses[name] = term(output, batch)
                losses["loss"] = losses["loss"] + weight * losses[name]
        return losses

    def guided_attention_loss(self, output: list[Tensor], batch: TextMelBatch) -> Tensor:
        steps = -(-batch.output_lengths // self.model_config.n_frames_per_step)
        return self.guided_attention(output[3], batch.input_lengths, steps)

    def drop_frames(self, mel: Tensor) -> Tensor:
        """Zeros the previous frames that a decoder step is shown, for each step with probability p_frame_dropout.

        Without this, a decoder learns to extrapolate the previous frames long before it learns to read the text. A
        zero frame is also what the decoder starts from; the prenet, which has no biases, maps it to zeros.
        """
        p, r = self.config.p_frame_dropout, self.model_config.n_frames_per_step
        if p == 0:
            return mel
        steps = mel.shape[2] // r
        kept = torch.rand(mel.shape[0], 1, steps, 1, device=mel.device) >= p
        return (mel.unflatten(2, (steps, r)) * kept).flatten(2)

    @torch.no_grad()
    def sample(self, model: Tacotron2, valset: TextMelDataset) -> Sample:
        index = self.sample_index(valset)
        _, text, mel = valset[index]
        target = mel[:, : self.max_sample_frames]
        device = next(model.parameters()).device
        max_steps = -(-3 * target.shape[1] // (2 * self.model_config.n_frames_per_step))
        with warnings.catch_warnings():
            # Expected early in a training.
            warnings.simplefilter("ignore", DecoderStepLimitWarning)
            predicted, lengths, alignments = model.infer(
                text[None].to(device),
                torch.tensor([len(text)], device=device),
                seed=SAMPLE_SEED,
                max_steps=[max_steps],
            )
        length = max(1, int(lengths[0]))
        predicted = predicted[0, :, :length].float().cpu()
        audio = griffin_lim(predicted, self.dataset.audio, seed=SAMPLE_SEED, power=PREDICTED_POWER).clamp(-1, 1)
        mels = {"predicted": predicted.numpy(), "recorded": target}
        return Sample(audio.numpy(), mels, alignments[0].float().cpu().numpy(), valset.items[index].text)


class WaveGlowTask(Task[WaveGlowTrainConfig, WaveGlowConfig, WaveGlow, SegmentDataset, SegmentBatch]):
    name = "waveglow"
    has_dynamic_shapes = False

    def __init__(self, config: WaveGlowTrainConfig, model_config: WaveGlowConfig, dataset: PreparedDataset):
        super().__init__(config, model_config, dataset)
        if model_config.upsample_stride != dataset.audio.hop_length:
            raise FastglowError(
                f"upsample_stride={model_config.upsample_stride} must equal the data's hop_length="
                f"{dataset.audio.hop_length}: pass --upsample-stride {dataset.audio.hop_length}, or prepare the data "
                f"with --hop-length {model_config.upsample_stride}"
            )
        self.packing = SegmentPacking(config.segment_length, dataset.audio)
        self.passes = bool(config.likelihood_weight) + bool(config.stft_weight)
        if not self.passes:
            raise FastglowError("likelihood_weight=0 and stft_weight=0 leave no loss: raise one of them")
        self.criterion = WaveGlowLoss(config.sigma)
        for split, items in dataset.items.items():
            n_short = sum(item.samples < config.segment_length for item in items)
            if n_short:
                logger.warning(
                    "%d of %d %s clips are shorter than --segment-length %d: their segments are padded with zeros",
                    n_short,
                    len(items),
                    split,
                    config.segment_length,
                )

    def build_model(self) -> WaveGlow:
        model = WaveGlow(**asdict(self.model_config))
        model.memory_saving = self.config.memory_saving
        return model

    def begin(self, model: WaveGlow) -> None:
        if self.config.fit_to_data:
            fit_to_data(model, self.dataset)

    def build_dataset(self, split: str) -> SegmentDataset:
        return SegmentDataset(self.dataset, split, self.config.segment_length, self.config.seed)

    def losses(self, model: nn.Module, batch: SegmentBatch) -> dict[str, Tensor]:
        config = self.config
        inputs = (batch.mel, batch.audio)
        # Both by calls of the model, as DistributedDataParallel asks for.
        flowed = model(inputs) if config.likelihood_weight else None
        made = model(inputs, noise=self._noise(batch.audio)) if config.stft_weight else None
        return self.losses_of((flowed, made), batch)

    def _noise(self, audio: Tensor) -> Tensor:
        n_items, n_samples = audio.shape
        n_group = self.model_config.n_group
        noise = torch.randn(n_items, n_group, n_samples // n_group, device=audio.device)
        return self.config.stft_sigma * noise

    def losses_of(self, output: Any, batch: SegmentBatch) -> dict[str, Tensor]:
        flowed, made = output
        config = self.config
        if made is None:
            return {"loss": config.likelihood_weight * self.criterion(flowed)}
        distance = stft_distance(made, batch.audio[:, : made.shape[1]])
        losses = {"stft_loss": distance.log_magnitude + distance.convergence}
        losses["loss"] = config.stft_weight * losses["stft_loss"]
        if flowed is not None:
            losses["likelihood_loss"] = self.criterion(flowed)
            losses["loss"] = losses["loss"] + config.likelihood_weight * losses["likelihood_loss"]
        return losses

    @torch.no_grad()
    def sample(self, model: WaveGlow, valset: SegmentDataset) -> Sample:
        item = valset.items[self.sample_index(valset)]
        mel = torch.from_numpy(self.dataset.mel(item)[:, : self.max_sample_frames].astype(np.float32))
        device = next(model.parameters()).device
        audio = model.infer(mel[None].to(device), sigma=0.6, seed=SAMPLE_SEED)[0].float().cpu().clamp(-1, 1)
        generated = mel_spectrogram(self.dataset.audio)(audio[None])[0]
        mels = {"generated": generated.numpy(), "recorded": mel.numpy()}
        return Sample(audio.numpy(), mels, None, item.text)


TASKS: dict[str, type[Task]] = {task.name: task for task in (Tacotron2Task, WaveGlowTask)}
