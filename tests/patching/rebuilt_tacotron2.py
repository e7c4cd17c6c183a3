"""Attention and decoders of other people's Tacotron 2, rebuilt from what is documented of them."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn


class Wrapped(nn.Module):
    """A layer inside of a module with another name, such as NVIDIA's LinearNorm."""

    def __init__(self, name, layer):
        super().__init__()
        self.add_module(name, layer)
        self.only = name

    def forward(self, x):
        return getattr(self, self.only)(x)


def linear(n_in, n_out, bias=False, wrapped=True):
    layer = nn.Linear(n_in, n_out, bias)
    return Wrapped("linear_layer", layer) if wrapped else layer


class Location(nn.Module):
    def __init__(self, n_filters, taps, A, wrapped=True, conv_name="location_conv", **options):
        super().__init__()
        conv = nn.Conv1d(2, n_filters, taps, **{"padding": (taps - 1) // 2, "bias": False, **options})
        self.add_module(conv_name, Wrapped("conv", conv) if wrapped else conv)
        self.location_dense = linear(n_filters, A, wrapped=wrapped)
        self.conv_name = conv_name

    def forward(self, weights):
        return self.location_dense(getattr(self, self.conv_name)(weights).transpose(1, 2))


class FamilyAttention(nn.Module):
    """Attention of NVIDIA's tacotron2 (`wrapped`, masks through .data), or torchaudio's."""

    def __init__(self, n_query=9, D=6, A=5, n_filters=3, taps=5, wrapped=True, query_bias=False, **options):
        super().__init__()
        self.query_layer, self.memory_layer = (linear(n, A, wrapped=wrapped) for n in (n_query, D))
        if query_bias:
            self.query_layer = linear(n_query, A, True, wrapped)
        self.v = linear(A, 1, wrapped=wrapped)
        self.location_layer = Location(n_filters, taps, A, wrapped, **options)
        self.score_mask_value = -float("inf")
        self.in_place = wrapped

    def energies(self, query, processed_memory, weights_cat):
        total = self.query_layer(query)[:, None] + self.location_layer(weights_cat) + processed_memory
        return self.v(total.tanh()).squeeze(2)

    def forward(self, attention_hidden_state, memory, processed_memory, attention_weights_cat, mask):
        energies = self.energies(attention_hidden_state, processed_memory, attention_weights_cat)
        if mask is not None and self.in_place:
            energies.data.masked_fill_(mask, self.score_mask_value)
        elif mask is not None:
            energies = energies.masked_fill(mask, self.score_mask_value)
        weights = energies.softmax(1)
        return (weights[:, None] @ memory)[:, 0], weights


class MellotronAttention(FamilyAttention):
    """With attention weights to use instead of its own."""

    def forward(self, query, memory, processed_memory, weights_cat, mask, attention_weights=None):
        if attention_weights is None:
            return super().forward(query, memory, processed_memory, weights_cat, mask)
        return (attention_weights[:, None] @ memory)[:, 0], attention_weights


class SquaredAttention(FamilyAttention):
    """The same names, other energies."""

    def energies(self, *inputs):
        return super().energies(*inputs).square()


class CoquiAttention(nn.Module):
    """OriginalAttention of coqui, without forward attention."""

    def __init__(self, n_query=9, D=6, A=5, n_filters=3, taps=5, norm="softmax", windowing=False, location=True):
        super().__init__()
        self.query_layer, self.inputs_layer, self.v = linear(n_query, A), linear(D, A), linear(A, 1, True)
        if location:
            self.location_layer = Location(n_filters, taps, A, False, "location_conv1d")
        self.location_attention, self.norm, self.windowing, self.forward_attn = location, norm, windowing, False

    def init_states(self, inputs):
        self.attention_weights, self.attention_weights_cum = torch.zeros(2, *inputs.shape[:2]).unbind()

    def preprocess_inputs(self, inputs):
        return self.inputs_layer(inputs)

    def update_location_attention(self, alignments):
        self.attention_weights_cum = self.attention_weights_cum + alignments

    def forward(self, query, inputs, processed_inputs, mask):
        total = self.query_layer(query)[:, None] + processed_inputs
        if self.location_attention:
            total = total + self.location_layer(torch.stack((self.attention_weights, self.attention_weights_cum), 1))
        energies = self.v(total.tanh()).squeeze(2)
        if mask is not None:
            energies.data.masked_fill_(~mask, -float("inf"))
        if self.windowing and not self.training:
            energies = torch.cat((energies[:, :2], torch.full_like(energies[:, 2:], -float("inf"))), 1)
        weights = energies.softmax(1) if self.norm == "softmax" else F.normalize(energies.sigmoid(), 1, 1)
        self.update_location_attention(weights)
        self.attention_weights = weights
        return (weights[:, None] @ inputs)[:, 0]


class EspnetAttention(nn.Module):
    """AttLoc of ESPnet."""

    def __init__(self, eprojs=6, dunits=9, att_dim=5, aconv_chans=3, aconv_filts=2, han_mode=False, rows=1):
        super().__init__()
        self.mlp_enc, self.gvec = nn.Linear(eprojs, att_dim), nn.Linear(att_dim, 1)
        self.mlp_dec = nn.Linear(dunits, att_dim, bias=False)
        self.mlp_att = nn.Linear(aconv_chans, att_dim, bias=False)
        taps = 2 * aconv_filts + 1
        self.loc_conv = nn.Conv2d(1, aconv_chans, (rows, taps), padding=(rows // 2, aconv_filts), bias=False)
        self.dunits, self.att_dim, self.han_mode = dunits, att_dim, han_mode
        self.reset()

    def reset(self):
        self.h_length = self.enc_h = self.pre_compute_enc_h = self.mask = None

    def forward(
        self, enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling=2.0,
        last_attended_idx=None, backward_window=1, forward_window=3,
    ):  # fmt: skip
        B, T, _ = enc_hs_pad.shape
        if self.pre_compute_enc_h is None or self.han_mode:
            self.enc_h, self.h_length, self.pre_compute_enc_h = enc_hs_pad, T, self.mlp_enc(enc_hs_pad)
        lengths = torch.as_tensor(enc_hs_len)[:, None]
        if self.mask is None:
            self.mask = torch.arange(T) >= lengths
        if dec_z is None:
            dec_z = enc_hs_pad.new_zeros(B, self.dunits)
        if att_prev is None:
            att_prev = (torch.arange(T) < lengths).to(dec_z.dtype) / lengths
        location = self.mlp_att(self.loc_conv(att_prev[:, None, None])[:, :, 0].transpose(1, 2))
        total = location + self.pre_compute_enc_h + self.mlp_dec(dec_z)[:, None]
        energies = self.gvec(total.tanh()).squeeze(2).masked_fill(self.mask, -float("inf"))
        if last_attended_idx is not None:
            energies[:, : max(last_attended_idx - backward_window, 0)] = -float("inf")
            energies[:, last_attended_idx + forward_window :] = -float("inf")
        weights = (scaling * energies).softmax(1)
        return (self.enc_h * weights[:, :, None]).sum(1), weights


# Decoders


class Prenet(nn.Module):
    """With half of the units dropped, or what an attribute `dropout` says, as SpeechBrain's."""

    def __init__(self, n_in, sizes, wrapped=True, dropout=None, bias=False):
        super().__init__()
        widths = [n_in, *sizes]
        self.layers = nn.ModuleList(linear(a, b, bias, wrapped) for a, b in zip(widths, sizes, strict=False))
        if dropout is not None:
            self.dropout = dropout

    def forward(self, x):
        for layer in self.layers:
            x = F.dropout(self.activation(layer(x)), getattr(self, "dropout", 0.5), True)
        return x

    def activation(self, x):
        return x.relu()


class Decoder(nn.Module):
    """The steps that the decoders share, with odd sizes. As in NVIDIA's, the state is on the module."""

    STATE = ("hidden_a", "cell_a", "hidden_d", "cell_d", "weights", "cumulative", "context")
    wrapped = True

    def __init__(self, n_mels=3, per_step=1, p_states=0.1, prenet_dropout=None, cell=nn.LSTMCell):
        super().__init__()
        D, P, N, n = 6, 7, 9, 11
        self.n_frames_per_step, self.n = per_step, (N, n, D)
        n_frame = n_mels * per_step
        self.prenet = Prenet(n_frame, [5, P], self.wrapped, prenet_dropout)
        self.attention_rnn = cell(P + D, N)
        self.attention_layer = FamilyAttention(N, D, wrapped=self.wrapped)
        self.decoder_rnn = cell(N + D, n)
        self.linear_projection = linear(n + D, n_frame, True, self.wrapped)
        self.gate_layer = linear(n + D, 1, True, self.wrapped)
        self.gate_threshold = 0.5
        self.name_settings(n_mels, p_states)

    def name_settings(self, n_mels, p_states):
        self.n_mel_channels, self.max_decoder_steps = n_mels, 6
        self.p_attention_dropout = self.p_decoder_dropout = p_states
        self.early_stopping = True

    def settings(self):
        return self.n_mel_channels, self.p_attention_dropout, self.max_decoder_steps, self.early_stopping

    def begin(self, memory, mask):
        B, T, _ = memory.shape
        N, n, D = self.n
        for name, width in zip(self.STATE, (N, N, n, n, T, T, D), strict=True):
            setattr(self, name, memory.new_zeros(B, width))
        self.memory, self.processed_memory, self.mask = memory, self.attention_layer.memory_layer(memory), mask

    def step(self, x):
        h_a, c_a, h_d, c_d, weights, cumulative, context = (getattr(self, name) for name in self.STATE)
        p = self.settings()[1]
        h_a, c_a = self.attention_rnn(torch.cat((x, context), 1), (h_a, c_a))
        h_a = F.dropout(h_a, p, self.training)
        cat = torch.stack((weights, cumulative), 1)
        context, weights = self.attention_layer(h_a, self.memory, self.processed_memory, cat, self.mask)
        cumulative = cumulative + weights
        h_d, c_d = self.decoder_rnn(torch.cat((h_a, context), 1), (h_d, c_d))
        h_d = F.dropout(h_d, p, self.training)
        for name, value in zip(self.STATE, (h_a, c_a, h_d, c_d, weights, cumulative, context), strict=True):
            setattr(self, name, value)
        x = torch.cat((h_d, context), 1)
        return self.linear_projection(x), self.gate_layer(x), weights

    def mel_of(self, steps):
        steps = torch.stack(steps, 1)
        return steps.reshape(len(steps), -1, self.settings()[0]).transpose(1, 2)

    def forward(self, memory, decoder_inputs, memory_lengths):
        B, n_mels, n_frames = decoder_inputs.shape
        frames = decoder_inputs.transpose(1, 2)
        frames = frames.reshape(B, n_frames // self.n_frames_per_step, -1).transpose(0, 1)
        inputs = self.prenet(torch.cat((torch.zeros_like(frames[:1]), frames)))
        self.begin(memory, padding(memory_lengths))
        steps = [self.step(x) for x in inputs[:-1]]
        mels, gates, weights = zip(*steps, strict=True)
        return self.mel_of(mels), torch.cat(gates, 1), torch.stack(weights, 1)

    def free_running(self, memory, mask):
        """(frames, gates, weights) of each step, and which items' gates fired on it or before."""
        n_mels, _, max_steps, early = self.settings()
        self.begin(memory, mask)
        x, fired, steps = memory.new_zeros(len(memory), n_mels * self.n_frames_per_step), False, []
        while len(steps) < max_steps:
            x, gate, weights = self.step(self.prenet(x))
            fired = fired | (gate.sigmoid().squeeze(1) > self.gate_threshold)
            steps.append((x, gate, weights, fired))
            if early and fired.all():
                break
        return zip(*steps, strict=True)


def padding(lengths):
    return torch.arange(int(lengths.max())) >= lengths[:, None]


class NvidiaDecoder(Decoder):
    def inference(self, memory):
        if len(memory) > 1:
            raise RuntimeError("one item only")
        frames, gates, weights, fired = self.free_running(memory, None)
        if not fired[-1]:
            print("Warning! Reached max decoder steps")
        return self.mel_of(frames), torch.stack(gates, 1), torch.stack(weights, 1)


class ExamplesDecoder(Decoder):
    """DeepLearningExamples': steps and items are one dimension of gates and weights."""

    def infer(self, memory, memory_lengths):
        frames, gates, weights, fired = self.free_running(memory, padding(memory_lengths))
        lengths = (~torch.stack(fired)).sum(0).int()
        if len(frames) == self.max_decoder_steps and not (self.early_stopping and fired[-1].all()):
            print("Warning! Reached max decoder steps")
        return self.mel_of(frames), torch.cat(gates).t(), torch.cat(weights).t().contiguous(), lengths


class SpeechBrainDecoder(Decoder):
    """As DeepLearningExamples', without a word at the end."""

    def infer(self, memory, memory_lengths):
        frames, gates, weights, fired = self.free_running(memory, padding(memory_lengths))
        lengths = (~torch.stack(fired)).sum(0).int()
        return self.mel_of(frames), torch.cat(gates).t(), torch.cat(weights).t().contiguous(), lengths


class TorchaudioDecoder(Decoder):
    wrapped = False

    def name_settings(self, n_mels, p_states):
        self.n_mels, self.decoder_max_step, self.decoder_early_stopping = n_mels, 6, True
        self.attention_dropout = self.decoder_dropout = p_states

    def settings(self):
        return self.n_mels, self.attention_dropout, self.decoder_max_step, self.decoder_early_stopping

    def forward(self, memory, mel_specgram_truth, memory_lengths):
        return super().forward(memory, mel_specgram_truth, memory_lengths)

    def infer(self, memory, memory_lengths):
        frames, gates, weights, fired = self.free_running(memory, padding(memory_lengths))
        lengths = 1 + (~torch.stack(fired[:-1])).sum(0) if len(fired) > 1 else torch.ones(len(memory))
        if len(frames) == self.decoder_max_step:
            warnings.warn("Reached max decoder steps, said torchaudio.", stacklevel=2)
        return self.mel_of(frames), lengths.int(), torch.cat(gates, 1), torch.cat(weights).t().contiguous()
