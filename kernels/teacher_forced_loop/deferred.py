"""The loop with everything without a recurrence outside of it, in products over all frames, by PyTorch's operations.

Appleyard et al. 2016, "Optimizing performance of recurrent neural networks on GPUs", section 3.3. CPUs run it. The
backward pass is written by hand, in the same steps as the Triton kernels. Maths: kernels/README.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend
from ..cpu.linear import packed_linear
from ..decoder_weights import AttentionWeights
from ..reference.teacher_forced_loop import ATTENTION_STREAM, DECODER_STREAM, Arguments, drop, padding_mask

_N_ARGUMENTS = len(Arguments._fields)


class Kept(NamedTuple):
    """Saved for the backward pass, besides the arguments."""

    factors_a: Tensor  # [T, B, n_a], of dropout; or no elements
    factors_d: Tensor  # [T, B, n_d], likewise
    weight_a: Tensor  # [4 n_a, D + n_a]
    weight_d: Tensor  # [4 n_d, n_a + D + n_d]
    location: Tensor  # [A, 2k]
    inputs_a: Tensor  # [T + 1, B, D + n_a]
    inputs_d: Tensor  # [T + 1, B, n_a + D + n_d]
    gates_a: Tensor  # [T, B, 4 n_a], activated
    gates_d: Tensor  # [T, B, 4 n_d], activated
    cells_a: Tensor  # [T + 1, B, n_a]
    cells_d: Tensor  # [T + 1, B, n_d]
    attended: Tensor  # [T + 1, B, 2, T_in + k - 1]
    tanhs: Tensor  # [T, B, T_in, A]


def deferred_forward(
    lengths: Tensor, seed: Tensor | None, p_attention_dropout: float, p_decoder_dropout: float, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """(hidden states and contexts [B, T, n + D], attention weights [B, T, T_in], then what the backward pass needs).

    Arguments as the operator's. Without a seed the masks are drawn from PyTorch's generator.
    """
    with backend.without_autocast(lengths):
        return _forward(lengths, seed, (p_attention_dropout, p_decoder_dropout), Arguments(*tensors))


def deferred_backward(
    needs: Sequence[bool],
    d_hidden_contexts: Tensor | None,
    d_alignments: Tensor | None,
    lengths: Tensor,
    seed: Tensor | None,
    p_attention_dropout: float,
    p_decoder_dropout: float,
    *more: Tensor,
) -> list[Tensor]:
    """Gradients of the arguments that need one; `more`: the arguments, then what `deferred_forward` kept."""
    arguments, kept = Arguments(*more[:_N_ARGUMENTS]), Kept(*more[_N_ARGUMENTS:])
    with backend.without_autocast(lengths):
        gradients = _backward(d_hidden_contexts, d_alignments, arguments, kept)
    # Contiguous: some are parts of one matrix.
    return [d.contiguous() for d, needed in zip(gradients, needs, strict=True) if needed]


def deferred_empty(
    lengths: Tensor, seed: Tensor | None, p_attention_dropout: float, p_decoder_dropout: float, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Uninitialised results of `deferred_forward`."""
    x = Arguments(*tensors)
    memory = x.memory
    (T, B, _), (_, T_in, D) = x.decoder_inputs.shape, memory.shape
    n_a, n_d, k = x.attention_weight_hh.shape[1], x.decoder_weight_hh.shape[1], x.location_conv.shape[2]
    A = x.processed_memory.shape[2]
    kept = Kept(
        factors_a=memory.new_empty((T, B, n_a) if p_attention_dropout else (0,)),
        factors_d=memory.new_empty((T, B, n_d) if p_decoder_dropout else (0,)),
        weight_a=memory.new_empty(4 * n_a, D + n_a),
        weight_d=memory.new_empty(4 * n_d, n_a + D + n_d),
        location=memory.new_empty(A, 2 * k),
        inputs_a=memory.new_empty(T + 1, B, D + n_a),
        inputs_d=memory.new_empty(T + 1, B, n_a + D + n_d),
        gates_a=memory.new_empty(T, B, 4 * n_a),
        gates_d=memory.new_empty(T, B, 4 * n_d),
        cells_a=memory.new_empty(T + 1, B, n_a),
        cells_d=memory.new_empty(T + 1, B, n_d),
        attended=memory.new_empty(T + 1, B, 2, T_in + k - 1, dtype=torch.promote_types(memory.dtype, torch.float32)),
        tanhs=memory.new_empty(T, B, T_in, A),
    )
    return memory.new_empty(B, T, n_d + D), memory.new_empty(B, T, T_in), *kept


