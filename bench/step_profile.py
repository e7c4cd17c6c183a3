"""Where a training step spends its time on a CPU: by PyTorch's profiler and oneDNN's log, in groups of operations.

Run `python -m bench.step_profile`.
"""

import argparse
import copy
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from fastglow.kernels import backend
from fastglow.threads import let_threads_sleep

from .precision import BF16, OFF
from .training import TrainStep, train_step
from .workload import FASTGLOW, Implementation

PRODUCTS, REORDERS = "products", "reorders inside oneDNN"
COPIES, ELEMENTWISE, SUMS = "copies, casts, concatenation, fills", "elementwise", "sums, norms, softmax"
WEIGHT_NORM, RANDOM, OPTIMIZER = "weight norm", "dropout's random numbers", "optimizer, clipping"
LOOPS, REST = "our operators' Python", "views, allocation, autograd, the rest"

GROUPS = {
    PRODUCTS: "mm addmm addmm_ bmm baddbmm baddbmm_ mv addmv addmv_ dot linear _linear_pointwise "
    "_reorder_linear_weight convolution _convolution mkldnn_convolution convolution_backward _convolution_pointwise_ "
    "mkldnn_rnn_layer mkldnn_rnn_layer_backward mkldnn_linear _slow_conv2d_forward _slow_conv2d_backward "
    "slow_conv_transpose2d _nnpack_spatial_convolution thnn_conv2d",
    COPIES: "copy_ cat stack clone contiguous fill_ zero_ col2im im2col masked_fill_ masked_fill index_select "
    "embedding embedding_dense_backward _pack_padded_sequence gather scatter_add_ constant_pad_nd flip",
    ELEMENTWISE: "add add_ sub sub_ rsub mul mul_ div div_ addcmul addcmul_ tanh tanh_ sigmoid sigmoid_ relu relu_ exp "
    "tanh_backward sigmoid_backward threshold_backward clamp clamp_min neg log1p pow abs where bitwise_and ge lt eq "
    "_thnn_fused_lstm_cell binary_cross_entropy_with_logits mse_loss mse_loss_backward log_sigmoid_forward",
    SUMS: "sum mean _softmax _softmax_backward_data linalg_vector_norm native_batch_norm native_batch_norm_backward "
    "_weight_norm_differentiable_backward",
    WEIGHT_NORM: "_weight_norm_interface _weight_norm_interface_backward",
    RANDOM: "bernoulli_ native_dropout random_ uniform_ normal_",
    OPTIMIZER: "_fused_adam_ _foreach_add_ _foreach_norm _foreach_mul_",
}
"""Operators of PyTorch by their names in the profile, without the namespace; what no group names is the rest."""

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
_OPTIMIZER_CALLS = ("Optimizer.step", "Optimizer.zero_grad")
_LOGGED = "onednn_verbose"


@dataclass
class StepProfile:
    """
    Attributes:
        seconds: self time, by operator.
        inside: the part of it in which one of fastglow's operators called it, itself included.
        calls: by operator.
        reorders: seconds in which oneDNN copies into its layouts and back, inside the products.
    """

    seconds: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    reorders: float = 0.0

    @property
    def groups(self) -> dict[str, float]:
        """Seconds of each group, the largest first."""
        found: Counter[str] = Counter({REORDERS: self.reorders, PRODUCTS: -self.reorders})
        for name, seconds in self.seconds.items():
            found[group_of(name)] += seconds
        return dict(found.most_common())

    @property
    def outside(self) -> dict[str, float]:
        """Seconds of each operator that is no product and that no operator of fastglow called, the largest first."""
        found = self.seconds - self.inside
        return {name: seconds for name, seconds in found.most_common() if group_of(name) != PRODUCTS}


def group_of(name: str) -> str:
    """The group of an event of the profiler, such as `aten::mm`."""
    if name.startswith(_OPTIMIZER_CALLS):
        return OPTIMIZER
    namespace, _, operator = name.partition("::")
    if namespace == "fastglow" or "For_fastglow_" in name:
        return LOOPS
    return _GROUP_OF.get(operator, REST) if namespace in ("aten", "mkldnn") else REST


