"""Location-sensitive attention of NVIDIA's family, coqui and ESPnet before and after."""

import copy

import pytest
import torch

from fastglow import accelerate
from fastglow.kernels import backend

from .comparing import assert_close, assert_same_results, results
from .rebuilt_tacotron2 import (
    CoquiAttention,
    EspnetAttention,
    FamilyAttention,
    MellotronAttention,
    SquaredAttention,
    linear,
)

OP = "location_attention"


@pytest.fixture(autouse=True)
def reference():
    """On a CPU the modules' own methods would run."""
    with backend.use_backend("reference"):
        yield


def mask_of(B, T, lengths=(7, 4, 1)):
    return torch.arange(T) >= torch.tensor(lengths[:B]).clamp(max=T)[:, None]


def inputs(B, T):
    weights = torch.rand(B, 2, T)
    return [torch.randn(B, 9), torch.randn(B, T, 6), torch.randn(B, T, 5), weights / weights.sum(2, keepdim=True)]


# NVIDIA's family


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("B, T, taps", [(1, 7, 5), (3, 7, 3), (2, 1, 1), (3, 7, 31)])
def test_family(wrapped, masked, B, T, taps):
    torch.manual_seed(1)
    mask = mask_of(B, T) if masked else None
    attention = FamilyAttention(taps=taps, wrapped=wrapped)
    assert_same_results(attention, lambda a, *x: a(*x, mask), inputs(B, T), OP)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_family_in_16_bits(dtype):
    torch.manual_seed(2)
    attention, x, mask = FamilyAttention(), inputs(3, 7), mask_of(3, 7)
    exact = attention(*x, mask)
    attention.to(dtype)
    x = [value.to(dtype) for value in x]
    expected = attention(*x, mask)
    accelerate(attention, strict=True)
    for a, b, c in zip(exact, expected, attention(*x, mask), strict=True):
        assert c.dtype == b.dtype == dtype
        assert (c - a).abs().max() <= 2 * (b - a).abs().max() + torch.finfo(dtype).eps


def test_autocast_gives_the_same_dtypes():
    torch.manual_seed(3)
    attention, x, mask = FamilyAttention(wrapped=False), inputs(2, 7), mask_of(2, 7)
    with torch.autocast("cpu", torch.bfloat16):
        expected = attention(*x, mask)
        accelerate(attention, strict=True)
        found = attention(*x, mask)
    assert [y.dtype for y in found] == [y.dtype for y in expected]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0.02, atol=0.02)


def test_a_finite_value_masks_out_too():
    torch.manual_seed(4)
    attention = FamilyAttention()
    attention.score_mask_value = float(torch.finfo(torch.float16).min)
    assert_same_results(attention, lambda a, *x: a(*x, mask_of(2, 7)), inputs(2, 7), OP)


def test_a_small_mask_value_is_left_to_the_module():
    torch.manual_seed(5)
    attention, x = FamilyAttention(), inputs(2, 7)
    attention.score_mask_value = -1.0
    expected = attention(*x, mask_of(2, 7))
    accelerate(attention)  # whether or not it is swapped: this value does not mask out
    assert all(map(torch.equal, expected, attention(*x, mask_of(2, 7))))


def test_an_item_of_padding_only_gets_zeros():
    torch.manual_seed(6)
    attention, x, mask = FamilyAttention(), inputs(2, 7), mask_of(2, 7, (7, 0))
    expected = attention(*x, mask)
    accelerate(attention, strict=True)
    found = attention(*x, mask)
    assert all(y[1].isnan().all() for y in expected) and all((y[1] == 0).all() for y in found)
    assert_close([y[0].detach() for y in expected], [y[0].detach() for y in found])


@pytest.mark.parametrize("mask", [mask_of(1, 7, (4,)), mask_of(2, 7).float() > 0.5])
def test_masks_that_broadcast(mask):
    torch.manual_seed(7)
    assert_same_results(FamilyAttention(wrapped=False), lambda a, *x: a(*x, mask), inputs(2, 7), OP)


def test_keywords():
    torch.manual_seed(8)

    def call(attention, query, memory, processed, cat):
        return attention(
            query, memory=memory, processed_memory=processed, attention_weights_cat=cat, mask=mask_of(2, 7)
        )

    assert_same_results(FamilyAttention(), call, inputs(2, 7), OP)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("keyword", [True, False])