def _dropout_factors(
    shapes: Sequence[tuple[int, ...]], p_dropout: Sequence[float], seed: Tensor | None, like: Tensor
) -> list[Tensor | None]:
    """Per LSTM [T, B, n], 0 or 1 / (1 - p); None without dropout."""
    factors = [None if p == 0 else like.new_ones(shape) for shape, p in zip(shapes, p_dropout, strict=True)]
    for frame in range(shapes[0][0]):  # the plain loop's order, as the generator is stateful
        for factor, p, stream in zip(factors, p_dropout, (ATTENTION_STREAM, DECODER_STREAM), strict=True):
            if factor is not None:
                factor[frame] = drop(factor[frame], p, seed, stream, frame)
    return factors


def _forward(
    lengths: Tensor, seed: Tensor | None, p_dropout: tuple[float, float], arguments: Arguments
) -> tuple[Tensor, ...]:
    """Buffers are indexed by frame. In those of T + 1 frames, slot t holds what step t reads from step t - 1."""
    decoder_inputs, memory, processed_memory, weights = *arguments[:3], arguments.weights
    T, B, P = decoder_inputs.shape
    _, T_in, D = memory.shape
    n_a, n_d = (cell.weight_hh.shape[1] for cell in (weights.attention_rnn, weights.decoder_rnn))
    k = weights.attention.location_conv.shape[2]
    inside = slice(k // 2, k // 2 + T_in)
    mask = padding_mask(lengths, T_in)
    factors_a, factors_d = _dropout_factors(((T, B, n_a), (T, B, n_d)), p_dropout, seed, memory)

    cell = weights.attention_rnn
    gates_a = F.linear(decoder_inputs, cell.weight_ih[:, :P])  # [T, B, 4 n_a]
    weight_a, bias_a = torch.cat((cell.weight_ih[:, P:], cell.weight_hh), dim=1), cell.bias_ih + cell.bias_hh
    cell = weights.decoder_rnn
    gates_d, bias_d = memory.new_empty(T, B, 4 * n_d), cell.bias_ih + cell.bias_hh
    weight_d = torch.cat((cell.weight_ih, cell.weight_hh), dim=1)
    location = _folded_location(weights.attention)  # [A, 2k]

    inputs_a = memory.new_zeros(T + 1, B, D + n_a)  # context and attention LSTM state of step t - 1
    inputs_d = memory.new_zeros(T + 1, B, n_a + D + n_d)  # both of step t, and the decoder LSTM state of step t - 1
    cells_a, cells_d = memory.new_zeros(T + 1, B, n_a), memory.new_zeros(T + 1, B, n_d)
    # Previous and cumulative weights, padded with zeros; sums over all frames exceed 16-bit floats.
    wide = torch.promote_types(memory.dtype, torch.float32)
    attended = memory.new_zeros(T + 1, B, 2, T_in + k - 1, dtype=wide)
    tanhs = memory.new_empty(T, B, T_in, processed_memory.shape[2])
    product_a, product_d = _product(weight_a, bias_a), _product(weight_d, bias_d)
    for t in range(T):
        h_a = _lstm_step(gates_a[t].add_(product_a(inputs_a[t])), cells_a[t], cells_a[t + 1])
        if factors_a is not None:
            h_a *= factors_a[t]
        query = F.linear(h_a, weights.attention.query).unsqueeze(1)
        b_tanh = torch.matmul(_windows(attended[t], k).to(memory.dtype), location.T, out=tanhs[t])
        b_tanh.add_(processed_memory).add_(query).tanh_()
        energies = torch.matmul(b_tanh, weights.attention.v[0])
        # With -inf the softmax of an item without symbols would be NaN.
        energies.masked_fill_(mask, torch.finfo(energies.dtype).min)
        alignment = torch.softmax(energies, dim=1, dtype=wide).masked_fill_(mask, 0.0)
        context = torch.bmm(alignment.to(memory.dtype).unsqueeze(1), memory).squeeze(1)
        attended[t + 1, :, 0, inside] = alignment
        attended[t + 1, :, 1, inside] = attended[t, :, 1, inside] + alignment
        torch.cat((context, h_a), dim=1, out=inputs_a[t + 1])
        inputs_d[t, :, :n_a], inputs_d[t, :, n_a : n_a + D] = h_a, context
        h_d = _lstm_step(gates_d[t].copy_(product_d(inputs_d[t])), cells_d[t], cells_d[t + 1])
        if factors_d is not None:
            h_d *= factors_d[t]
        inputs_d[t + 1, :, n_a + D :] = h_d
    factors_a, factors_d = (memory.new_empty(0) if x is None else x for x in (factors_a, factors_d))
    kept = Kept(
        factors_a, factors_d, weight_a, weight_d, location,
        inputs_a, inputs_d, gates_a, gates_d, cells_a, cells_d, attended, tanhs,
    )  # fmt: skip
    hidden_contexts = torch.cat((inputs_d[1:, :, n_a + D :], inputs_a[1:, :, :D]), dim=2)
    alignments = attended[1:, :, 0, inside].to(memory.dtype)
    return hidden_contexts.transpose(0, 1).contiguous(), alignments.transpose(0, 1).contiguous(), *kept


def _backward(
    d_hidden_contexts: Tensor | None, d_alignments: Tensor | None, arguments: Arguments, kept: Kept
) -> Arguments:
    memory, weights = arguments.memory, arguments.weights
    factors_a, factors_d = (factors if factors.numel() else None for factors in kept[:2])
    weight_a, weight_d, location = kept[2:5]
    inputs_a, inputs_d, gates_a, gates_d, cells_a, cells_d, attended, tanhs = kept[5:]
    T, B, P = arguments.decoder_inputs.shape
    _, T_in, D = memory.shape
    n_a, n_d = cells_a.shape[2], cells_d.shape[2]
    query, conv, dense, v = weights.attention
    k = conv.shape[2]
    alignments = attended[1:, :, 0, k // 2 : k // 2 + T_in]
    if d_hidden_contexts is None:
        d_hidden_contexts = memory.new_zeros(B, T, n_d + D)

    by_gates_a, by_cell_a = _lstm_derivatives(gates_a, cells_a)
    by_gates_d, by_cell_d = _lstm_derivatives(gates_d, cells_d)
    d_gates_a, d_gates_d = by_gates_a.flatten(2), by_gates_d.flatten(2)  # the same memory: written frame by frame
    f_a, f_d = gates_a[:, :, n_a : 2 * n_a], gates_d[:, :, n_d : 2 * n_d]
    d_contexts, d_queries = memory.new_empty(T, B, D), memory.new_empty(T, B, len(query))
    d_energies = memory.new_empty(T, B, T_in)
    d_processed_memory, d_location = memory.new_zeros(B, T_in, len(query)), torch.zeros_like(location)
    d_cell_a, d_cell_d = torch.zeros_like(cells_a[0]), torch.zeros_like(cells_d[0])
    # Gradients from step t + 1, of its inputs and the weights it read; of cumulative weights, from all later steps.
    d_input_a, d_state_d = torch.zeros_like(inputs_a[0]), torch.zeros_like(cells_d[0])
    d_previous, d_cumulative = alignments.new_zeros(B, T_in), alignments.new_zeros(B, T_in)
    for t in reversed(range(T)):
        d_h = d_hidden_contexts[:, t, :n_d] + d_state_d
        if factors_d is not None:
            d_h *= factors_d[t]
        d_cell_d = _lstm_step_backward(d_h, d_cell_d, f_d[t], by_gates_d[t], by_cell_d[t])
        d_h, d_context, d_state_d = (d_gates_d[t] @ weight_d).split((n_a, D, n_d), dim=1)
        d_context = d_contexts[t] = d_context + d_hidden_contexts[:, t, n_d:] + d_input_a[:, :D]

        d_alignment = torch.bmm(memory, d_context.unsqueeze(2)).squeeze(2) + d_previous + d_cumulative
        if d_alignments is not None:
            d_alignment += d_alignments[:, t]
        d_energies[t] = alignments[t] * (d_alignment - (alignments[t] * d_alignment).sum(dim=1, keepdim=True))
        d_sums = torch.ops.aten.tanh_backward(d_energies[t].unsqueeze(2) * v, tanhs[t])  # [B, T_in, A]
        d_processed_memory += d_sums
        d_location.addmm_(d_sums.flatten(0, 1).T, _windows(attended[t], k).to(memory.dtype).flatten(0, 1))
        d_attended = _sum_of_windows((d_sums @ location).transpose(1, 2), k)
        d_previous, d_cumulative = d_attended[:, 0], d_attended[:, 1] + d_cumulative

        torch.sum(d_sums, dim=1, out=d_queries[t])
        d_h = torch.addmm(d_h, d_queries[t], query) + d_input_a[:, D:]
        if factors_a is not None:
            d_h *= factors_a[t]
        d_cell_a = _lstm_step_backward(d_h, d_cell_a, f_a[t], by_gates_a[t], by_cell_a[t])
        d_input_a = d_gates_a[t] @ weight_a

    flat_a, flat_d = d_gates_a.flatten(0, 1), d_gates_d.flatten(0, 1)
    d_bias_a, d_bias_d = flat_a.sum(dim=0), flat_d.sum(dim=0)
    d_weight_a, d_weight_d = flat_a.T @ inputs_a[:T].flatten(0, 1), flat_d.T @ inputs_d[:T].flatten(0, 1)
    return Arguments(
        decoder_inputs=d_gates_a @ weights.attention_rnn.weight_ih[:, :P],
        memory=torch.bmm(alignments.to(memory.dtype).permute(1, 2, 0), d_contexts.transpose(0, 1)),
        processed_memory=d_processed_memory,
        attention_weight_ih=torch.cat((flat_a.T @ arguments.decoder_inputs.flatten(0, 1), d_weight_a[:, :D]), dim=1),
        attention_weight_hh=d_weight_a[:, D:],
        attention_bias_ih=d_bias_a,
        attention_bias_hh=d_bias_a,
        query=d_queries.flatten(0, 1).T @ inputs_a[1:, :, D:].flatten(0, 1),
        location_conv=(dense.T @ d_location).view_as(conv),
        location_dense=d_location @ conv.flatten(1).T,
        v=(d_energies.flatten() @ tanhs.flatten(0, 2)).unsqueeze(0),
        decoder_weight_ih=d_weight_d[:, : n_a + D],
        decoder_weight_hh=d_weight_d[:, n_a + D :],
        decoder_bias_ih=d_bias_d,
        decoder_bias_hh=d_bias_d,
    )


def _product(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """F.linear, for many calls with few rows each. They take as long as reading the weights, half as long if packed."""
    if backend.fits_cpu((weight.dtype,), weight):
        backend.cpu_calls["teacher_forced_loop"] += 1
        return packed_linear(weight, bias).product
    return lambda x: F.linear(x, weight, bias)


def _folded_location(weights: AttentionWeights) -> Tensor:
    """The location convolution and dense layer as one matrix, [A, 2k]."""
    return weights.location_dense @ weights.location_conv.flatten(1)


def _windows(x: Tensor, k: int) -> Tensor:
    """[B, 2, T + k - 1] -> [B, T, 2k]."""
    if x.shape[2] < k:  # unfold refuses T = 0
        return x.new_empty(len(x), 0, 2 * k)
    return x.unfold(2, k, 1).transpose(1, 2).flatten(2)


def _sum_of_windows(windows: Tensor, k: int) -> Tensor:
    """Adjoint of `_windows`, without the padding: [B, 2k, T] -> [B, 2, T]."""
    T = windows.shape[2]
    if not T:
        return windows.new_empty(len(windows), 2, 0)
    return F.fold(windows, (1, T + k - 1), (1, k))[:, :, 0, k // 2 : k // 2 + T]


def _lstm_step(gates: Tensor, c: Tensor, c_next: Tensor) -> Tensor:
    """Activates the gates [B, 4n] in place, writes c_next [B, n], returns h."""
    n = c.shape[1]
    i, f, g, o = gates.split(n, dim=1)
    gates[:, : 2 * n].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    torch.addcmul(f * c, i, g, out=c_next)
    return o * torch.tanh(c_next)


def _lstm_derivatives(gates: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """What does not recur, of all frames.

    Args:
        gates: [T, B, 4n], activated.
        cells: [T + 1, B, n].

    Returns:
        derivatives by the gates before their activation, [T, B, 4, n]: of the cell state, for i, f and g, and of h, for
        o; and of h by the cell state, [T, B, n].
    """
    n = cells.shape[2]
    i, f, g, o = gates.split(n, dim=2)
    tanh_c = torch.tanh(cells[1:])
    by_gates = gates.new_empty(*gates.shape[:2], 4, n)
    for out, sigmoid, factor in ((0, i, g), (1, f, cells[:-1]), (3, o, tanh_c)):
        torch.mul(factor, torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1), out=by_gates[:, :, out])
    torch.addcmul(i, i, g * g, value=-1, out=by_gates[:, :, 2])
    return by_gates, torch.addcmul(o, o, tanh_c * tanh_c, value=-1)


def _lstm_step_backward(d_h: Tensor, d_c_next: Tensor, f: Tensor, by_gates: Tensor, by_cell: Tensor) -> Tensor:
    """Multiplies the derivatives of a frame by the gradients, in place; returns the gradient of c."""
    d_c_next = torch.addcmul(d_c_next, d_h, by_cell)
    by_gates[:, :3] *= d_c_next.unsqueeze(1)
    by_gates[:, 3] *= d_h
    return d_c_next * f
