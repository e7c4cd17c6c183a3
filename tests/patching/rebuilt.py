"""Other people's modules, rebuilt from what is documented of them: names, signatures and results."""

import warnings

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm as parametrized_weight_norm


def weight_norm(conv, name="weight", dim=0):
    """torch.nn.utils.weight_norm, by a hook, as most published code has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(conv, name, dim)


def gate(a, b, n_channels):
    """commons.fused_add_tanh_sigmoid_multiply."""
    n, total = int(n_channels[0]), a + b
    return total[:, :n].tanh() * total[:, n:].sigmoid()


class VitsStyleWN(nn.Module):
    """modules.WN of jaywalnut310's VITS (dropout after the gate) or Glow-TTS (before it)."""

    gate = staticmethod(gate)

    def __init__(
        self, channels=6, kernel_size=3, dilation_rate=2, n_layers=3, gin_channels=0, p_dropout=0.0,
        drops_before=False, norm=weight_norm,
    ):  # fmt: skip
        super().__init__()
        self.hidden_channels, self.n_layers, self.drops_before = channels, n_layers, drops_before
        self.drop = nn.Dropout(p_dropout)
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        if gin_channels:
            self.cond_layer = norm(nn.Conv1d(gin_channels, 2 * channels * n_layers, 1))
        for i in range(n_layers):
            dilation = dilation_rate**i
            padding = dilation * (kernel_size - 1) // 2
            conv = nn.Conv1d(channels, 2 * channels, kernel_size, dilation=dilation, padding=padding)
            self.in_layers.append(norm(conv))
            rows = channels if i == n_layers - 1 else 2 * channels
            self.res_skip_layers.append(norm(nn.Conv1d(channels, rows, 1)))

    def forward(self, x, x_mask=None, g=None, **kwargs):
        output, mask = torch.zeros_like(x), 1.0 if x_mask is None else x_mask
        conditioning = None if g is None else self.cond_layer(g)
        for i in range(self.n_layers):
            a = self.in_layers[i](x)
            if self.drops_before:
                a = self.drop(a)
            width = 2 * self.hidden_channels
            b = torch.zeros_like(a) if g is None else conditioning[:, i * width : (i + 1) * width]
            acts = self.gate(a, b, torch.IntTensor([self.hidden_channels]))
            if not self.drops_before:
                acts = self.drop(acts)
            res_skip = self.res_skip_layers[i](acts)
            if i < self.n_layers - 1:
                x = (x + res_skip[:, : self.hidden_channels]) * mask
                res_skip = res_skip[:, self.hidden_channels :]
            output = output + res_skip
        return output * mask


class DiffSingerOrderWN(VitsStyleWN):
    """The same names; the sigmoid is of the first half."""

    @staticmethod
    def gate(a, b, n_channels):
        first, second = (a + b).chunk(2, 1)
        return first.sigmoid() * second.tanh()


class TransformersWN(VitsStyleWN):
    """VitsWaveNet of transformers."""

    def forward(self, inputs, padding_mask, global_conditioning=None):
        return super().forward(inputs, padding_mask, global_conditioning)


