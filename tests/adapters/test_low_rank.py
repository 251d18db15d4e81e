"""Decompositions of products agree with those of the dense matrix that is never formed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralib.adapters import low_rank

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def factors(k: int, R: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(k, R, generator=g).to(dtype), torch.randn(R, n, generator=g).to(dtype)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.sampled_from(DTYPES), st.integers(0, 99))
def test_the_svd_is_that_of_the_product(k, R, n, dtype, seed):
    B, A = factors(k, R, n, dtype, seed)
    exact = B.double() @ A.double()
    U, S, Vh = low_rank.svd([low_rank.Term(B, A)])
    size = float(B.double().norm() * A.double().norm())
    assert (U * S @ Vh - exact).norm() <= 1e-7 * size
    assert (S[:-1] >= S[1:]).all()
    ours, theirs = low_rank.singular_values([low_rank.Term(B, A)]), torch.linalg.svdvals(exact)
    m = min(len(ours), len(theirs))
    assert torch.allclose(ours[:m], theirs[:m], atol=1e-7 * size)
    large = 1e-6 * S[0] < S
    assert torch.allclose(U[:, large].t() @ U[:, large], torch.eye(int(large.sum()), dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_of_lower_rank_than_they_could_have(dtype):
    B, A = factors(10, 2, 9, dtype)
    B2, A2 = torch.cat([B, B], 1), torch.cat([A, -A])
    assert float(low_rank.singular_values([low_rank.Term(B2, A2)]).max()) < 1e-6
    U, S, Vh = low_rank.svd([low_rank.Term(B, A, 0.5), low_rank.Term(B, A, 1.5)])
    assert torch.allclose(U * S @ Vh, 2 * B.double() @ A.double(), atol=1e-6)
    zero = low_rank.svd([low_rank.Term(torch.zeros(5, 2, dtype=dtype), torch.zeros(2, 5, dtype=dtype))])
    assert not zero.S.any()
    assert torch.isfinite(zero.U).all()
    assert torch.isfinite(zero.Vh).all()


def test_balanced_factors_multiply_to_the_product():
    B, A = low_rank.svd([low_rank.Term(*factors(6, 3, 5))]).factors()
    assert torch.allclose(B.norm(dim=0), A.norm(dim=1))


def test_the_rank_for_a_share():
    S = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [low_rank.rank_for(S, share) for share in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1)] == [1, 1, 2, 2, 3, 3]
    assert low_rank.rank_for(torch.zeros(3), 0.9) == 1


@pytest.mark.parametrize("shape", [(40, 30), (900, 1000)])
def test_the_leading_part_of_a_dense_matrix(shape):
    torch.manual_seed(0)
    P = torch.randn(shape[0], 5) @ torch.randn(5, shape[1]) + 0.01 * torch.randn(shape)
    S = torch.linalg.svdvals(P.double())
    for found in (low_rank.leading(P, r=5), low_rank.leading(P, energy=0.99), low_rank.leading(P, r=9, energy=0.99)):
        assert len(found.S) == 5
        error = ((found.U * found.S) @ found.Vh - P.double()).norm()
        assert error <= 1.001 * S[5:].norm()
    again = low_rank.leading(P, r=5)
    assert torch.equal(again.U, low_rank.leading(P, r=5).U), "the same every time"


def test_a_large_matrix_that_needs_many_components_gets_them():
    torch.manual_seed(0)
    P = torch.randn(800, 800)
    S = torch.linalg.svdvals(P.double()).square()
    found = low_rank.leading(P, energy=0.9)
    assert float(found.S.square().sum() / S.sum()) >= 0.9 * (1 - 1e-6)
    assert len(found.S) == low_rank.rank_for(S.sqrt(), 0.9)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from(DTYPES), st.integers(0, 99))
def test_the_dominant_part_is_that_of_the_svd(k, n, r, dtype, seed):
    W = torch.randn(k, n, generator=torch.Generator().manual_seed(seed)).to(dtype)
    U, S, Vh = low_rank.dominant(W, r)
    expected = torch.linalg.svdvals(W.double())
    assert len(S) == min(k, n, r)
    assert torch.allclose(S, expected[: len(S)], rtol=1e-6, atol=1e-8 * float(expected[0]))
    best = torch.linalg.svd(W.double(), full_matrices=False)
    error = (U * S @ Vh - W.double()).norm()
    assert error <= (best.U * best.S.masked_fill(torch.arange(len(best.S)) >= r, 0) @ best.Vh - W.double()).norm() + 1e-6


def test_the_dominant_part_of_many_rows_and_of_a_matrix_of_low_rank():
    P = torch.randn(2500, 3, dtype=torch.float64) @ torch.randn(3, 7, dtype=torch.float64)
    for W in (P, P.t()):
        U, S, Vh = low_rank.dominant(W, 6)
        assert len(S) == 3
        assert torch.allclose(U * S @ Vh, W)
        for Q in (U, Vh.t()):
            assert torch.allclose(Q.t() @ Q, torch.eye(3, dtype=torch.float64))


def test_the_dominant_part_of_a_large_matrix_is_close(monkeypatch):
    monkeypatch.setattr(low_rank, "_EXACT", 700)
    torch.manual_seed(0)
    W = torch.randn(900, 800)
    S = torch.linalg.svdvals(W.double())
    assert 0.99 <= float(low_rank.dominant(W, 80).S.norm() / S[:80].norm()) <= 1 + 1e-5
