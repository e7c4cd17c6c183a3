"""WaveGlow's flows with the activations of one flow at a time: each flow's input is rebuilt from its output.

The flows are invertible, so that the backward pass needs no signal but the last: it inverts flow after flow and runs
each coupling network once more (Gomez et al. 2017, "The Reversible Residual Network"; Kingma & Dhariwal 2018, Glow).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.kernels.launch import uncompiled
from fastglow.kernels.reference import affine_coupling as reference_coupling
from fastglow.kernels.reference import invertible_conv1x1 as reference_mixing
from fastglow.modules.parameter_slots import holding, in_their_places, slots_of

from .waveglow_flow import Flow

FlowResults = tuple[Tensor, list[Tensor], list[Tensor]]
"""As of `WaveGlow.forward`."""

REFINEMENTS = 2
"""Newton steps from a float32 inverse: each squares its relative error, up to float64's."""

LARGEST_RESIDUAL = 1e-3
"""Of I - W W^-1, by rows: above it W is singular to float32."""

LARGEST_ERROR = 1e-3
"""Of a rebuilt signal, in units of its largest value: a quarter of bfloat16's rounding."""


def can_rebuild() -> bool:
    """Whether there is a backward pass to save memory for, and plain autograd runs it."""
    return torch.is_grad_enabled() and not backend.transformed() and forward_ad._current_level < 0


@uncompiled
def run_flows(
    flows: Sequence[Flow],
    audio: Tensor,
    spect: Tensor,
    log_dets_of: Callable[[Sequence[Flow], Tensor], Sequence[Tensor | None]],
) -> FlowResults:
    """The flows of `WaveGlow.forward`, whose backward pass rebuilds all but the last flow's activations.

    The last flow's backward pass comes first, so that its activations are stored: rebuilding them would save nothing.
    An inverse flow amplifies rounding, a 1x1 convolution by up to its weight's condition number, and twelve of them
    multiply. So the few channels of the signal, their 1x1 convolutions and couplings are in float64, also under
    autocast, and run as PyTorch's operations. The first flow's input is stored, which shows how exact its rebuilt
    output is: if it is off by more than LARGEST_ERROR, or a weight is singular to float32, the gradients of the first
    flow and of the spect are NaN, and not wrong. Parts must be deterministic, since each is called once more; the input
    of a convolution with hooks, or of another class, is stored too.

    Args:
        flows: at least one.
        audio: [B, n_group, T].
        spect: [B, D, T].
        log_dets_of: (flows, audio) -> log|det W| of every flow, a scalar, or None where the convolution computes it.
    """
    with in_their_places:
        run, log_dets = _Run(flows, audio), log_dets_of(flows, audio)
        tensors = [[slot.tensor for slot in run.mixing[k] + run.coupling[k]] for k in range(len(flows))]
    signal = audio.to(run.signal_dtype)
    early: list[Tensor] = []
    results: list[tuple[Tensor, Tensor]] = []
    last = len(flows) - 1
    for k, flow in enumerate(flows):
        if flow.n_early:
            early.append(signal[:, : flow.n_early])
            signal = signal[:, flow.n_early :]
        if k < last:
            signal, *result = _RebuiltFlow.apply(run, k, signal, spect, log_dets[k], *tensors[k])
            results.append((result[0], result[1]))
        if k == last - 1:
            left = torch.cat(early, dim=1) if early else None
            signal, left, *flat = _Results.apply(run, signal, left, *(x for pair in results for x in pair))
            results = list(zip(flat[::2], flat[1::2], strict=True))
            early = [] if left is None else [left]
    signal, *result = run.last_flow(signal, spect, log_dets[last])
    results.append((result[0], result[1]))
    z = torch.cat([*(x.to(run.model_dtype) for x in early), signal], dim=1)
    return z, [log_s for log_s, _ in results], [log_det for _, log_det in results]


