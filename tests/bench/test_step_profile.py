"""The groups of a step's profile, and what a small WaveGlow's step has in them."""

import copy

import pytest
import torch

from bench import step_profile
from bench.precision import OFF
from bench.step_profile import (
    COPIES,
    ELEMENTWISE,
    LOOPS,
    OPTIMIZER,
    PRODUCTS,
    REORDERS,
    REST,
    StepProfile,
    group_of,
    profiled,
    seconds_of_reorders,
    table,
)
from bench.test_bench_train_step import WaveGlowStep
from bench.training import train_step
from bench.workload import FASTGLOW, Implementation

LOG = [
    "onednn_verbose,v1,info,oneDNN v3.7.1",
    "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::a dst:f32::B,,,512x256x1x3,0.25",
    "onednn_verbose,v1,primitive,exec,cpu,convolution,brg:avx512,forward,src:f32,,,mb2_ic256,4.5",
    "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::B dst:f32::a,,,2x512x1x9,0.5",
    "something else",
]


@pytest.mark.parametrize(
    ("event", "group"),
    [
        ("aten::addmm_", PRODUCTS),
        ("aten::mkldnn_convolution", PRODUCTS),
        ("mkldnn::_linear_pointwise", PRODUCTS),
        ("aten::copy_", COPIES),
        ("aten::tanh_", ELEMENTWISE),
        ("aten::_fused_adam_", OPTIMIZER),
        ("Optimizer.zero_grad#Adam.zero_grad", OPTIMIZER),
        ("fastglow::wavenet_stack", LOOPS),
        ("GeneratedBackwardFor_fastglow_wavenet_stack_default", LOOPS),
        ("aten::view", REST),
        ("custom::mm", REST),
    ],
)
def test_group_of_an_event(event, group):
    assert group_of(event) == group


def test_no_operator_is_in_two_groups():
    names = [name for names in step_profile.GROUPS.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_every_name_is_an_operator():
    found = (
        set(dir(torch.ops.aten)) | set(dir(torch.ops.mkldnn)) | {x.split("::")[1].split(".")[0] for x in all_names()}
    )
    assert not {name for names in step_profile.GROUPS.values() for name in names.split()} - found


def all_names():
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(("aten::", "mkldnn::"))]


def test_reorders_are_taken_out_of_the_products():
    one = StepProfile(reorders=sum(seconds_of_reorders(LOG)))
    one.seconds.update({"aten::convolution_backward": 2.0, "aten::add": 1.0})
    assert one.groups == pytest.approx({PRODUCTS: 2.0 - 0.75e-3, ELEMENTWISE: 1.0, REORDERS: 0.75e-3})


def test_table():
    one, other = StepProfile(), StepProfile()
    one.seconds.update({"aten::mm": 3.0, "aten::add": 0.75, "aten::sum": 0.25})
    one.inside.update({"aten::mm": 1.0, "aten::add": 0.25, "aten::sum": 0.25})
    one.calls["aten::add"] = 7
    other.seconds["aten::mm"] = 1.0
    lines = table({"a": one, "b": other}, n_operators=1)
    assert lines[0] == "| group | a | b |"
    assert f"| {PRODUCTS} | 3.000 s, 75.0 % | 1.000 s, 100.0 % |" in lines
    assert f"| {ELEMENTWISE} | 0.750 s, 18.8 % | 0.000 s, 0.0 % |" in lines
    assert "| products, and all inside our operators | 87.5 % | 100.0 % |" in lines
    assert "a, outside both, with all calls: `aten::add` 500 ms (7)." in lines


def test_of_a_step(capfd):
    """The WaveNets are one operator each, and oneDNN's convolutions are left to what is around them."""
    workload = WaveGlowStep("profile", OFF, batch=2, small=True, channels=16, audio_length=1000)
    model = copy.deepcopy(workload.model)
    trainee = workload.trainee(Implementation(FASTGLOW), model, dropout=True)
    step = train_step(trainee, workload.new_batch(checked=False), OFF, workload.recipe, fused=True)
    found = profiled(step, n_steps=1)
    assert "onednn_verbose" not in capfd.readouterr().out
    layers = model.config.n_flows * model.config.WN_config["n_layers"]
    assert found.calls["fastglow::wavenet_stack"] == found.calls["fastglow::wavenet_stack_backward"] == 4
    assert found.calls["aten::addmm_"] >= 10 * layers
    assert found.calls["aten::_weight_norm_interface"] == 4 + 3 * layers
    assert found.calls["aten::conv1d"] == model.config.n_flows  # the invertible ones
    gates = "aten::tanh_", "aten::sigmoid_", "aten::tanh_backward"
    assert all(found.inside[name] == pytest.approx(found.seconds[name]) for name in gates)
    assert not {"aten::tanh_", "aten::mkldnn_convolution"} & found.outside.keys()
    assert found.outside["aten::_fused_adam_"] == found.seconds["aten::_fused_adam_"] > 0
    assert found.groups[PRODUCTS] > 0 and found.groups[LOOPS] > 0 and found.reorders >= 0
