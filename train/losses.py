"""Training losses of Tacotron 2 and WaveGlow (loss_function.py in NVIDIA's tacotron2/ and waveglow/)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.errors import FastglowError
from fastglow.modules.convolution import length_mask


class Tacotron2Loss(nn.Module):
    """Squared error of the mels before and after the postnet, plus cross entropy of the stop gate.

    Args:
        gate_positive_weight: weight of the gate's few positive targets; 1 in the reference.
    """

    def __init__(self, gate_positive_weight: float = 1.0):
        super().__init__()
        self.gate_positive_weight = gate_positive_weight

    def forward(self, model_output: list[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss, padding included, as in the reference.

        Args:
            model_output: [mel, mel_postnet, gate, alignments] of `Tacotron2.forward`.
            targets: (mel [B, n_mel_channels, T], gate [B, T], 1 from an item's last frame on). A model with several
                frames per step has one gate per step; its target is the maximum over the step's frames.

        Returns:
            scalar.
        """
        mel, mel_postnet, gate, _ = model_output
        mel_target, gate_target = targets
        if gate_target.shape[1] % gate.shape[1]:
            raise FastglowError(
                f"{gate_target.shape[1]} gate targets for {gate.shape[1]} decoder steps: pad to n_frames_per_step"
            )
        gate_target = gate_target.unflatten(1, (gate.shape[1], -1)).amax(dim=2)
        return (
            F.mse_loss(mel, mel_target)
            + F.mse_loss(mel_postnet, mel_target)
            + F.binary_cross_entropy_with_logits(
                gate, gate_target, pos_weight=gate.new_full((), self.gate_positive_weight)
            )
        )


class WaveGlowLoss(nn.Module):
    """Negative log-likelihood of the audio, per sample, without the constant (Prenger et al. 2018, equation 3)."""

    def __init__(self, sigma: float = 1.0):
        super().__init__()
        self.sigma = sigma

    def forward(
        self,
        model_output: tuple[Tensor, list[Tensor], list[Tensor]],
        targets: object = None,
    ) -> Tensor:
        """Scalar loss of the output of `WaveGlow.forward`; `targets` is unused, as in the reference."""
        z, log_s_list, log_det_list = model_output
        log_det = sum(log_s.sum() for log_s in log_s_list) + sum(log_det_list)
        return (z.square().sum() / (2 * self.sigma**2) - log_det) / z.numel()


class GuidedAttentionLoss(nn.Module):
    """Penalty on attention far from the diagonal (Tachibana et al. 2018, section 4.1).

    Args:
        g: width of the band around the diagonal without penalty, as a fraction of the length.
    """

    def __init__(self, g: float = 0.2):
        super().__init__()
        self.g = g

    def forward(self, alignments: Tensor, input_lengths: Tensor, output_steps: Tensor) -> Tensor:
        """Mean over the items, without their padding.

        Args:
            alignments: [B, T, T_in]; input_lengths: [B] symbols; output_steps: [B] decoder steps.

        Returns:
            scalar.
        """
        _, max_steps, max_inputs = alignments.shape
        steps = torch.arange(max_steps, device=alignments.device) / output_steps.unsqueeze(1)  # [B, T]
        inputs = torch.arange(max_inputs, device=alignments.device) / input_lengths.unsqueeze(1)  # [B, T_in]
        distance = inputs.unsqueeze(1) - steps.unsqueeze(2)  # [B, T, T_in]
        penalty = 1 - torch.exp(-distance.square() / (2 * self.g**2))
        inside = length_mask(output_steps, max_steps).unsqueeze(2) & length_mask(input_lengths, max_inputs).unsqueeze(1)
        return torch.where(inside, alignments * penalty, 0.0).sum() / inside.sum()
