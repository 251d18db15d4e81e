"""Inputs of any shape are matrices inside, and what comes out has their shape."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from loralib.ops.matrices import like, rows


@given(leading=st.lists(st.integers(0, 4), max_size=3), d=st.integers(1, 5), k=st.integers(1, 5))
def test_a_product_of_rows_is_the_product(leading, d, k):
    x, W = torch.randn(*leading, d), torch.randn(k, d)
    y = like(x, rows(x) @ W.t())
    assert y.shape == (*leading, k)
    assert torch.allclose(y, x @ W.t(), atol=1e-5)


def test_a_matrix_stays_the_very_tensor_and_others_are_views():
    x = torch.randn(3, 4)
    assert rows(x) is like(x, x) is x
    x = torch.randn(2, 3, 4)
    assert rows(x).data_ptr() == x.data_ptr()
    assert like(x, rows(x)).data_ptr() == x.data_ptr()
