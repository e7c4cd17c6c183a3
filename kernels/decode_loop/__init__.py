"""Tacotron 2's free-running decoder: all frames on the device, for a batch whose items end at different frames.

Read on in `kernels` (the phases of a frame), `tiles` (the work of one program), `decoding` (buffers and launches),
`weights` and `structs`. Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import (
    check_at_least,
    check_choice,
    check_integers,
    check_probability,
    check_seeds,
    check_shape,
    dtype_name,
    sizes_of_pieces,
    too_many_elements,
)
from ..cpu.decode_loop import decode_pieces as cpu_decode_pieces
from ..cpu.decoder_weights import PackedDecoder, pack_decoder
from ..decoder_weights import OutputWeights, RecurrentWeights, recurrent_shapes
from ..launch import uncompiled
from ..location_attention import attention_too_wide
from ..reference.decode_loop import DecodePiece, DecodeResult
from ..reference.decode_loop import decode_pieces as reference_decode_pieces
from .decoding import OP, decoding_of, gate_elements
from .kernels import HAS_CONDITION
from .weights import FoldedDecoder, fold_decoder

__all__ = [
    "DecodePiece",
    "DecodeResult",
    "FoldedDecoder",
    "PackedDecoder",
    "decode_loop",
    "decode_pieces",
    "fold_decoder",
    "pack_decoder",
]

METHODS = ("steps", "graph", "persistent")
PIECE_METHODS = METHODS[:2]

PERSISTENT_ITEMS = 8
"""Largest batch of the persistent kernel. In larger ones launch overhead should matter less; not measured yet."""

Folded = FoldedDecoder | Callable[[torch.dtype], FoldedDecoder] | None
Packed = PackedDecoder | Callable[[torch.dtype], PackedDecoder] | None


@uncompiled
def decode_loop(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    early_stopping: bool = True,
    method: str | None = None,
    folded: Folded = None,
    packed: Packed = None,
) -> DecodeResult:
    """Tacotron 2's decoder in inference: frames until every item's gate has fired.

    Shen et al. 2018; Decoder.infer in NVIDIA's tacotron2/model.py. No gradient on Triton. Ends with
    a host sync, which reads the number of frames.

    Args:
        memory: encoder outputs, [B, T, D].
        processed_memory: the memory layer's output, [B, T, A].
        lengths: integers, [B]; an item of length 0 takes no steps.
        seeds: int64, [B], of the prenet's dropout. An item's result depends on its own seed and not on the rest of
            the batch.
        recurrent, output: the weights.
        p_prenet_dropout: probability in [0, 1).
        gate_threshold: an item ends with the step on which the sigmoid of its gate is above this.
        max_steps: the most steps, at least 1.
        early_stopping: False: the result has max_steps steps, with zeros after an item's end.
        method: how the kernels run: 'steps' launches every frame, 'graph' replays recorded frames (only on a GPU),
            'persistent' runs all frames in one launch (at most PERSISTENT_ITEMS items). All give the same bits.
            None: persistent where it is supported, else graph.
        folded: a reused `fold_decoder(recurrent, output, dtype)`, or a function that returns it for a dtype, called
            only if the kernels run. Graphs are cached in it; without it every call records one.
        packed: the same with `pack_decoder`, for inference on a CPU.

    Returns:
        frames [B, steps, n_frame] and alignments [B, steps, T], zeros after the step on which an item's gate fired;
        steps [B] int64, how many steps came before that one, or max_steps where the gate did not fire.

    Raises:
        FastglowError: shapes, dtypes, probability, max_steps or method do not fit the above; a method that does
            not support this batch; a program of the persistent kernel that did not arrive at a barrier.
    """
    inputs = (memory, processed_memory, lengths, seeds)
    _check(*inputs, recurrent, output, p_prenet_dropout, max_steps, method, METHODS)
    if not _on_triton(*inputs, recurrent, output):
        (piece,) = _pieces_without_kernels(
            inputs,
            recurrent,
            output,
            packed,
            p_prenet_dropout=p_prenet_dropout,
            gate_threshold=gate_threshold,
            max_steps=max_steps,
            piece_steps=max_steps,
            early_stopping=early_stopping,
        )
        return DecodeResult(*piece[:3])
    B, T = memory.shape[:2]
    method = _pick_method(method, B, memory.device)
    dtype = _dtype(memory)
    with (
        _kernel_modes(memory),
        decoding_of(
            _fold(recurrent, output, dtype, folded), B, T, max_steps, p_prenet_dropout, gate_threshold
        ) as decoding,
        decoding.in_order(),
    ):
        graph = decoding.graph() if method == "graph" else None
        decoding.begin(*inputs)
        if graph is not None:
            decoding.run_graph(graph)
        elif method == "steps":
            decoding.run_steps()
        elif memory.is_cuda:
            n_programs = torch.cuda.get_device_properties(memory.device).multi_processor_count
            decoding.run_loop(n_programs, launch_cooperative_grid=True)
        else:
            decoding.run_loop(1)  # the interpreter runs programs one after the other
        return decoding.result(B, T, early_stopping)


@uncompiled
def decode_pieces(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    piece_steps: int | Iterable[int],
    early_stopping: bool = True,
    method: str | None = None,
    folded: Folded = None,
    packed: Packed = None,
) -> Generator[DecodePiece, None, None]:
    """`decode_loop` in pieces: joined, they are its result to the bit, and the last piece's steps are its steps.

    The kernels run when a piece is asked for, with one host sync each. A suspended generator keeps its buffers to
    itself; `close()` gives them back early. Other calls may run meanwhile.

    Args:
        memory to max_steps, early_stopping, folded, packed: as `decode_loop`.
        piece_steps: steps of every piece, or of the first, second, ..., of which the last repeats; at least 1 each.
            Read when a piece is asked for. 'graph' rounds up to whole replays, of FRAMES_PER_GRAPH steps.
        method: 'steps', or 'graph' on a GPU. None: graph on a GPU, else steps.

    Raises:
        FastglowError: as `decode_loop`; for piece_steps when the piece is asked for.
    """
    inputs = (memory, processed_memory, lengths, seeds)
    _check(*inputs, recurrent, output, p_prenet_dropout, max_steps, method, PIECE_METHODS)
    if not _on_triton(*inputs, recurrent, output):
        return _pieces_without_kernels(
            inputs,
            recurrent,
            output,
            packed,
            p_prenet_dropout=p_prenet_dropout,
            gate_threshold=gate_threshold,
            max_steps=max_steps,
            piece_steps=piece_steps,
            early_stopping=early_stopping,
        )
    B, T = memory.shape[:2]
    on_graph = _pick_method(method or ("graph" if memory.is_cuda else "steps"), B, memory.device) == "graph"
    dtype = _dtype(memory)

    def pieces() -> Generator[DecodePiece, None, None]:
        sizes = sizes_of_pieces("piece_steps", piece_steps)
        start, running = 0, True
        # The modes are the thread's, so they do not last while the caller has a piece.
        with ExitStack() as owned:
            with _kernel_modes(memory):
                weights = _fold(recurrent, output, dtype, folded)
                decoding = owned.enter_context(decoding_of(weights, B, T, max_steps, p_prenet_dropout, gate_threshold))
                with decoding.in_order():
                    graph = decoding.graph() if on_graph else None
                    decoding.begin(*inputs)
            while running or (start < max_steps and not early_stopping):
                n = min(next(sizes), max_steps - start)
                with _kernel_modes(memory), decoding.in_order():
                    stop = min(start + (decoding.run_at_least(n, graph) if running else n), max_steps)
                    piece = decoding.piece(B, T, start, stop, early_stopping)
                yield piece
                start, running = stop, piece.running

    return pieces()


def _pieces_without_kernels(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    recurrent: RecurrentWeights,
    output: OutputWeights,
    packed: Packed,
    **options: Any,
) -> Generator[DecodePiece, None, None]:
    memory, dtype = inputs[0], _dtype(inputs[0])
    fits = memory.dtype == output.projection.dtype or backend.autocast_dtype(memory) is not None
    if not fits or len(memory) == 0 or not backend.picks_cpu(output.projection, *inputs):
        return reference_decode_pieces(*inputs, recurrent, output, **options)
    backend.cpu_calls[OP] += 1
    with _kernel_modes(memory):
        weights = packed(dtype) if callable(packed) else packed or pack_decoder(recurrent, output, dtype)
    return cpu_decode_pieces(*inputs, weights, modes=partial(_kernel_modes, memory), **options)


@contextmanager
def _kernel_modes(memory: Tensor) -> Iterator[None]:
    """The modes of PyTorch in which the kernels run, and their device."""
    # The cached buffers must not be inference tensors: later calls write to them, perhaps outside inference mode.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        backend.without_autocast(memory),
        torch.cuda.device(memory.device) if memory.is_cuda else nullcontext(),
    ):
        yield


def _fold(recurrent: RecurrentWeights, output: OutputWeights, dtype: torch.dtype, folded: Folded) -> FoldedDecoder:
    """The given weights, or folded ones if they have another dtype."""
    if callable(folded):
        folded = folded(dtype)
    return folded if folded is not None and folded.dtype == dtype else fold_decoder(recurrent, output, dtype)


def _dtype(memory: Tensor) -> torch.dtype:
    """Of the computation."""
    return backend.autocast_dtype(memory) or memory.dtype


def _on_triton(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
) -> bool:
    """Whether the kernels run."""
    units = max(len(cell.weight_hh) // 4 for cell in (recurrent.attention_rnn, recurrent.decoder_rnn))
    unsupported = _unsupported(len(output.prenet), _dtype(memory), processed_memory.shape[2], len(memory), units)
    tensors = (memory, processed_memory, lengths, seeds, output.projection)
    return len(memory) > 0 and backend.picks_triton(OP, *tensors, unsupported=unsupported)


def _unsupported(n_prenet_layers: int, dtype: torch.dtype, A: int, B: int, units: int) -> str | None:
    """Why the kernels do not support this call, or None; `units`: of the larger LSTM."""
    if n_prenet_layers != 2:
        return f"the prenet has {n_prenet_layers} layers, must have 2"
    if dtype not in backend.KERNEL_DTYPES:
        return f"{dtype_name(dtype)} is not among float32, float16 and bfloat16"
    return attention_too_wide(A, dtype) or too_many_elements("gates", gate_elements(B, units))


def _persistent_unsupported(B: int, device: torch.device) -> str | None:
    """Why the persistent kernel does not support this call, or None."""
    if B > PERSISTENT_ITEMS:
        return f"{B} items are more than {PERSISTENT_ITEMS}"
    if device.type == "cuda" and not HAS_CONDITION:
        return "this version of Triton is too old: use 3.5 or newer"
    return None


def _pick_method(method: str | None, B: int, device: torch.device) -> str:
    reason = _persistent_unsupported(B, device) if method in (None, "persistent") else None
    if method is None:
        return "persistent" if reason is None else "graph" if device.type == "cuda" else "steps"
    if method == "graph" and device.type != "cuda":
        reason = f"{device.type} has no CUDA graphs"
    if reason is not None:
        raise FastglowError(f"decode_loop: method={method!r} does not support this call: {reason}")
    return method


def _check(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    p_prenet_dropout: float,
    max_steps: int,
    method: str | None,
    methods: tuple[str, ...],
) -> None:
    if memory.dim() != 3 or memory.shape[1] == 0:
        raise FastglowError(f"memory has shape {list(memory.shape)}, must be [B, T, D] with T at least 1")
    B, T, D = memory.shape
    A, n = len(recurrent.attention.query), recurrent.decoder_rnn.weight_hh.shape[1]
    n_frame = len(output.projection)
    widths = (n_frame, *map(len, output.prenet))
    shapes = {
        "processed_memory": (processed_memory, (B, T, A)),
        "lengths": (lengths, (B,)),
        **recurrent_shapes(recurrent, widths[-1], D),
        **{f"prenet[{i}]": (weight, (widths[i + 1], widths[i])) for i, weight in enumerate(output.prenet)},
        "projection": (output.projection, (n_frame, n + D)),
        "projection_bias": (output.projection_bias, (n_frame,)),
        "gate": (output.gate, (1, n + D)),
        "gate_bias": (output.gate_bias, (1,)),
    }
    for name, (x, shape) in shapes.items():
        check_shape(name, x, shape, beside=("memory", memory))
    check_integers("lengths", lengths)
    check_seeds(seeds, B)
    check_probability("p_prenet_dropout", p_prenet_dropout)
    check_at_least("max_steps", max_steps, 1)
    check_choice("method", method, (*methods, None))
