"""Options of a training run, which `fastglow train` takes from the command line and saves in every checkpoint.

Names and defaults are DeepLearningExamples' where its train.py has the option.
"""

from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any

from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config, WaveGlowConfig

BATCH_SIZE = "Batch size, of each GPU or process."

ModelConfig = Tacotron2Config | WaveGlowConfig

# The entries of WN_config as command-line options: flag and help.
WN_OPTIONS = {
    "n_layers": ("--wn-layers", "Layers in a coupling network."),
    "n_channels": ("--wn-channels", "Channels in a coupling network."),
    "kernel_size": ("--wn-kernel-size", "Kernel size of the dilated convolutions."),
}


def flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config's fields, with the entries of WN_config as "WN_config.n_layers"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def flags(values: dict[str, Any]) -> str:
    """Fields of `flat_config` as command-line options."""
    parts: list[str] = []
    for name, value in values.items():
        prefix, _, key = name.rpartition(".")
        flag = WN_OPTIONS[key][0] if prefix == "WN_config" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        else:
            parts += [f"{flag} {entry}" for entry in (value if isinstance(value, list) else [value])]
    return " ".join(parts)


def option(default: Any, help: str, *aliases: str, choices: tuple[str, ...] = (), alone: str = "") -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        choices: the values that a string may have; none: any.
        alone: the value of the option without one.
    """
    metadata = {"help": help, "aliases": aliases, "choices": choices, "alone": alone}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """Options that both models share."""

    data: str
    out: str
    epochs: int = option(1501, "Number of total epochs to run.")
    batch_size: int = option(48, BATCH_SIZE, "-bs")
    accumulate: int = option(1, "Passes whose gradients are added for one update; multiplies the batch.")
    learning_rate: float = option(1e-3, "Learning rate.", "-lr")
    weight_decay: float = option(1e-6, "Weight decay of Adam.")
    grad_clip_thresh: float = option(1.0, "Largest norm of the gradient.")
    warmup: int = option(0, "Updates over which the learning rate rises linearly from 0.")
    anneal_steps: list[int] = option([], "Epoch after which to decrease the learning rate (repeatable).")
    anneal_factor: float = option(0.1, "Factor of each decrease; 0.3 alternates 0.3 and 0.1/0.3 as NVIDIA's does.")
    ema: float = option(
        0.0,
        "Decay of a moving average of the weights, such as 0.999, which validation and export use; 0: off.",
    )
    amp: str = option(
        "off",
        "Mixed precision: off, bf16, or fp16 with loss scaling; --amp alone: fp16 on a GPU, bf16 on a CPU.",
        choices=("off", "bf16", "fp16", "auto"),
        alone="auto",
    )
    tf32: bool = option(False, "Let a GPU round float32 to TF32 in matrix products and convolutions.")
    loss_scale: str = option("dynamic", "Scale of the loss under fp16: dynamic, or a number that stays.")
    init_loss_scale: float = option(65536.0, "Where a dynamic loss scale begins.")
    max_skipped: int = option(
        100,
        "Stop after more than this many updates in a row that fp16 skipped, as gradients were not finite; 0: never.",
    )
    seed: int = option(1234, "Seed of weights, shuffling, segments and dropout.")
    device: str = option(
        "",
        "Device to train on: cpu, cuda, or one GPU such as cuda:0; default: cuda if there is one.",
    )
    init_from: str = option(
        "",
        "Checkpoint of any published format whose weights to start from (fine-tuning); the rows of its embedding "
        "are assigned to the same symbols.",
    )
    ignore_layers: list[str] = option(
        [],
        "Layer that --init-from does not load, such as embedding.weight or decoder.prenet (repeatable).",
    )
    checkpoint_path: str = option("", "Training checkpoint to resume from.")
    resume: bool = option(False, "Resume from the newest valid checkpoint in the output folder.", "--resume-from-last")
    use_saved_learning_rate: bool = option(False, "Keep the checkpoint's learning rate when resuming.")
    epochs_per_checkpoint: int = option(50, "Epochs between checkpoints.")
    iters_per_checkpoint: int = option(0, "Iterations between additional checkpoints; 0: none.")
    keep_checkpoints: int = option(0, "How many of the newest checkpoints to keep; 0: all.")
    keep_best: bool = option(True, "Also keep the checkpoint with the lowest validation loss, checkpoint_best.pt.")
    max_iterations: int = option(0, "Stop after this many iterations in total; 0: no limit.")
    epochs_per_validation: int = option(1, "Epochs between validations.")
    validations_per_sample: int = option(
        10, "Validations between samples, from the first one on: a picture and at most 15 s of audio."
    )
    keep_samples: int = option(20, "How many of the newest samples to keep in OUT/samples; 0: all. OUT/logs keeps all.")
    bucket_batches: int = option(0, "Sort the shuffled items of this many batches by length, for less padding; 0: off.")
    num_workers: int = option(1, "Processes that load data; 0: the training process loads it.")
    uniform_initialize_bn_weight: bool = option(
        True, "Draw the initial batch-norm weights from [0, 1).", " /--disable-uniform-initialize-bn-weight"
    )
    cudnn_benchmark: bool = option(False, "Let cuDNN select its algorithms by timing them.")
    log_interval: int = option(
        0,
        "Updates after which the program looks at what the device computed: it then logs each of them, and notices "
        "losses that are not finite; 0: 10 on a GPU, 1 on a CPU.",
    )
    cuda_graph: bool = option(False, "Launch a whole update of WaveGlow as one CUDA graph; for one GPU.")
    compile: bool = option(False, "Compile forward pass and losses with torch.compile.")
    tensorboard: bool = option(True, "Write TensorBoard logs to OUT/logs.")
    profile: int = option(0, "Write a trace of this many updates to OUT/profile; 0: off.")

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "init_loss_scale",
            "learning_rate",
            "epochs_per_checkpoint",
            "epochs_per_validation",
            "validations_per_sample",
        ):
            if not getattr(self, name) > 0:  # NaN fails too
                raise FastglowError(f"{name}={getattr(self, name)} must be positive")
        for name in (
            "num_workers",
            "weight_decay",
            "grad_clip_thresh",
            "anneal_factor",
            "seed",
            "keep_samples",
            "iters_per_checkpoint",
            "warmup",
            "max_skipped",
            "profile",
            "log_interval",
        ):
            if not getattr(self, name) >= 0:
                raise FastglowError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.ema < 1:
            raise FastglowError(f"ema={self.ema} must be at least 0 and below 1, such as 0.999")
        if self.loss_scale != "dynamic" and not _is_positive(self.loss_scale):
            raise FastglowError(f"loss_scale={self.loss_scale} must be dynamic or a positive number of float32")
        if not _is_positive(self.init_loss_scale):
            raise FastglowError(f"init_loss_scale={self.init_loss_scale} must be finite and not 0 in float32")
        for f in fields(self):
            choices = f.metadata.get("choices")
            if choices and getattr(self, f.name) not in choices:
                raise FastglowError(f"{f.name}={getattr(self, f.name)} must be one of {', '.join(choices)}")
        if self.seed >= 2**63:
            raise FastglowError(f"seed={self.seed} does not fit in 64 bits: use a smaller one")
        if self.ignore_layers and not self.init_from:
            raise FastglowError(f"ignore_layers={', '.join(self.ignore_layers)} needs init_from: pass both, or neither")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def learning_rate_at(self, epoch: int, iteration: int) -> float:
        """Learning rate of the update after `iteration` others, in an epoch (0-based)."""
        passed = sum(epoch >= step for step in self.anneal_steps)
        rate = self.learning_rate * min(1.0, (iteration + 1) / max(1, self.warmup))
        if self.anneal_factor == 0.3:  # 1, 0.3, 0.1, 0.03, 0.01, ...
            return rate * 0.1 ** (passed // 2) * (0.3 if passed % 2 else 1.0)
        return rate * self.anneal_factor**passed


def _is_positive(number: str | float) -> bool:
    """Whether it is a positive number of float32, with all its digits."""
    try:
        return 2.0**-126 <= float(number) < 2.0**128
    except ValueError:
        return False


@dataclass
class Tacotron2TrainConfig(TrainConfig):
    """Options of Tacotron 2's training."""

    text_cleaners: list[str] = option(
        [], "Text cleaner (repeatable). Default: those with which the data set was prepared, else english_cleaners."
    )
    lexicon: str = option(
        "", "File of pronunciations in CMUdict's format; its words are read as ARPAbet.", "--cmudict-path"
    )
    p_arpabet: float = option(
        1.0, "Probability that a word of the lexicon is read as ARPAbet and not as letters; drawn in every epoch."
    )
    p_frame_dropout: float = option(
        0.0,
        "Probability that a decoder step is shown zeros instead of the previous frames, so that it must read the text.",
    )
    init_mel_bias: bool = option(
        False, "Initialise the output's bias with the data's mean mel, which training otherwise takes long to find."
    )
    gate_positive_weight: float = option(
        1.0, "Weight of the stop gate's positive targets; with --mask-padding a clip has one: 5 to 10 help."
    )
    gradient_checkpointing: bool = option(
        False, "Store fewer activations: the backward pass recomputes encoder and postnet, with the same results."
    )
    sync_batchnorm: bool = option(False, "Normalise over the batches of all GPUs, not over each alone.")
    guided_attention_weight: float = option(0.0, "Weight of the guided-attention loss; 0: off.")
    guided_attention_sigma: float = option(0.2, "Width of the band that the guided-attention loss leaves free.")
    l1_weight: float = option(0.0, "Weight of the mels' absolute error, beside the squared one; 0: off.")
    upper_band_weight: float = option(
        1.0, "Weight in the absolute error of the highest mel channel; the others' fall linearly to 1 in the lowest."
    )
    delta_weight: float = option(0.0, "Weight of the absolute error of differences between frames; 0: off.")
    ssim_weight: float = option(0.0, "Weight of the mels' lack of structural similarity (SSIM); 0: off.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p_arpabet <= 1:
            raise FastglowError(f"p_arpabet={self.p_arpabet} must be between 0 and 1")
        if not 0 <= self.p_frame_dropout < 1:
            raise FastglowError(f"p_frame_dropout={self.p_frame_dropout} must be at least 0 and below 1")
        for name in ("guided_attention_weight", "l1_weight", "upper_band_weight", "delta_weight", "ssim_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise FastglowError(f"{name}={getattr(self, name)} must be finite and not negative")


@dataclass
class WaveGlowTrainConfig(TrainConfig):
    """Options of WaveGlow's training."""

    batch_size: int = option(10, BATCH_SIZE, "-bs")
    learning_rate: float = option(1e-4, "Learning rate.", "-lr")
    epochs: int = option(1001, "Number of total epochs to run.")
    segment_length: int = option(4000, "Samples of audio in one item.")
    sigma: float = option(1.0, "Standard deviation of the noise that the audio is mapped to.")
    likelihood_weight: float = option(1.0, "Weight of the negative log-likelihood; 0: off, with --stft-weight.")
    stft_weight: float = option(
        0.0,
        "Weight of the STFT distance between the audio and what the model makes of its mel and noise; 0: off.",
    )
    stft_sigma: float = option(0.6, "Standard deviation of that noise.")
    fit_to_data: bool = option(
        False,
        "Begin with weights that interpolate normalised mels and scale the audio to variance 1, which training "
        "otherwise takes long to find.",
    )
    memory_saving: bool = option(
        False, "Store the activations of one flow only: the backward pass rebuilds the others, in a third more time."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("likelihood_weight", "stft_weight", "stft_sigma"):
            if not 0 <= getattr(self, name) < inf:
                raise FastglowError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.segment_length <= 0:
            raise FastglowError(f"segment_length={self.segment_length} must be positive")
