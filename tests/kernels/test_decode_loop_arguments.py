"""Wrong arguments of `decode_loop`, and calls that fall back to the reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastglow.kernels import OutputWeights, backend, fold_decoder

from .checks import DEVICE, assert_kernels_refuse, assert_refused, assert_same_bits, launch_counter
from .decode_loop_cases import Case, call, reference


@pytest.mark.parametrize("name", ["triton", "reference", "auto"])
def test_no_items(name, device):
    batch = Case().batch(torch.float32, device).items([])
    with backend.use_backend(name):
        frames, steps, alignments = call(batch, Case())
    assert frames.shape == (0, 1, 6)
    assert steps.shape == (0,)
    assert alignments.shape == (0, 1, 7)


@pytest.mark.parametrize(
    "case, dtype, reason",
    [
        (Case(), torch.float64, "float64 is not among float32, float16 and bfloat16"),
        (Case(n_prenet=(9, 5, 8)), torch.float32, "the prenet has 3 layers, must have 2"),
        (Case(n_prenet=(9,)), torch.float32, "the prenet has 1 layers, must have 2"),
        (Case(n_attention=257, max_steps=1, stops="never"), torch.float32, "attention dimension 257 is above 256"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_unsupported_calls_fall_back_or_are_refused(case, dtype, reason, device, caplog):
    batch = case.batch(dtype, device)
    launches = launch_counter("decode_loop")
    backend.logged.clear()
    with backend.use_backend("auto"):
        assert_same_bits(
            call(batch, case, folded=lambda dtype: pytest.fail("was folded")), call(batch, case, reference)
        )
    assert (reason in caplog.text) == (device == "cuda")
    assert_kernels_refuse(f"^decode_loop: the Triton .*: {reason}", call, batch, case)
    assert launches() == 0


def test_fold_decoder_refuses_a_prenet_of_three_layers():
    batch = Case(n_prenet=(9, 5, 8)).batch(torch.float32)
    assert_refused("fold_decoder: the prenet has 3 layers, must have 2", fold_decoder, batch.recurrent, batch.output)


def test_graphs_are_refused_on_a_cpu():
    if DEVICE == "cuda":
        pytest.skip("with a GPU, the kernels do not run on the CPU")
    batch = Case().batch(torch.float32)
    assert_kernels_refuse("'graph' does not support .* cpu has no CUDA", call, batch, Case(), method="graph")


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("memory", (7, 20), r"memory has shape \[7, 20\], must be \[B, T, D\] with T at least 1"),
        ("memory", (3, 0, 20), r"memory has shape \[3, 0, 20\], must be \[B, T, D\] with T at least 1"),
        ("processed_memory", (3, 6, 10), r"processed_memory has shape \[3, 6, 10\], must be \[3, 7, 10\]"),
        ("lengths", (2,), r"lengths has shape \[2\], must be \[3\]"),
        ("seeds", (3, 1), r"seeds has shape \[3, 1\], must be \[3\]"),
        ("attention_rnn.weight_ih", (28, 30), r"attention_rnn.weight_ih has shape \[28, 30\], must be \[28, 31\]"),
        ("attention_rnn.weight_hh", (27, 7), r"attention_rnn.weight_hh has shape \[27, 7\], must be \[28, 7\]"),
        ("attention_rnn.bias_ih", (27,), r"attention_rnn.bias_ih has shape \[27\], must be \[28\]"),
        ("attention_rnn.bias_hh", (28, 1), r"attention_rnn.bias_hh has shape \[28, 1\], must be \[28\]"),
        ("attention.query", (10, 8), r"attention.query has shape \[10, 8\], must be \[10, 7\]"),
        ("attention.location_conv", (5, 2, 6), "location_conv has 6 taps: use an odd number"),
        ("attention.location_conv", (5, 1, 7), r"location_conv has shape \[5, 1, 7\], must be \[5, 2, 7\]"),
        ("attention.location_dense", (10, 4), r"location_dense has shape \[10, 4\], must be \[10, 5\]"),
        ("attention.v", (10,), r"attention.v has shape \[10\], must be \[1, 10\]"),
        ("decoder_rnn.weight_ih", (36, 28), r"decoder_rnn.weight_ih has shape \[36, 28\], must be \[36, 27\]"),
        ("decoder_rnn.weight_hh", (35, 9), r"decoder_rnn.weight_hh has shape \[35, 9\], must be \[36, 9\]"),
        ("decoder_rnn.bias_ih", (9,), r"decoder_rnn.bias_ih has shape \[9\], must be \[36\]"),
        ("decoder_rnn.bias_hh", (9,), r"decoder_rnn.bias_hh has shape \[9\], must be \[36\]"),
        ("prenet", (9, 5), r"prenet\[0\] has shape \[9, 5\], must be \[9, 6\]"),
        ("projection", (6, 28), r"projection has shape \[6, 28\], must be \[6, 29\]"),
        ("projection_bias", (5,), r"projection_bias has shape \[5\], must be \[6\]"),
        ("gate", (2, 29), r"gate has shape \[2, 29\], must be \[1, 29\]"),
        ("gate_bias", (), r"gate_bias has shape \[\], must be \[1\]"),
    ],
)
def test_wrong_shapes(name, shape, message):
    batch = Case().batch(torch.float32)
    x, (group, _, leaf) = torch.zeros(shape), name.partition(".")
    if group in ("lengths", "seeds"):
        x = x.long()
    if leaf:
        changed = getattr(batch.recurrent, group)._replace(**{leaf: x})
        batch = replace(batch, recurrent=batch.recurrent._replace(**{group: changed}))
    elif group == "prenet":
        batch = replace(batch, output=batch.output._replace(prenet=(x, batch.output.prenet[1])))
    elif group in OutputWeights._fields:
        batch = replace(batch, output=batch.output._replace(**{group: x}))
    else:
        batch = replace(batch, **{group: x})
    assert_refused(message, call, batch, Case())


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"lengths": torch.ones(3)}, "lengths has dtype float32, must be an integer dtype"),
        ({"lengths": torch.ones(3, dtype=torch.bool)}, "lengths has dtype bool, must be an integer dtype"),
        ({"seeds": torch.ones(3, dtype=torch.int32)}, "seeds have dtype int32, must be int64"),
        ({"p_prenet_dropout": 1.0}, "p_prenet_dropout=1.0 must be at least 0 and below 1"),
        ({"p_prenet_dropout": -0.5}, "p_prenet_dropout=-0.5 must be at least 0 and below 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"method": "fast"}, "method='fast' must be 'steps', 'graph', 'persistent' or None"),
    ],
    ids=str,
)
def test_wrong_arguments(changed, message):
    inputs = {name: x for name, x in changed.items() if isinstance(x, Tensor)}
    options = {name: x for name, x in changed.items() if name not in inputs}
    assert_refused(message, call, replace(Case().batch(torch.float32), **inputs), Case(), **options)
