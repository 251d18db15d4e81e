"""The products of an adapter: their names and shapes, and decompositions that know what is rounding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import F64, adapter, dense, drawn, mixed

import loralib as lora
from loralib.analysis.places import norms_by_place
from loralib.analysis.products import norms, products, products_of
from sample_adapters import DTYPES, updates


@given(updates(dtypes=[F64]))
def test_the_products_make_up_the_update(update: lora.LoRAUpdate) -> None:
    if isinstance(update, lora.ExpertsUpdate):  # which is never one matrix
        for e, product in enumerate(products_of("q", update).values()):
            assert torch.allclose(product.scaling * product.B @ product.A, update.delta()[e], rtol=1e-9)
            assert product.start == e * len(product.B)
        return
    whole = products_of("q", update, apart=False)
    assert list(whole) == ["q"]
    found = whole["q"]
    assert found.shape == dense(update).shape
    assert torch.allclose(found.scaling * found.B.double() @ found.A.double(), torch.from_numpy(dense(update)), rtol=1e-9)
    for product in products_of("q", update).values():
        rows = torch.from_numpy(dense(update))[product.start : product.start + len(product.B)]
        assert torch.allclose(product.scaling * product.B @ product.A, rows, rtol=1e-9)


@given(st.sampled_from(DTYPES), st.integers(0, 99))
def test_factors_of_any_precision_are_decomposed_in_float64(dtype: torch.dtype, seed: int) -> None:
    exact = drawn(9, 7, 4, seed)
    update = lora.LoRAUpdate(exact.A.to(dtype), exact.B.to(dtype), 4)
    (product,) = products_of("q", update).values()
    P = update.B.double() @ update.A.double()
    U, S, Vh = product.svd()
    assert (U * S @ Vh - P).norm() <= 1e-13 * P.norm()
    for Q in (U, Vh.t()):
        assert (Q.t() @ Q - torch.eye(len(S), dtype=F64)).abs().max() <= 1e-12
    assert (product.values()[: len(S)] - torch.linalg.svdvals(P)[: len(S)]).abs().max() <= 1e-13 * S[0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_the_numerical_rank_does_not_depend_on_the_size(scale: float) -> None:
    whole = drawn(20, 15, 3, 0)
    B, A = mixed(torch.cat([whole.B, whole.B], 1), torch.cat([whole.A, 2 * whole.A]), 7)
    (product,) = products_of("q", lora.LoRAUpdate(A, scale * B, 1)).values()
    assert len(product.svd().S) == 3
    assert product.rows_of_a().shape == (15, 3)


def test_names_and_norms() -> None:
    a = drawn(5, 6, 2, 0)
    found = products(adapter(q=a, v=a))
    assert list(found) == ["q", "v"]
    assert norms(found)["q"] == pytest.approx(float(a.delta().norm()))


def test_experts_are_products_of_their_own_and_of_one_kind() -> None:
    update = lora.ExpertsUpdate(torch.ones(3, 1, 4), torch.ones(3, 5, 1), 1)
    names = [f"blocks.{i}.experts.{leaf}" for i in (0, 1) for leaf in ("up_proj", "down_proj")]
    mixture = adapter(**dict.fromkeys(names, update))
    found = products(mixture)
    assert list(found)[:3] == ["blocks.0.experts.up_proj.0", "blocks.0.experts.up_proj.1", "blocks.0.experts.up_proj.2"]
    assert [product.start for product in found.values()][:3] == [0, 5, 10]
    assert list(norms_by_place(mixture)) == [(0, "up_proj.*"), (1, "up_proj.*"), (0, "down_proj.*"), (1, "down_proj.*")]
