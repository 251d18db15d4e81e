"""The updates of convolutions: both forms mean what their definitions say, and the plain form of 0.1's is the same update."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.convolution_updates import LegacyTransposedUpdate
from models import close
from sample_adapters import whole


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_a_convolution_of_0_1_with_groups_has_a_plain_form(r, d, groups, k):
    kernel, inner = 2, d * groups
    A = torch.randn(r * kernel, inner * kernel)
    B = torch.randn(k * kernel, r * kernel)
    update = lora.LegacyConvolutionUpdate(A, B, 2, weight_shape=(k * groups, d, kernel, kernel))
    plain = update.plain()
    assert plain.groups == groups
    assert torch.allclose(plain.delta(), update.delta(), atol=1e-4)


def legacy(k: int, d: int, kernel: int, r: int = 1, groups: int = 1, **fields) -> lora.LegacyConvolutionUpdate:
    A, B = whole(r * kernel, d * groups * kernel), whole(k // groups * kernel, r * kernel)
    return lora.LegacyConvolutionUpdate(A, B, 3, weight_shape=(k, d, kernel, kernel), **fields)


def test_a_form_of_0_1_knows_its_rank_kernel_and_groups():
    update = legacy(4, 5, 3, r=2, groups=2)
    assert (update.r, update.rows_per_rank, update.canonical_shape) == (2, 3, (4, 5, 3, 3))
    assert update.plain().groups == 2
    assert legacy(4, 5, 3).plain().groups == 1


@pytest.mark.parametrize(("k", "rank"), [(40, 9), (9, 9), (10, 9), (3, 3)])
def test_the_plain_form_is_of_low_rank_where_that_is_less_than_the_full_one(k, rank):
    update = legacy(k, 4, 3)  # the product's rows are those of 3 outputs: 9 products of rank 1, of at most 3·3·4 = 36 columns
    plain = update.plain()
    assert (type(plain), plain.r) == (lora.ConvolutionUpdate, rank)
    assert plain.A.shape == (rank, 4, 3, 3)
    assert plain.B.shape == (k, rank, 1, 1)
    assert torch.equal(plain.delta(), update.delta())


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("k", "d"), [(2, 9), (30, 1)])
def test_the_plain_form_of_full_rank_is_the_same_update(k, d, use_rslora):
    update = legacy(k, d, 3, r=3, use_rslora=use_rslora)
    plain = update.plain()
    assert plain.r == min(k, 9 * d)
    assert plain.use_rslora == use_rslora
    assert close(plain.delta(), update.delta(), factor=16)


def test_factors_of_low_precision_are_multiplied_in_float32():
    update = legacy(2, 9, 3, r=3)
    low = replace(update, A=update.A.bfloat16(), B=update.B.bfloat16())
    assert low.plain().A.dtype == torch.float32
    assert torch.equal(low.plain().delta(), update.plain().delta())


def test_the_form_of_0_1_of_a_transposed_convolution_has_no_plain_form():
    update = LegacyTransposedUpdate(whole(6, 12), whole(15, 6), 2, weight_shape=(4, 5, 3, 3))
    assert update.delta().shape == (4, 5, 3, 3)
    with pytest.raises(lora.AlgebraError, match="keep it in the formats 'safetensors' or 'loralib'"):
        update.plain()


t = torch.ones
SHAPES, SHAPES_0_1 = "expected .r, in / groups, .kernel.", "expected .r·kernel, in·kernel."
NO_FACTORS = {
    "without a kernel": (t(2, 3), t(4, 2), {}, SHAPES),
    "of two dimensions": (t(2, 3, 3, 3), t(4, 2, 1), {}, SHAPES),
    "with a kernel in B": (t(2, 3, 3), t(4, 2, 3), {}, ""),
    "ranks differ": (t(2, 3, 3), t(4, 1, 1), {}, ""),
    "groups": (t(2, 3, 3), t(4, 2, 1), {"groups": 3}, "groups=3 does not divide the output channels"),
    "no groups": (t(2, 3, 3), t(4, 2, 1), {"groups": 0}, "groups=0 does not divide"),
    "negative groups": (t(2, 3, 3), t(4, 2, 1), {"groups": -2}, "groups=-2 does not divide"),
    "of 0.1, without a shape": (t(6, 6), t(15, 6), (), SHAPES_0_1),
    "of 0.1, a shape of a matrix": (t(6, 6), t(15, 6), (5, 18), SHAPES_0_1),
    "of 0.1, another shape": (t(6, 6), t(15, 6), (5, 3, 3, 3), "cannot take the weight's shape .5, 3, 3, 3."),
    "of 0.1, ranks differ": (t(6, 6), t(15, 3), (5, 2, 3, 3), SHAPES_0_1),
    "of 0.1, no matrices": (t(6, 6), t(15, 6, 1), (5, 2, 3, 3), SHAPES_0_1),
    "of 0.1, no multiple of the kernel": (t(4, 6), t(15, 4), (5, 2, 3, 3), SHAPES_0_1),
    "of 0.1, a kernel of no width": (t(6, 6), t(15, 6), (5, 2, 3, 0), SHAPES_0_1),
    "of 0.1, a rank below the kernel": (t(0, 6), t(15, 0), (5, 2, 3, 3), SHAPES_0_1),
}


@pytest.mark.parametrize("case", NO_FACTORS)
def test_what_are_no_factors_of_one_update_is_refused_with_the_reason(case):
    A, B, structure, reason = NO_FACTORS[case]
    cls = lora.LegacyConvolutionUpdate if isinstance(structure, tuple) else lora.ConvolutionUpdate
    fields = {"weight_shape": structure} if isinstance(structure, tuple) else structure
    with pytest.raises(lora.ConfigError, match=rf"lora_A \(.*\) and lora_B \(.*\) are not factors of one update: .*{reason}"):
        cls(A, B, 1, **fields)


def test_a_kernel_of_one_dimension_and_of_width_1_may_be_factored_as_0_1_did():
    assert lora.LegacyConvolutionUpdate(t(2, 4), t(5, 2), 1, weight_shape=(5, 4, 1)).r == 2
    assert lora.LegacyConvolutionUpdate(t(1, 4), t(5, 1), 1, weight_shape=(5, 4, 1, 1)).r == 1