def test_mellotron(forced, keyword):
    torch.manual_seed(9)
    weights = torch.rand(2, 7) if forced else None

    def call(attention, *x):
        if keyword:
            return attention(*x, mask_of(2, 7), attention_weights=weights)
        return attention(*x, mask_of(2, 7), weights)

    assert_same_results(MellotronAttention(), call, inputs(2, 7), OP)


def test_the_kernels_run():
    torch.manual_seed(10)
    mask = mask_of(2, 7)
    for attention, call, values in (
        (FamilyAttention(), lambda a, *x: a(*x, mask), inputs(2, 7)),
        (CoquiAttention(norm="sigmoid"), utterance(mask), utterance_inputs(2, 7)),
        (without_softmax_bias(EspnetAttention()), espnet_utterance([7, 4]), utterance_inputs(2, 7)),
    ):
        for gradients in (False, True):
            expected = results(attention, call, values, True, gradients)
            with accelerate(attention, strict=True), backend.use_backend("triton"):
                before = backend.launches[OP]
                found = results(attention, call, values, True, gradients)
            assert backend.launches[OP] > before
            assert_close(expected, found)


@pytest.mark.parametrize("attention, named", [
    (FamilyAttention(query_bias=True), "query_layer has a bias"),
    (FamilyAttention(bias=True), "location_conv has a bias"),
    (FamilyAttention(taps=4), "location_conv has kernel_size=4, must be odd"),
    (FamilyAttention(dilation=2, padding=4), "location_conv has dilation=(2,), must be (1,)"),
    (FamilyAttention(conv_name="conv"), "location_layer has no location_conv"),
    (SquaredAttention(), "its results differ"),
])  # fmt: skip
def test_differences_of_the_family_are_named(attention, named):
    (entry,) = accelerate(attention).left
    assert named in entry.text


def test_parts_of_another_kind_are_named():
    attention = FamilyAttention()
    attention.v = linear(5, 2)
    assert "v has out_features=2, must be 1" in accelerate(attention).left[0].text
    attention.v = torch.nn.Identity()
    assert "v is a Identity, must be a Linear" in accelerate(attention).left[0].text
    attention = FamilyAttention()
    del attention.score_mask_value
    assert "score_mask_value" in accelerate(attention).left[0].text


# coqui


def utterance_inputs(B, T):
    return [torch.randn(3, B, 9), torch.randn(B, T, 6)]


def utterance(mask):
    """Three frames; mask True in padding."""

    def call(attention, queries, memory):
        attention.init_states(memory)
        processed = attention.preprocess_inputs(memory)
        valid = None if mask is None else ~mask
        contexts = [attention(query, memory, processed, valid) for query in queries]
        return [*contexts, attention.attention_weights, attention.attention_weights_cum]

    return call


def without_softmax_bias(attention):
    """Its gradient is rounding: a softmax does not depend on it."""
    bias = attention.gvec.bias if hasattr(attention, "gvec") else attention.v.linear_layer.bias
    bias.requires_grad_(False)
    return attention


