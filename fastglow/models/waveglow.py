"""WaveGlow (Prenger et al. 2018) as NVIDIA published it (DeepLearningExamples, waveglow/model.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.modules import WN, InvertibleConv1x1
from fastglow.modules.bypassing import accepts, may_bypass
from fastglow.modules.convolution import length_mask
from fastglow.modules.module_lists import modules_of_type
from fastglow.modules.parameter_cache import Refreshable

from .seeds import Seeds, item_seeds
from .waveglow_flow import Flow
from .waveglow_rebuilding import can_rebuild, run_flows
from .waveglow_upsampling import Upsample, group

_UPSAMPLE: frozenset[type[nn.Module]] = frozenset({Upsample})


@dataclass
class WaveGlowConfig:
    """Constructor arguments of `WaveGlow`; defaults are the reference's (arg_parser.py).

    The last four are fastglow's. `alternate_halves` is for NVIDIA's oldest checkpoints (`glow_old`): on odd flows the
    coupling transforms the first half instead of the second. `upsample_to_groups`: the mel is upsampled to one frame a
    group of samples instead of one a sample, so that the coupling networks read n_mel_channels instead of
    n_mel_channels * n_group channels. In a small model these are most of the work, and a mel says nothing about single
    samples.
    """

    n_mel_channels: int = 80
    n_flows: int = 12
    n_group: int = 8
    n_early_every: int = 4
    n_early_size: int = 2
    WN_config: dict[str, int] = field(default_factory=lambda: {"n_layers": 8, "n_channels": 512, "kernel_size": 3})
    upsample_kernel_size: int = 1024
    upsample_stride: int = 256
    alternate_halves: bool = False
    upsample_to_groups: bool = False

    def __post_init__(self) -> None:
        if self.n_group % 2 or self.n_early_size % 2:
            raise FastglowError(
                f"n_group={self.n_group} and n_early_size={self.n_early_size} must both be even: "
                "the coupling splits the channels in halves"
            )
        if self.n_early_every < 1:
            raise FastglowError(f"n_early_every={self.n_early_every} must be at least 1")
        if self.n_remaining_channels < 2:
            raise FastglowError(
                f"n_flows={self.n_flows} with n_early_every={self.n_early_every} and n_early_size={self.n_early_size} "
                f"leaves no channels of n_group={self.n_group}: use fewer or smaller early outputs"
            )
        if self.upsample_kernel_size < self.upsample_stride or self.upsample_stride % self.n_group:
            raise FastglowError(
                f"upsample_stride={self.upsample_stride} must be a multiple of n_group={self.n_group} "
                f"and at most upsample_kernel_size={self.upsample_kernel_size}"
            )
        if self.upsample_to_groups and self.upsample_kernel_size % self.n_group:
            raise FastglowError(
                f"upsample_kernel_size={self.upsample_kernel_size} must be a multiple of n_group={self.n_group} "
                "with upsample_to_groups"
            )

    def is_early(self, flow: int) -> bool:
        """Whether channels leave (forward) or enter (inverse) at this flow."""
        return flow > 0 and flow % self.n_early_every == 0

    @property
    def n_remaining_channels(self) -> int:
        """Number of channels that pass through every flow."""
        return self.n_group - self.n_early_size * sum(self.is_early(k) for k in range(self.n_flows))

    @property
    def frames_per_group(self) -> int:
        """Frames of the upsampled mel over a group of samples."""
        return 1 if self.upsample_to_groups else self.n_group


def _log_dets(flows: Sequence[Flow], audio: Tensor) -> Sequence[Tensor | None]:
    """log|det W| of every flow, a scalar, at once; None where the convolution must compute it."""
    if all(
        isinstance(flow.convinv, InvertibleConv1x1) and accepts(flow.convinv, InvertibleConv1x1, audio, log_det=audio)
        for flow in flows
    ):
        _, found = kernels.invertible_conv1x1_factors([flow.convinv.conv.weight for flow in flows])
        return [found[k] for k in range(len(flows))]
    return [None] * len(flows)


class WaveGlow(Refreshable):
    """Mel spectrogram to audio. Arguments: `WaveGlowConfig`. state_dict keys: DeepLearningExamples'.

    Call `refresh()` after writing weights through `parameter.data` or with a replayed CUDA graph.

    Attributes:
        memory_saving: `forward` stores the activations of one flow only: the backward pass rebuilds those of the others
            (`waveglow_rebuilding.run_flows` says how exactly). The gradients are the same to rounding. May be set at
            any time; neither the config nor the state_dict has it.
    """

    memory_saving: bool = False

    def __init__(self, *args: Any, **kw: Any):
        super().__init__()
        config = WaveGlowConfig(*args, **kw)
        self.config = config
        width = config.n_group // config.frames_per_group  # samples under a frame of the upsampled mel
        self.upsample = Upsample(
            config.n_mel_channels, config.upsample_kernel_size // width, config.upsample_stride // width
        )
        self.WN = nn.ModuleList()
        self.convinv = nn.ModuleList()
        n_channels = config.n_group
        for k in range(config.n_flows):
            if config.is_early(k):
                n_channels -= config.n_early_size
            self.convinv.append(InvertibleConv1x1(n_channels))
            self.WN.append(WN(n_channels // 2, config.n_mel_channels * config.frames_per_group, **config.WN_config))

    @staticmethod
    def remove_weightnorm(model: "WaveGlow") -> "WaveGlow":
        """The same model, whose coupling networks now have plain weights, as in NVIDIA's code. Twice is once."""
        for wn in modules_of_type(WN, model.WN):
            wn.remove_weight_norm()
        return model

    @property
    def n_mel_channels(self) -> int:
        return self.config.n_mel_channels

    @property
    def n_flows(self) -> int:
        return self.config.n_flows

    @property
    def n_group(self) -> int:
        return self.config.n_group

    @property
    def n_early_every(self) -> int:
        return self.config.n_early_every

    @property
    def n_early_size(self) -> int:
        return self.config.n_early_size

    @property
    def n_remaining_channels(self) -> int:
        return self.config.n_remaining_channels

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Mel frames before and after a frame that its audio depends on."""
        config, wn = self.config, self.config.WN_config
        groups = config.n_flows * (2 ** wn["n_layers"] - 1) * (wn["kernel_size"] // 2)
        after = ceil(groups * config.n_group / config.upsample_stride)
        return after + ceil(config.upsample_kernel_size / config.upsample_stride) - 1, after

    @property
    def _flows(self) -> list[Flow]:
        config = self.config
        modules = zip(modules_of_type(InvertibleConv1x1, self.convinv), modules_of_type(WN, self.WN), strict=True)
        return [
            Flow(convinv, wn, config.n_early_size * config.is_early(k), config.alternate_halves and k % 2 == 1)
            for k, (convinv, wn) in enumerate(modules)
        ]

    def forward(
        self, forward_input: tuple[Tensor, Tensor], noise: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]] | Tensor:
        """Audio to noise, for training.

        Args:
            forward_input: (mel [B, n_mel_channels, frames], audio [B, N] in [-1, 1]); the upsampled mel must cover the
                audio. Samples past the last complete group of n_group are dropped.
            noise: [B, n_group, T]; the result is then `generate(mel, noise)`, of a module that
                DistributedDataParallel has wrapped, too.

        Returns:
            (z [B, n_group, N / n_group], log s of every flow, each [B, n_half, N / n_group], log|det W|
            of every flow times B * N / n_group, each a scalar).

        Raises:
            FastglowError: the mel is too short for the audio, or the audio for one group.
        """
        mel, audio = forward_input
        if noise is not None:
            return self.generate(mel, noise)
        if not audio.shape[0] or audio.shape[1] < self.config.n_group:
            raise FastglowError(
                f"audio has shape {list(audio.shape)}, must be [B, N] with B > 0, N >= {self.config.n_group}"
            )
        spect = self._grouped_spect(mel, audio.shape[1])
        audio = group(audio.unsqueeze(1), self.config.n_group)
        flows = self._flows
        if self.memory_saving and can_rebuild():
            return run_flows(flows, audio, spect, _log_dets)
        early_outputs, log_s_list, log_det_list = [], [], []
        for flow, log_det in zip(flows, _log_dets(flows, audio), strict=True):
            if flow.n_early:
                early_outputs.append(audio[:, : flow.n_early])
                audio = audio[:, flow.n_early :]
            audio, log_det = flow.mix(audio, log_det)
            kept, changed = flow.split(audio)
            changed, log_s = kernels.affine_coupling(changed, flow.wn(kept, spect))
            audio = flow.join(kept, changed)
            log_s_list.append(log_s)
            log_det_list.append(log_det)
        return torch.cat([*early_outputs, audio], dim=1), log_s_list, log_det_list

    def generate(self, mel: Tensor, noise: Tensor) -> Tensor:
        """Noise to audio, differentiable, in batches without padding; `infer` is faster.

        Args:
            mel: [B, n_mel_channels, frames], which must cover the noise.
            noise: [B, n_group, T], in `infer`'s order, times its standard deviation.

        Returns:
            audio [B, T * n_group].

        Raises:
            FastglowError: shapes that do not fit.
        """
        config = self.config
        if noise.dim() != 3 or noise.shape[:2] != (len(mel), config.n_group) or not noise.numel():
            raise FastglowError(
                f"noise has shape {list(noise.shape)}, must be {[len(mel), config.n_group]} + [T], T > 0"
            )
        spect = self._grouped_spect(mel, noise.shape[2] * config.n_group)
        audio, unused = noise[:, : config.n_remaining_channels], noise[:, config.n_remaining_channels :]
        for flow in reversed(self._flows):
            kept, changed = flow.split(audio)
            changed = kernels.affine_coupling_inverse(changed, flow.wn(kept, spect))
            with backend.without_autocast(changed):  # rounding between flows is heard
                audio = flow.unmix(flow.join(kept, changed))
            if flow.n_early:
                audio, unused = torch.cat((unused[:, : flow.n_early], audio), dim=1), unused[:, flow.n_early :]
        return audio.transpose(1, 2).flatten(1)

    def _grouped_spect(self, mel: Tensor, n_samples: int) -> Tensor:
        """The upsampled mel of complete groups of samples, [B, n_mel_channels * frames_per_group, n_samples //
        n_group]."""
        config = self.config
        on_references = mel.is_cpu and not backend.traced() and not backend.picks_triton("wavenet_layer", mel)
        fits = n_samples <= mel.shape[2] * config.upsample_stride
        n_groups = n_samples // config.n_group
        if on_references and fits and may_bypass((self.upsample,), _UPSAMPLE):
            return self.upsample.grouped(mel, config.frames_per_group)[:, :, :n_groups]
        spect = self.upsample(mel)
        covered = spect.shape[2] * config.n_group // config.frames_per_group
        if covered < n_samples:
            raise FastglowError(
                f"a mel of {mel.shape[2]} frames covers {covered} samples, the audio has {n_samples}: "
                "cut the audio or pass a longer mel"
            )
        return group(spect[:, :, : n_groups * config.frames_per_group], config.frames_per_group)

    @torch.no_grad()
    def infer(
        self,
        mel: Tensor,
        sigma: float = 1.0,
        *,
        lengths: Tensor | None = None,
        noise: Tensor | None = None,
        seed: Seeds = None,
        first_frame: int | Tensor = 0,
    ) -> Tensor:
        """Mel spectrogram to audio. Every item gets the same result as alone, in float32 to 1e-5 of full scale.

        Args:
            mel: log-mel, [B, n_mel_channels, T]; float32 also for a bfloat16 model on a CPU, which is more exact then.
            sigma: standard deviation of the noise.
            lengths: mel frames of each item, [B]; None: all have T. Values outside 0 to T are clamped if they are on a
                GPU, and an error elsewhere.
            noise: standard normal values, [B, n_group, T * upsample_stride / n_group]: first the channels that pass
                through every flow, then the early ones in the order in which they enter.
            seed: of the noise, one for all items or one per item; None: drawn from PyTorch's generator.
            first_frame: where the mel begins in its utterance, one for all items or [B] int64: a part of an utterance
                gets the noise that it has in the whole, and away from its ends, by `receptive_field`, the same audio.

        Returns:
            audio [B, T * upsample_stride], zero past the end of each item.

        Raises:
            FastglowError: shapes or lengths that do not fit, or both noise and seed given.
        """
        config = self.config
        if mel.dim() != 3 or mel.shape[1] != config.n_mel_channels or 0 in mel.shape:
            raise FastglowError(
                f"mel has shape {list(mel.shape)}, must be [B, {config.n_mel_channels}, T] with B and T > 0"
            )
        batch_size, _, n_frames = mel.shape
        n_groups = n_frames * config.upsample_stride // config.n_group
        groups = None
        if lengths is not None:
            fitting = lengths.shape == (batch_size,)
            if fitting and not lengths.is_cuda:  # reading them from a GPU would be a host sync
                fitting = 0 <= int(lengths.min()) <= int(lengths.max()) <= n_frames
            if not fitting:
                raise FastglowError(
                    f"lengths={lengths.tolist()} must have one value from 0 to T per item of the mel {list(mel.shape)}"
                )
            lengths = lengths.to(mel.device).clamp(0, n_frames)
            groups = lengths * config.upsample_stride // config.n_group
            mel = mel.masked_fill(~length_mask(lengths, n_frames).unsqueeze(1), 0.0)
        if noise is None:
            seeds = item_seeds(seed, batch_size, mel.device)
            first_group = first_frame * (config.upsample_stride // config.n_group)
            noise = kernels.normal_noise(seeds, 0, first_group, n_groups, config.n_group).transpose(1, 2)
        elif seed is not None:
            raise FastglowError(f"both noise and seed={seed} are given: pass one of them")
        elif noise.shape != (batch_size, config.n_group, n_groups):
            raise FastglowError(
                f"noise has shape {list(noise.shape)}, must be {[batch_size, config.n_group, n_groups]} for this mel"
            )
        noise = sigma * noise.to(mel.dtype)

        if may_bypass((self.upsample,), _UPSAMPLE):
            spect = self.upsample.grouped(mel, config.frames_per_group)
        else:
            n_spect = n_groups * config.frames_per_group
            spect = group(self.upsample(mel)[:, :, :n_spect], config.frames_per_group)
        audio, unused = noise[:, : config.n_remaining_channels], noise[:, config.n_remaining_channels :]
        for flow in reversed(self._flows):
            kept, changed = flow.split(audio)
            entering = None
            if flow.n_early:
                entering, unused = unused[:, : flow.n_early], unused[:, flow.n_early :]
            b_log_s = flow.wn(kept, spect) if groups is None else flow.wn(kept, spect, lengths=groups)
            if flow.plainly_mixes:
                audio = kernels.flow_step_inverse(
                    kept, changed, b_log_s, flow.convinv.inverse(), entering, swap=flow.swap
                )
            else:
                audio = flow.unmix(flow.join(kept, kernels.affine_coupling_inverse(changed, b_log_s)))
                audio = audio if entering is None else torch.cat((entering, audio), dim=1)
        if groups is not None:
            audio = audio.masked_fill(~length_mask(groups, n_groups).unsqueeze(1), 0.0)
        return audio.transpose(1, 2).reshape(batch_size, -1)
