"""The updates of fused projections: one product for each enabled slice, and the plain form of all of them."""

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.layout import Layout
from models import close, same_bits
from sample_adapters import whole

SLICES = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5).filter(lambda s: any(on for _, on in s))


def fused() -> lora.FusedUpdate:
    """The first and the last of three slices have a product of rank 2."""
    return lora.FusedUpdate(whole(4, 3), whole(6, 2), 3, enable_lora=(True, False, True), widths=(4, 1, 2))


@given(
    slices=SLICES,
    d=st.sampled_from([1, 3, 17]),
    r=st.integers(1, 6),
    lora_alpha=st.sampled_from([1, 2, 3, 0.5, 16]),
    use_rslora=st.booleans(),
)
def test_the_plain_form_of_slices_is_the_same_update(slices, d, r, lora_alpha, use_rslora):
    widths, mask = zip(*slices, strict=True)
    enabled = sum(width for width, on in slices if on)
    update = lora.FusedUpdate(whole(r * sum(mask), d), whole(enabled, r), lora_alpha, use_rslora, mask, widths)
    plain = update.plain()
    assert type(plain) is lora.LoRAUpdate
    assert (plain.r, plain.use_rslora) == (r * sum(mask), use_rslora)
    assert plain.scaling == pytest.approx(update.scaling, rel=1e-15)
    assert plain.delta().shape == update.delta().shape == (sum(widths), d)
    if use_rslora:
        assert close(plain.delta(), update.delta(), factor=2)  # √r is rounded
    else:
        assert same_bits(plain.delta().abs(), update.delta().abs())  # |0| = |-0|


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_plain_form_keeps_the_dtype_and_the_first_factor(dtype):
    update = lora.FusedUpdate(
        torch.randn(4, 3).to(dtype), torch.randn(4, 2).to(dtype), 3, enable_lora=(True, False, True), widths=(2, 5, 2)
    )
    plain = update.plain()
    assert (plain.A.dtype, plain.B.dtype) == (dtype, dtype)
    assert same_bits(plain.A, update.A)
    assert close(plain.delta(), update.delta(), factor=4)


def test_the_slices_that_are_not_enabled_have_no_update():
    update = fused()
    parts = update.delta().split(update.widths)
    assert [bool(part.any()) for part in parts] == [True, False, True]


def merged_update(slices, d, r, lora_alpha, use_rslora) -> lora.FusedUpdate:
    """An update of the slices whose factors are random and nowhere zero."""
    widths, mask = zip(*slices, strict=True)
    A, B = torch.rand(r * sum(mask), d) + 1, torch.rand(sum(width for width, on in slices if on), r) + 1
    return lora.FusedUpdate(A, B, lora_alpha, use_rslora, mask, widths)


@given(
    slices=SLICES,
    d=st.sampled_from([1, 3, 17]),
    r=st.integers(1, 6),
    lora_alpha=st.sampled_from([1, 2, 3, 7, 0.1, 0.5, 16, 32.0]),
    use_rslora=st.booleans(),
)
@example(slices=[(1, True), (1, True)], d=1, r=1, lora_alpha=7, use_rslora=True)
@example(slices=[(1, True)] * 3, d=1, r=1, lora_alpha=0.1, use_rslora=False)
def test_slices_come_back_from_their_plain_form(slices, d, r, lora_alpha, use_rslora):
    update = merged_update(slices, d, r, lora_alpha, use_rslora)
    own = dataclasses.replace(update, A=torch.zeros_like(update.A), B=torch.zeros_like(update.B))
    found = own.like_plain(update.plain())
    assert found is not None
    assert found.form() == update.form()
    assert same_bits(found.A, update.A)
    assert same_bits(found.B, update.B)
    assert (found.lora_alpha, found.use_rslora, found.scaling) == (update.lora_alpha, update.use_rslora, update.scaling)


@given(slices=SLICES, r=st.integers(1, 4), lora_alpha=st.sampled_from([1, 2, 3, 7, 0.1, 16]), use_rslora=st.booleans())
def test_the_scaling_that_comes_back_is_the_plain_ones_not_the_layers(slices, r, lora_alpha, use_rslora):
    update = merged_update(slices, 3, r, lora_alpha, use_rslora)
    own = dataclasses.replace(update, lora_alpha=5, use_rslora=not use_rslora)
    found = own.like_plain(update.plain())
    assert found.use_rslora == use_rslora
    assert found.scaling == pytest.approx(update.scaling, rel=1e-15)
    assert found.plain().scaling == pytest.approx(update.plain().scaling, rel=1e-15)