class _Run:
    """One forward pass, and what its backward pass has rebuilt so far.

    Attributes:
        signal_dtype: of signals, our 1x1 convolutions and couplings.
        result_dtype: of log s and log|det W|, and of other 1x1 convolutions.
        model_dtype: of the coupling networks' input, and of what is left to the last flow.
        mixing, coupling: the parameters of each flow's convolution and coupling network.
        plain: the flows whose input is rebuilt.
        outputs: of the flow whose backward pass is next, by its number; [B, c, T].
        early: the channels that left before the last flow, [B, e, T].
        inverses: W^-1 of each flow, None where its convolution is not ours.
    """

    def __init__(self, flows: Sequence[Flow], audio: Tensor):
        self.flows = flows
        self.device_type = audio.device.type
        self.autocast_dtype = backend.autocast_dtype(audio)
        self.result_dtype = torch.promote_types(audio.dtype, torch.float32)
        self.signal_dtype = self.result_dtype if self.device_type == "mps" else torch.float64  # which it has not
        self.model_dtype = audio.dtype if self.autocast_dtype is None else self.result_dtype
        self.mixing = [slots_of(flow.convinv) for flow in flows]
        self.coupling = [slots_of(flow.wn) for flow in flows]
        self.plain = [k for k in range(1, len(flows) - 1) if flows[k].plainly_mixes]
        self.outputs: dict[int, Tensor] = {}
        self.early: Tensor | None = None
        self.inverses: list[Tensor | None] = []

    def autocast(self, enabled: bool = True) -> AbstractContextManager:
        """That of the forward pass, or none. A cache of cast weights would keep those of every flow."""
        if not torch.amp.is_autocast_available(self.device_type):
            return nullcontext()
        enabled = enabled and self.autocast_dtype is not None
        return torch.autocast(self.device_type, self.autocast_dtype, enabled=enabled, cache_enabled=False)

    def mixing_dtype(self, k: int) -> torch.dtype:
        """Of the convolution of a flow before the last."""
        return self.signal_dtype if self.flows[k].plainly_mixes else self.result_dtype

    def mix(self, k: int, audio: Tensor, log_det: Tensor | None) -> tuple[Tensor, Tensor]:
        """(W audio [B, c, T], log|det W| times B * T), of a flow before the last."""
        flow = self.flows[k]
        with self.autocast(enabled=False):
            if not flow.plainly_mixes:
                mixed, log_det = flow.mix(audio.to(self.result_dtype), log_det)
                return mixed.to(audio.dtype), log_det
            mixed, log_det = reference_mixing.invertible_conv1x1(audio, flow.convinv.conv.weight, log_det)
            return mixed, audio.shape[0] * audio.shape[2] * log_det.to(self.result_dtype)

    def couple(self, k: int, kept: Tensor, spect: Tensor) -> Tensor:
        """b and log s, in the dtype of `kept`."""
        with self.autocast():
            return self.flows[k].wn(kept.to(self.model_dtype), spect).to(kept.dtype)

    def flow(self, k: int, audio: Tensor, spect: Tensor, log_det: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(signal [B, c, T], log s [B, c / 2, T], log|det W| times B * T) of a flow before the last."""
        mixed, log_det = self.mix(k, audio, log_det)
        kept, changed = self.flows[k].split(mixed)
        changed, log_s = self.change(changed, self.couple(k, kept, spect))
        return self.flows[k].join(kept, changed), log_s, log_det

    def change(self, changed: Tensor, b_log_s: Tensor) -> tuple[Tensor, Tensor]:
        """The coupling of the half that it changes, and log s."""
        changed, log_s = reference_coupling.affine_coupling(changed, b_log_s)
        return changed, log_s.to(self.result_dtype)

    def last_flow(self, audio: Tensor, spect: Tensor, log_det: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `flow`, stored as usual."""
        flow, audio = self.flows[-1], audio.to(self.model_dtype)
        with self.autocast(enabled=False):
            mixed, log_det = flow.mix(audio, log_det)
        kept, changed = flow.split(mixed)
        b_log_s = self.couple(len(self.flows) - 1, kept, spect)
        with self.autocast(enabled=False):
            changed, log_s = kernels.affine_coupling(changed, b_log_s)
        return flow.join(kept, changed), log_s, log_det

    @property
    def weights(self) -> list[Tensor]:
        """Of the `plain` flows' convolutions."""
        return [self.flows[k].convinv.conv.weight for k in self.plain]

    def start(self, output: Tensor, early: Tensor | None, *weights: Tensor) -> None:
        """Begins a backward pass with the output of the last flow but one, and the `weights` of the forward pass.

        Raises:
            FastglowError: the modules are not those of the forward pass.
        """
        self._check_parts()
        self.outputs, self.early = {len(self.flows) - 2: output}, early
        self.inverses = [None] * len(self.flows)
        found = _inverses([weight.detach() for weight in weights]) if weights else ()
        for k, inverse in zip(self.plain, found, strict=True):
            self.inverses[k] = inverse.to(self.signal_dtype)

    def _check_parts(self) -> None:
        for k, flow in enumerate(self.flows[:-1]):
            for part, slots in ((flow.convinv, self.mixing[k]), (flow.wn, self.coupling[k])):
                if [(id(x.owner), x.name) for x in slots_of(part)] != [(id(x.owner), x.name) for x in slots]:
                    raise FastglowError(
                        f"memory_saving=True: parts of flow {k} were replaced after the forward pass, which the "
                        "backward pass calls again: replace them before, or after both"
                    )

    def hand_on(self, k: int, audio: Tensor) -> None:
        """Gives the flow before the k-th its output, made of the k-th flow's input and the channels that left."""
        n = self.flows[k].n_early
        if n and self.early is not None:
            self.early, left = self.early.split((self.early.shape[1] - n, n), dim=1)
            audio = torch.cat((left, audio), dim=1)
        if k:
            self.outputs[k - 1] = audio


def _inverses(weights: Sequence[Tensor]) -> list[Tensor]:
    """W^-1 of [c, c, 1] each, [c, c] in float64; NaN if one of them has none."""
    found, _ = kernels.invertible_conv1x1_factors(weights)
    sizes = [len(weight) for weight in weights]
    # All flows in one matrix: a few products, and not a few for each flow.
    matrix = torch.block_diag(*(weight.squeeze(2).double() for weight in weights))
    inverse = torch.block_diag(*(x.double() for x in found))
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(REFINEMENTS):
        inverse = inverse + inverse @ (identity - matrix @ inverse)
    residual = (identity - matrix @ inverse).abs().sum(dim=1).amax()
    inverse = torch.where(residual < LARGEST_RESIDUAL, inverse, torch.nan)  # NaN compares as False
    blocks = zip(inverse.split(sizes), sizes, accumulate(sizes), strict=True)
    return [rows[:, end - c : end].clone() for rows, c, end in blocks]  # not views, which would keep the whole


def _nan_if_inexact(rebuilt: Tensor, exact: Tensor) -> Tensor:
    """A scalar, 0 or NaN, which needs no host sync."""
    error, scale = (rebuilt - exact).abs().amax(), exact.abs().amax()
    return torch.where(error <= LARGEST_ERROR * scale, 0.0, torch.nan).to(exact.dtype)  # NaN compares as False


def _leaf(x: Tensor, needs_gradient: bool) -> Tensor:
    return x.detach().requires_grad_(needs_gradient)


def _leaves(tensors: Sequence[Tensor], needs: Sequence[bool], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [_leaf(x if dtype is None else x.to(dtype), needed) for x, needed in zip(tensors, needs, strict=True)]


def _gradients(results: Sequence[tuple[Tensor, Tensor | None]], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of the inputs that require one, from (result, its upstream gradient)."""
    reached = [(y, d) for y, d in results if d is not None and y.requires_grad]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    if not reached or not wanted:
        return [None] * len(inputs)
    outputs, ds = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, ds, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


class _Final(torch.autograd.Function):
    """The identity, for gradients that have no derivative."""

    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in gradients)

    @staticmethod
    def backward(ctx: Any, *unused: Any) -> NoReturn:
        raise RuntimeError("WaveGlow's memory_saving=True has no second derivative: set it to False for one")


def _final(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes differentiating the gradients of a Function an error; they would be taken for constants."""

    def run(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.no_grad(), ctx.run.autocast(enabled=False):  # the backward pass may run inside autocast
            gradients = backward(ctx, *upstream)
        if not create_graph:
            return gradients
        found = iter(_Final.apply(*(_leaf(x, True) for x in gradients if x is not None)))
        return tuple(None if x is None else next(found) for x in gradients)

    return run


class _RebuiltFlow(torch.autograd.Function):
    """A flow that does not store its output, nor its input unless it is the first or cannot be rebuilt."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, k: int, audio: Tensor, spect: Tensor, log_det: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.k = run, k
        ctx.save_for_backward(None if k in run.plain else audio, spect, log_det, *parameters)
        n = len(run.mixing[k])
        mixing, coupling = parameters[:n], parameters[n:]
        log_det = None if log_det is None else log_det.detach()
        # With gradients enabled modules compute as in the backward pass, to the bit, and nothing requires one.
        with (
            torch.enable_grad(),
            holding(run.mixing[k], _leaves(mixing, [False] * n, run.mixing_dtype(k))),
            holding(run.coupling[k], _leaves(coupling, [False] * len(coupling))),
        ):
            signal, log_s, log_det = run.flow(k, audio.detach(), spect.detach(), log_det)
        return signal, log_s.clone() if log_s._is_view() else log_s, log_det

    @staticmethod
    @_final
    def backward(
        ctx: Any, d_output: Tensor | None, d_log_s: Tensor | None, d_log_det: Tensor | None
    ) -> tuple[Any, ...]:
        run, k = ctx.run, ctx.k
        flow, n = run.flows[k], len(run.mixing[k])
        audio, spect, log_det, *parameters = ctx.saved_tensors
        needs_audio, needs_spect, needs_log_det, *needs = ctx.needs_input_grad[2:]
        needs_before = needs_audio or any(needs[:n])  # a gradient of the coupling's input
        if d_output is None and d_log_s is None:  # only the input is wanted
            needs_before = needs_spect = False
            needs[n:] = [False] * len(needs[n:])
        mixing = _leaves(parameters[:n], needs[:n], run.mixing_dtype(k))
        coupling = _leaves(parameters[n:], needs[n:])
        spect = _leaf(spect, needs_spect)
        log_det = None if log_det is None else _leaf(log_det, needs_log_det)

        def mix(audio: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad(), holding(run.mixing[k], mixing):
                return run.mix(k, audio, log_det)

        output, stored = run.outputs.pop(k), audio is not None
        if stored:
            audio = _leaf(audio, needs_audio)
            mixed, log_det_sum = mix(audio)
            kept, before = flow.split(mixed.detach())
        else:
            kept, changed = flow.split(output)
        kept = _leaf(kept, needs_before)
        with torch.enable_grad(), holding(run.coupling[k], coupling):
            b_log_s = run.couple(k, kept, spect)
        if not stored:
            before = reference_coupling.affine_coupling_inverse(changed, b_log_s.detach())
            mixed = flow.join(kept.detach(), before)
            audio = reference_mixing.invertible_conv1x1_inverse(mixed, mixing[0].detach(), run.inverses[k])
            audio = _leaf(audio, needs_audio)
        run.hand_on(k, audio.detach())
        before = _leaf(before, needs_before)
        with torch.enable_grad():
            changed, log_s = run.change(before, b_log_s)
        if stored:
            zero = _nan_if_inexact(output, flow.join(kept.detach(), changed.detach()))
            d_output, d_log_s, d_log_det = (
                d if d is None else d + zero.to(d.dtype) for d in (d_output, d_log_s, d_log_det)
            )
        d_kept, d_changed = (None, None) if d_output is None else flow.split(d_output)
        d_of_wn, d_before, d_spect, *d_coupling = _gradients(
            [(changed, d_changed), (log_s, d_log_s)], [kept, before, spect, *coupling]
        )
        del changed, log_s, b_log_s

        d_mixed = None
        if needs_before:  # log s alone does not reach the half that is changed
            d_mixed = flow.join(
                torch.zeros_like(kept) if d_of_wn is None else d_of_wn,
                torch.zeros_like(before) if d_before is None else d_before,
            )
            if d_kept is not None:
                flow.split(d_mixed)[0].add_(d_kept)
        if not stored:
            mixed, log_det_sum = mix(audio)
        d_audio, d_log_det, *d_mixing = _gradients(
            [(mixed, d_mixed), (log_det_sum, d_log_det)], [audio, log_det, *mixing]
        )
        return None, None, d_audio, d_spect, d_log_det, *d_mixing, *d_coupling


class _Results(torch.autograd.Function):
    """The identity on the results of all rebuilt flows, which stores what the backward pass begins with.

    A gradient of any result passes through it first, and then through all flows from the last one on.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, signal: Tensor, early: Tensor | None, *others: Tensor) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        ctx.run = run
        ctx.save_for_backward(signal, early, *run.weights)
        return tuple(None if x is None else x.view_as(x) for x in (signal, early, *others))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad(), ctx.run.autocast(enabled=False):
            ctx.run.start(*ctx.saved_tensors)
        return None, *upstream
