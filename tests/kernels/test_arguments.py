"""Checks of arguments: valid ones pass, and the messages for invalid ones."""

import pytest
import torch

from fastglow.kernels import arguments

from .checks import assert_refused, strided

CPU = torch.device("cpu")
WRONG = {
    r"x has shape \[2, 3\], must be \[2, T, 4\]": (arguments.check_shape, "x", torch.zeros(2, 3), (2, "T", 4)),
    r"x has shape \[2, 3\], must be \[2, 4\]": (arguments.check_shape, "x", torch.zeros(2, 3), (2, 4)),
    "n=0 must be at least 1": (arguments.check_at_least, "n", 0, 1),
    "mode='c' must be 'a', 'b' or None": (arguments.check_choice, "mode", "c", ("a", "b", None)),
    "p=1.0 must be at least 0 and below 1": (arguments.check_probability, "p", 1.0),
    "p=-0.5 must be at least 0 and below 1": (arguments.check_probability, "p", -0.5),
    "p=nan must be at least 0 and below 1": (arguments.check_probability, "p", float("nan")),
    "seed=9223372036854775808 does not fit in 64 bits": (arguments.check_seed, 2**63, CPU),
    r"seed has dtype int64, shape \[1\]": (arguments.check_seed, torch.zeros(1, dtype=torch.int64), CPU),
    r"seed has dtype float32, shape \[\], device cpu": (arguments.check_seed, torch.zeros(()), CPU),
    "seeds have dtype int32, must be int64": (arguments.check_seeds, torch.zeros(2, dtype=torch.int32), 2),
    r"seeds has shape \[3\], must be \[2\]": (arguments.check_seeds, torch.zeros(3, dtype=torch.int64), 2),
    "lengths has dtype bool, must be an integer dtype": (arguments.check_integers, "lengths", torch.ones(2) > 0),
}


@pytest.mark.parametrize("message", WRONG)
def test_messages(message):
    check, *values = WRONG[message]
    assert_refused(message, check, *values)


def test_the_argument_that_fixes_the_sizes_is_named():
    message = r"x has shape \[2, 3\], must be \[2, 4\] beside memory \[2, 4, 5\]$"
    memory = torch.zeros(2, 4, 5)
    assert_refused(message, arguments.check_shape, "x", torch.zeros(2, 3), (2, 4), beside=("memory", memory))


def test_a_probability_may_be_one_where_allowed():
    arguments.check_probability("p", 1.0, allow_one=True)
    assert_refused("p=1.5 must be between 0 and 1", arguments.check_probability, "p", 1.5, allow_one=True)


def test_valid_arguments_pass():
    arguments.check_shape("x", None, (1,))
    arguments.check_shape("x", torch.zeros(2, 0), (2, "T"))
    arguments.check_choice("mode", None, ("a", None))
    for seed in (None, -(2**63), 2**63 - 1, torch.tensor(1)):
        arguments.check_seed(seed, CPU)
    arguments.check_integers("lengths", torch.zeros(2, dtype=torch.uint8))


def test_mixed_dtypes():
    x = torch.zeros(1)
    assert arguments.mixed_dtypes(x, None, x) is None
    assert arguments.mixed_dtypes(x, x.half()) == "its tensors have the dtypes float16, float32"


def test_layouts():
    x = torch.zeros(2, 3, 4)
    assert arguments.strides(x) == (12, 4, 1)
    assert arguments.strides(x, 2, 0) == (1, 12)
    assert arguments.strides(None, 0, 1) == (0, 0)
    assert arguments.contiguous_rows(x[0]).data_ptr() == x.data_ptr()
    assert arguments.contiguous_rows(strided(x[0])).is_contiguous()
    assert arguments.empty_in_order_of(x, (5, 6, 7), torch.half).is_contiguous()
    channels_last = arguments.empty_in_order_of(x.transpose(1, 2), (5, 6, 7), torch.half)
    assert channels_last.shape == (5, 6, 7)
    assert channels_last.transpose(1, 2).is_contiguous()
    assert not channels_last._is_view()