@given(slices=SLICES, r=st.integers(1, 4), data=st.data())
def test_what_lies_off_the_blocks_has_no_slices(slices, r, data):
    update = merged_update(slices, 3, r, 2, False)
    plain = update.plain()
    off = (plain.B == 0).nonzero().tolist()
    if off:
        row, column = data.draw(st.sampled_from(off))
        B = plain.B.clone()
        B[row, column] = 1e-30
        assert update.like_plain(dataclasses.replace(plain, B=B)) is None
    assert update.like_plain(plain) is not None


def test_what_is_no_plain_form_of_the_slices_has_none():
    update = merged_update([(4, True), (1, False), (2, True)], 3, 2, 3, False)
    A, B = update.plain().A, update.plain().B
    for other in (
        update,
        lora.ProjectionUpdate(A, B, 3),
        lora.EmbeddingUpdate(A, B, 3),
        lora.LoRAUpdate(A[:, :, None], B[:, :, None], 3),
        lora.LoRAUpdate(A[:3], B[:, :3], 3),  # a rank that the slices cannot share
        lora.LoRAUpdate(A[:2], B[:, :2], 3),  # all of it in the first slice
        lora.LoRAUpdate(A, B[:6], 3),
        lora.LoRAUpdate(A, torch.cat([B, B[:1]]), 3),
    ):
        assert update.like_plain(other) is None
    for mask in ((True, True, False), (False, True, True), (True, True, True), (True, False, False)):
        rows = sum(width for width, on in zip(update.widths, mask, strict=True) if on)
        own = lora.FusedUpdate(whole(2 * sum(mask), 3), whole(rows, 2), 3, enable_lora=mask, widths=update.widths)
        assert own.like_plain(update.plain()) is None


def test_an_update_of_zeros_has_slices_too():
    update = fused()
    zero = dataclasses.replace(update, B=torch.zeros_like(update.B))
    found = update.like_plain(zero.plain())
    assert not found.B.any()
    assert same_bits(found.A, zero.A)


@given(slices=SLICES, d=st.integers(1, 4), r=st.integers(1, 3), use_rslora=st.booleans(), transposed=st.booleans())
def test_products_and_strips_add_up_to_the_update(slices, d, r, use_rslora, transposed):
    update = merged_update(slices, d, r, 3, use_rslora)
    again = update.with_products([(2 * B, A) for B, A in update.products()], 7, not use_rslora)
    assert again.form() == update.form()
    assert (again.lora_alpha, again.use_rslora) == (7, not use_rslora)
    assert same_bits(again.B, 2 * update.B)
    assert same_bits(again.A, update.A)
    total = torch.zeros(d, sum(update.widths)) if transposed else torch.zeros(sum(update.widths), d)
    for row, column, B, A in update.strips(Layout(transposed=transposed)):
        total[row : row + B.shape[0], column : column + A.shape[1]] += update.scaling * B @ A
    assert close(total, update.delta().t() if transposed else update.delta(), factor=8)
    assert update.canonical_shape == update.delta().shape
    assert update.slices.chosen == [width for width, on in slices if on]


t = torch.ones
SHAPES, NO_SLICE, NO_WIDTH = "expected .n·r, in. and", "must name at least one of the", "slices are at least 1 wide"
NO_FACTORS = {
    "without a mask": (t(2, 3), t(4, 2), (), (), NO_SLICE),
    "no slice enabled": (t(2, 3), t(4, 2), (False,), (4,), NO_SLICE),
    "more slices than widths": (t(2, 3), t(4, 2), (True, False), (4,), NO_SLICE),
    "slices of other widths": (t(2, 3), t(4, 2), (True, False), (3, 4), SHAPES),
    "slices of another rank": (t(2, 3), t(4, 2), (True, True), (2, 2), SHAPES),
    "no rank": (t(0, 3), t(4, 0), (True, True), (2, 2), SHAPES),
    "a slice of no width": (t(4, 3), t(4, 2), (True, True), (4, 0), NO_WIDTH),
    "a slice of negative width": (t(2, 3), t(4, 2), (True, False), (4, -1), NO_WIDTH),
    "with a kernel": (t(2, 3, 1), t(4, 2, 1), (True,), (4,), SHAPES),
    "with a kernel in B": (t(2, 3), t(4, 2, 1), (True,), (4,), SHAPES),
}


@pytest.mark.parametrize("case", NO_FACTORS)
def test_what_are_no_factors_of_one_update_is_refused_with_the_reason(case):
    A, B, mask, widths, reason = NO_FACTORS[case]
    with pytest.raises(lora.ConfigError, match=rf"lora_A \(.*\) and lora_B \(.*\) are not factors of one update: .*{reason}"):
        lora.FusedUpdate(A, B, 1, enable_lora=mask, widths=widths)