class WaveGlowWN(nn.Module):
    """WN of NVIDIA/waveglow (one cond_layer, one tuple) or DeepLearningExamples (cond_layers, two arguments)."""

    def __init__(self, n_in=2, n_mel=5, n_layers=3, n_channels=6, kernel_size=3, norm=weight_norm, one_cond=True):
        super().__init__()
        self.n_layers, self.n_channels = n_layers, n_channels
        self.start, self.end = norm(nn.Conv1d(n_in, n_channels, 1)), nn.Conv1d(n_channels, 2 * n_in, 1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        if one_cond:
            self.cond_layer = norm(nn.Conv1d(n_mel, 2 * n_channels * n_layers, 1))
        else:
            self.cond_layers = nn.ModuleList(norm(nn.Conv1d(n_mel, 2 * n_channels, 1)) for _ in range(n_layers))
        for i in range(n_layers):
            padding = 2**i * (kernel_size - 1) // 2
            self.in_layers.append(norm(nn.Conv1d(n_channels, 2 * n_channels, kernel_size, 1, padding, 2**i)))
            self.res_skip_layers.append(norm(nn.Conv1d(n_channels, n_channels * (1 + (i < n_layers - 1)), 1)))

    def conditioning(self, spect, i):
        if hasattr(self, "cond_layers"):
            return self.cond_layers[i](spect)
        return self.cond_layer(spect).chunk(self.n_layers, 1)[i]

    def run(self, audio, spect):
        h, output = self.start(audio), 0.0
        for i in range(self.n_layers):
            acts = gate(self.in_layers[i](h), self.conditioning(spect, i), [self.n_channels])
            res_skip = self.res_skip_layers[i](acts)
            if i < self.n_layers - 1:
                h, res_skip = h + res_skip[:, : self.n_channels], res_skip[:, self.n_channels :]
            output = output + res_skip
        return self.end(output)


class TupleWN(WaveGlowWN):
    def forward(self, forward_input):
        return self.run(*forward_input)


class TwoArgumentsWN(WaveGlowWN):
    def forward(self, audio, spect):
        return self.run(audio, spect)


def rotation(c):
    """With determinant 1, as the published modules start."""
    q = torch.linalg.qr(torch.randn(c, c))[0]
    return q * torch.where(torch.arange(c) == 0, torch.linalg.det(q).sign(), 1.0)


class InvertibleOfWaveGlow(nn.Module):
    """Invertible1x1Conv of NVIDIA/waveglow: keeps the inverse."""

    def __init__(self, c=4):
        super().__init__()
        self.conv = nn.Conv1d(c, c, 1, bias=False)
        self.conv.weight.data = rotation(c).unsqueeze(2)

    def forward(self, z, reverse=False):
        weight = self.conv.weight.squeeze()
        if reverse:
            if not hasattr(self, "W_inverse"):
                self.W_inverse = weight.float().inverse().unsqueeze(2).to(z.dtype)
            return nn.functional.conv1d(z, self.W_inverse)
        return self.conv(z), z.shape[0] * z.shape[2] * torch.logdet(weight.float())


class InvertibleOfExamples(InvertibleOfWaveGlow):
    """Invertible1x1Conv of DeepLearningExamples: `infer` is a method."""

    def forward(self, z):
        return super().forward(z)

    def infer(self, z):
        return InvertibleOfWaveGlow.forward(self, z, reverse=True)


class InvertibleOfRadTTS(InvertibleOfWaveGlow):
    """Invertible1x1Conv of RAD-TTS: the log-determinant of the matrix alone."""

    def forward(self, z, inverse=False):
        if inverse:
            return nn.functional.conv1d(z, self.conv.weight.squeeze().float().inverse().unsqueeze(2))
        return self.conv(z), torch.logdet(self.conv.weight.squeeze())


class InvertibleLUS(nn.Module):
    """Invertible1x1ConvLUS of RAD-TTS."""

    def __init__(self, c=4):
        super().__init__()
        p, lower, upper = torch.linalg.lu(rotation(c))
        self.register_buffer("p", p)
        self.register_buffer("lower_diag", torch.ones(c))
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.upper_diag = nn.Parameter(upper.diag())

    def forward(self, z, inverse=False):
        lower = self.lower.tril(-1) + torch.diag(self.lower_diag)
        weight = self.p @ lower @ (self.upper.triu(1) + torch.diag(self.upper_diag))
        if inverse:
            return nn.functional.conv1d(z, weight.float().inverse().unsqueeze(2))
        return nn.functional.conv1d(z, weight.unsqueeze(2)), self.upper_diag.abs().log().sum()


class InvConvNear(nn.Module):
    """InvConvNear of Glow-TTS and coqui."""

    def __init__(self, channels=8, num_splits=4, no_jacobian=False):
        super().__init__()
        self.channels, self.num_splits, self.no_jacobian, self.weight_inv = channels, num_splits, no_jacobian, None
        self.weight = nn.Parameter(rotation(num_splits))

    def forward(self, x, x_mask=None, reverse=False, **kwargs):
        b, c, t = x.shape
        n = self.num_splits
        lengths = torch.full((b,), float(t)) if x_mask is None else x_mask.sum((1, 2))
        x = x.view(b, 2, c // n, n // 2, t).permute(0, 1, 3, 2, 4).reshape(b, n, c // n, t)
        weight, logdet = self.weight, None
        if reverse:
            weight = self.weight.float().inverse() if self.weight_inv is None else self.weight_inv
        else:
            logdet = 0 if self.no_jacobian else torch.logdet(weight.float()) * (c / n) * lengths
        z = nn.functional.conv2d(x, weight.view(n, n, 1, 1))
        z = z.view(b, 2, n // 2, c // n, t).permute(0, 1, 3, 2, 4).reshape(b, c, t)
        return z if x_mask is None else z * x_mask, logdet

    def store_inverse(self):
        self.weight_inv = nn.Parameter(self.weight.float().inverse().to(self.weight.dtype), requires_grad=False)


NORMS = {"hook": weight_norm, "parametrization": parametrized_weight_norm, "plain": lambda conv: conv}
