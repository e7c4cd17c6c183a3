"""Tacotron 2's free-running decoder on a CPU.

Reading the LSTMs' weights bounds the time of a frame. All else is some thirty small operations on buffers that are made
once per call, in float32.
"""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow.threads import Team, one_thread

from ..arguments import sizes_of_pieces
from ..reference.decode_loop import DecodePiece
from ..reference.prenet import prenet_noise
from .decoder_weights import PackedDecoder
from .linear import Linear

NOISE_BLOCK = 64
"""Steps whose random numbers are drawn together."""

FIRST_STEPS = 256
"""Steps that a piece has room for at first; the room doubles, because a limit may be far beyond the end."""

TEAM_BYTES = 6 << 20
"""Weights from here on are read by several threads: it takes longer than waking them."""

_ONE = torch.ones((), dtype=torch.float32, device="cpu")


def decode_pieces(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    weights: PackedDecoder,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    piece_steps: int | Iterable[int],
    early_stopping: bool,
    modes: Callable[[], AbstractContextManager],
) -> Generator[DecodePiece, None, None]:
    """As `kernels.decode_pieces`; frames and alignments are float32.

    Args:
        weights: packed ones, instead of the model's.
        modes: makes the context to compute in, which must not last while the caller has a piece.
    """
    with modes():
        loop = _Loop(memory, processed_memory, lengths, seeds, weights, p_prenet_dropout)
    sizes = sizes_of_pieces("piece_steps", piece_steps)
    limit = _logit(gate_threshold)
    running = lengths.numpy() > 0
    steps = np.zeros(len(memory), np.int64)
    start, ended = 0, False
    while True:
        n = min(next(sizes), max_steps - start)
        with modes(), one_thread() as team:
            room = min(n, FIRST_STEPS)
            frames, alignments = (x.new_empty(room, *x.shape) for x in (loop.frame, loop.alignment))
            gates, own = frames[:, :, -1].numpy(), np.zeros((room, len(memory)), bool)
            taken = 0
            while taken < n and not ended:
                if taken == room:
                    room = min(n, 2 * room)
                    frames, alignments = (_with_room(x, room) for x in (frames, alignments))
                    gates, own = frames[:, :, -1].numpy(), np.resize(own, (room, len(memory)))
                loop.step(start + taken, team)
                frames[taken], alignments[taken] = loop.frame, loop.alignment
                own[taken] = running
                running = running & (gates[taken] <= limit)
                steps += running
                taken += 1
                ended = not running.any()
            n = taken if early_stopping else n
            start += n
            beyond = torch.from_numpy(~own[:taken]).unsqueeze(2)
            frames, alignments = (
                F.pad(x[:taken].masked_fill(beyond, 0.0).transpose(0, 1), (0, 0, 0, n - taken)).contiguous()
                for x in (frames[:, :, :-1], alignments)
            )
        goes_on = start < max_steps and not ended
        yield DecodePiece(frames, torch.from_numpy(steps.copy()), alignments, goes_on)
        if start == max_steps or (ended and early_stopping):
            return


def _with_room(x: Tensor, n: int) -> Tensor:
    """The rows of x, at the start of n."""
    grown = x.new_empty(n, *x.shape[1:])
    grown[: len(x)] = x
    return grown


def _logit(p: float) -> float:
    """The largest gate whose sigmoid is at most p; NaN if there is none."""
    if 0 < p < 1:
        return math.log(p / (1 - p))
    return math.nan if p < 0 else -math.inf if p == 0 else math.inf