@pytest.mark.parametrize("norm", ["softmax", "sigmoid"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("B, T", [(1, 7), (3, 7), (2, 1)])
def test_coqui(norm, masked, B, T):
    torch.manual_seed(11)
    attention = CoquiAttention(norm=norm)
    if norm == "softmax":
        attention = without_softmax_bias(attention)
    assert_same_results(attention, utterance(mask_of(B, T) if masked else None), utterance_inputs(B, T), OP)


def test_the_bias_of_a_softmax_has_no_gradient():
    torch.manual_seed(12)
    for attention, call in (
        (CoquiAttention(), utterance(mask_of(2, 7))),
        (EspnetAttention(), espnet_utterance([7, 4])),
    ):
        accelerate(attention, strict=True)
        sum(map(torch.Tensor.square, call(attention, *utterance_inputs(2, 7))[:3])).sum().backward()
        bias = attention.gvec.bias if hasattr(attention, "gvec") else attention.v.linear_layer.bias
        assert bias.grad is None or bias.grad.abs() < 1e-5


def test_coqui_windowing_is_its_own():
    torch.manual_seed(13)
    attention = without_softmax_bias(CoquiAttention(windowing=True))
    assert_same_results(attention, utterance(mask_of(2, 7)), utterance_inputs(2, 7), OP)
    accelerate(attention, strict=True)
    attention.eval()
    attention.windowing = False  # as coqui sets it between calls
    attention.init_states(torch.zeros(1, 1, 6))
    other = copy.deepcopy(attention)
    other.windowing = True
    x = utterance_inputs(2, 7)
    with torch.no_grad():
        assert not torch.allclose(utterance(None)(attention, *x)[0], utterance(None)(other, *x)[0])


@pytest.mark.parametrize("make", [CoquiAttention, EspnetAttention])
def test_state_may_come_from_the_module_itself(make):
    """Swapped and swapped back within an utterance."""
    torch.manual_seed(14)
    attention, (queries, memory) = make(), utterance_inputs(2, 7)
    expected = (utterance(mask_of(2, 7)) if make is CoquiAttention else espnet_utterance([7, 4]))(
        attention, queries, memory
    )
    if make is CoquiAttention:
        attention.init_states(memory)
    else:
        attention.reset()
    weights, contexts = None, []
    for i, query in enumerate(queries):
        report = accelerate(attention, strict=True) if i != 1 else None
        if make is CoquiAttention:
            contexts.append(attention(query, memory, attention.preprocess_inputs(memory), ~mask_of(2, 7)))
        else:
            context, weights = attention(memory, [7, 4], query if i else None, weights)
            contexts.append(context)
        if report is not None:
            report.undo()
    assert_close([x.detach() for x in expected[:3]], [x.detach() for x in contexts])


@pytest.mark.parametrize("options, named", [
    ({"location": False}, "location_attention is off"),
    ({"norm": "entmax"}, "norm is 'entmax', must be 'softmax' or 'sigmoid'"),
    ({"taps": 2}, "location_conv1d has kernel_size=2, must be odd"),
])  # fmt: skip
def test_coqui_differences_are_named(options, named):
    (entry,) = accelerate(CoquiAttention(**options)).left
    assert named in entry.text


def test_coqui_forward_attention_is_left():
    attention = CoquiAttention()
    attention.forward_attn = True
    assert "forward_attn is on" in accelerate(attention).left[0].text


# ESPnet


def espnet_utterance(lengths, **options):
    """Three frames with the weights of the frame before; the first without a state of the decoder."""

    def call(attention, queries, memory):
        attention.reset()
        weights, outputs = None, []
        for i, query in enumerate(queries):
            context, weights = attention(memory, lengths, query if i else None, weights, **options)
            outputs.append(context)
        return [*outputs, weights, attention.enc_h, attention.pre_compute_enc_h]

    return call


@pytest.mark.parametrize("options", [{}, {"scaling": 1.0}, {"last_attended_idx": 1}])
@pytest.mark.parametrize("lengths", [[7], [7, 4, 1], torch.tensor([3, 7])])
@pytest.mark.parametrize("han_mode", [True, False])
def test_espnet(options, lengths, han_mode):
    torch.manual_seed(15)
    attention = without_softmax_bias(EspnetAttention(han_mode=han_mode))
    assert_same_results(attention, espnet_utterance(lengths, **options), utterance_inputs(len(lengths), 7), OP)


def test_espnet_keeps_its_state():
    torch.manual_seed(16)
    attention, (queries, memory) = EspnetAttention(), utterance_inputs(2, 7)
    accelerate(attention, strict=True)
    attention(memory, [7, 4], queries[0], None)
    assert attention.enc_h is memory and attention.h_length == 7
    assert torch.equal(attention.mask, mask_of(2, 7))
    torch.testing.assert_close(attention.pre_compute_enc_h, attention.mlp_enc(memory))
    attention.reset()
    assert attention.mask is None and attention.pre_compute_enc_h is None


def test_espnet_positional_window():
    torch.manual_seed(17)
    attention = without_softmax_bias(EspnetAttention())

    def call(attention, queries, memory):
        attention.reset()
        return attention(memory, [7, 4], queries[0], None, 1.5, 3, 0, 2)

    assert_same_results(attention, call, utterance_inputs(2, 7), OP)


def test_espnet_differences_are_named():
    assert "loc_conv has kernel_size=(3, 5), must be (1, 5)" in accelerate(EspnetAttention(rows=3)).left[0].text