def profiled(step: Callable[[], object], n_steps: int) -> StepProfile:
    """Means of some steps, after two that warm up; reorders are from one more."""
    found = StepProfile()
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as one:
        for _ in range(n_steps):
            step()
    events = one.events()
    assert events is not None
    for event in events:
        seconds = event.self_cpu_time_total / 1e6 / n_steps
        found.seconds[event.key] += seconds
        found.calls[event.key] += 1
        if _is_inside(event):
            found.inside[event.key] += seconds
    found.calls = Counter({name: count // n_steps for name, count in found.calls.items()})
    with _log_of_onednn() as lines:
        step()
    found.reorders = sum(seconds_of_reorders(lines))
    return found


def _is_inside(event: FunctionEvent | None) -> bool:
    while event is not None and group_of(event.key) != LOOPS:
        event = event.cpu_parent
    return event is not None


def seconds_of_reorders(lines: Sequence[str]) -> Iterator[float]:
    """From oneDNN's log: `onednn_verbose,v1,primitive,exec,cpu,reorder,...,milliseconds`."""
    for line in lines:
        parts = line.split(",")
        if parts[0] == _LOGGED and "exec" in parts and "reorder" in parts:
            yield float(parts[-1]) / 1e3


@contextmanager
def _log_of_onednn() -> Iterator[list[str]]:
    """Inside, oneDNN logs; the lines are there afterwards. It writes to the process's standard output itself."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("w+") as log:
            stdout = os.dup(1)
            os.dup2(log.fileno(), 1)
            try:
                with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                    yield lines
            finally:
                os.dup2(stdout, 1)
                os.close(stdout)
        lines += path.read_text().splitlines()


def table(profiles: Mapping[str, StepProfile], n_operators: int) -> list[str]:
    """Markdown: the groups, then the operators that take most of the time outside both products and our operators."""
    names = list(profiles)
    groups = sorted(
        {group for one in profiles.values() for group in one.groups},
        key=lambda group: -sum(one.groups.get(group, 0.0) for one in profiles.values()),
    )
    lines = [f"| group | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    totals = {name: sum(one.groups.values()) for name, one in profiles.items()}
    for group in groups:
        seconds = [(one.groups.get(group, 0.0), totals[name]) for name, one in profiles.items()]
        lines.append(f"| {group} | {' | '.join(f'{s:.3f} s, {100 * s / total:.1f} %' for s, total in seconds)} |")
    lines.append(f"| all | {' | '.join(f'{total:.2f} s' for total in totals.values())} |")
    outside = {name: sum(one.outside.values()) for name, one in profiles.items()}
    shares = [f"{100 - 100 * outside[name] / totals[name]:.1f} %" for name in names]
    lines.append(f"| products, and all inside our operators | {' | '.join(shares)} |")
    for name, one in profiles.items():
        listed = [f"`{op}` {s * 1e3:.0f} ms ({one.calls[op]})" for op, s in [*one.outside.items()][:n_operators]]
        lines += ["", f"{name}, outside both, with all calls: {', '.join(listed)}."]
    return lines


def workloads(models: Sequence[str], batch: int | None) -> dict[str, TrainStep]:
    """The published widths."""
    from .test_bench_train_step import Tacotron2Step, WaveGlowStep

    every = {
        "waveglow": WaveGlowStep("profile", OFF, batch=batch or 2, channels=256, audio_length=8000),
        "tacotron2": Tacotron2Step("profile", OFF, batch=batch or 8, longest=(60, 120), shortest=(20, 60)),
    }
    return {name: every[name] for name in models}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step_profile", description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["waveglow", "tacotron2"], help="waveglow, tacotron2; default: both"
    )
    parser.add_argument("--batch", type=int, help="items; default: 2 segments of 8000 samples, 8 texts")
    parser.add_argument("--bf16", action="store_true", help="under bfloat16 autocast; default: float32")
    parser.add_argument("--backend", default=backend.AUTOMATIC, help="reference: without the forms for CPUs")
    parser.add_argument("--steps", type=int, default=3, help="that are profiled; default: %(default)s")
    parser.add_argument("--operators", type=int, default=12, help="listed outside of them; default: %(default)s")
    options = parser.parse_args(argv)
    let_threads_sleep()
    precision = BF16 if options.bf16 else OFF
    found = {}
    for name, workload in workloads(options.models, options.batch).items():
        model = copy.deepcopy(workload.model)
        trainee = workload.trainee(Implementation(FASTGLOW), model, dropout=True)
        step = train_step(trainee, workload.new_batch(checked=False), precision, workload.recipe, fused=True)
        with backend.use_backend(options.backend):
            found[f"{name}, batch {workload.batch}"] = profiled(step, options.steps)
    print("\n".join(table(found, options.operators)))


if __name__ == "__main__":
    main()