class _Loop:
    """The state of B items, and what a step writes to: always the same aligned memory, because the rounding of a
    product or a softmax may depend on the alignment.

    Attributes:
        frame: frame and gate, [B, n_frame + 1].
        alignment: attention weights, [B, T].
    """

    def __init__(
        self,
        memory: Tensor,
        processed_memory: Tensor,
        lengths: Tensor,
        seeds: Tensor,
        weights: PackedDecoder,
        p_dropout: float,
    ):
        B, T, _ = memory.shape
        P, N, D, n = weights.sizes
        self.weights, self.seeds, self.p_dropout = weights, seeds, p_dropout
        self.memory = memory.float()
        empty, zeros = self.memory.new_empty, self.memory.new_zeros
        self.frame = zeros(B, len(weights.output_bias))
        self.prenet_in = self.frame[:, :-1]
        self.alignment = empty(B, T)
        self.alignment_row = self.alignment.unsqueeze(1)
        self.hidden = [empty(B, weight.shape[1]) for weight in weights.prenet[:-1]]
        # Side by side, so that every layer reads neighbours in place.
        state = zeros(B, P + N + D + n)
        self.prenet_out, self.query_in, self.context, _ = state.split((P, N, D, n), dim=1)
        self.output_in = state[:, P + N :]
        # What costs most leaves out the last items of length 0, but for a power of two of rows: a product rounds by its
        # number of rows, and most processors' products round the same from two rows on.
        n_used = max((i + 1 for i, length in enumerate(lengths.tolist()) if length), default=B)
        used = state[: max(2, 1 << (n_used - 1).bit_length())]
        self.attention_rnn = _LSTM(weights.attention_rnn, used[:, : P + N + D], used[:, P : P + N])
        self.decoder_rnn = _LSTM(weights.decoder_rnn, used[:, P:], used[:, P + N + D :])
        # The previous and the cumulative weights, interleaved: a window over both is contiguous.
        k = weights.taps
        history = zeros(B, T + k - 1, 2)
        self.previous, self.cumulative = history[:, k // 2 : k // 2 + T].unbind(2)
        self.windows = history.as_strided((B, T, 2 * k), (history.stride(0), 2, 1))
        self.location_in = empty(B, T, 2 * k)
        self.location_rows = self.location_in.view(B * T, 2 * k)
        self.processed_memory = 2 * processed_memory.float().flatten(0, 1)  # as the query and the location
        A = len(weights.v)
        self.query = empty(B, A)
        self.query_of_all = self.query.unsqueeze(1)
        self.energies_in = empty(B * T, A)
        self.energies_in_of_items = self.energies_in.view(B, T, A)
        self.energies = empty(B * T)
        self.energies_of_items = self.energies.view(B, T)
        # An item of length 0 attends to position 0.
        beyond = torch.arange(T, device="cpu") >= lengths.clamp(min=1).unsqueeze(1)
        self.beyond = beyond if beyond.any() else None
        self.attended = empty(B, 1, D)
        self.attended_row = self.attended.squeeze(1)
        self.kept: list[tuple[Tensor, ...]] = []

    def step(self, step: int, team: Team) -> None:
        """Computes `frame` and `alignment`."""
        weights = self.weights
        if step % NOISE_BLOCK == 0:
            self.kept = self._draw(step)
        x = self.prenet_in
        for weight, kept, out in zip(
            weights.prenet, self.kept[step % NOISE_BLOCK], [*self.hidden, self.prenet_out], strict=True
        ):
            x = torch.mm(x, weight, out=out).relu_().mul_(kept)
        self.attention_rnn.step(team)
        self._attend()
        self.decoder_rnn.step(team)
        torch.addmm(weights.output_bias, self.output_in, weights.output, out=self.frame)

    def _draw(self, step: int) -> list[tuple[Tensor, ...]]:
        """The factors of the prenet's dropout: for each of the block's steps, [B, n_out] of each layer."""
        noise = prenet_noise(self.seeds, [weight.shape[1] for weight in self.weights.prenet], step, NOISE_BLOCK)
        factors = [(layer >= self.p_dropout).float() / (1 - self.p_dropout) for layer in noise]
        return list(zip(*(layer.transpose(0, 1).contiguous().unbind() for layer in factors), strict=True))

    def _attend(self) -> None:
        weights = self.weights
        torch.mm(self.query_in, weights.query, out=self.query)
        self.location_in.copy_(self.windows)
        torch.addmm(self.processed_memory, self.location_rows, weights.location, out=self.energies_in)
        self.energies_in_of_items.add_(self.query_of_all)
        # v tanh(x) = 2 v sigmoid(2x) - sum(v), and softmax does not see the sum.
        torch.mv(self.energies_in.sigmoid_(), weights.v, out=self.energies)
        if self.beyond is not None:
            self.energies_of_items.masked_fill_(self.beyond, -math.inf)
        torch.softmax(self.energies_of_items, 1, out=self.alignment)
        torch.bmm(self.alignment_row, self.memory, out=self.attended)
        self.context.copy_(self.attended_row)
        self.previous.copy_(self.alignment)
        self.cumulative.add_(self.alignment)


class _LSTM:
    """A cell that reads and writes parts of the state.

    Args:
        linear: [M, n_in] -> [M, 4n], gates in the order i, f, o, g.
        x: [B, n_in] float32, its own state included.
        h: [B, n] float32, its own state.
    """

    def __init__(self, linear: Linear, x: Tensor, h: Tensor):
        self.product, self.x, self.h = linear.product, x, h
        self.by_team = linear.n_bytes >= TEAM_BYTES
        self.narrow = None if linear.dtype == x.dtype else x.new_empty(x.shape, dtype=linear.dtype)
        exact = linear.weights == torch.float32
        self.tanh_: Callable[[Tensor], Tensor] = Tensor.tanh_ if exact else _tanh_by_sigmoid_
        self.gates = h.new_empty(len(h), 4 * h.shape[1])
        self.sigmoids = self.gates[:, : 3 * h.shape[1]]
        self.i, self.f, self.o, self.g = self.gates.chunk(4, dim=1)
        self.c, self.tanh_c = (h.new_zeros(h.shape) for _ in range(2))

    def step(self, team: Team) -> None:
        x = self.x if self.narrow is None else self.narrow.copy_(self.x)
        if self.by_team:
            team.use(team.size)
        gates = self.product(x)
        if self.by_team:
            team.use(1)
        self.gates.copy_(gates)
        self.sigmoids.sigmoid_()
        self.c.mul_(self.f).addcmul_(self.i, self.tanh_(self.g))
        torch.mul(self.o, self.tanh_(self.tanh_c.copy_(self.c)), out=self.h)


def _tanh_by_sigmoid_(x: Tensor) -> Tensor:
    """tanh_ to 1e-7: PyTorch's own splits even a thousand elements over threads, which wait if a core is busy.

    Without Python's numbers, which PyTorch would copy to tensors of the right type.
    """
    x.add_(x).sigmoid_()
    return x.add_(x).sub_(_ONE)
