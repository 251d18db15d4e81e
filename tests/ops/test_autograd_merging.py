"""Merging by blocks gives the reference's numbers, and the same bits block by block."""

import pytest
import torch

from loralib import ops
from loralib.ops import autograd, reference
from loralib.ops.autograd import merging
from steps import DTYPES, as_good


@pytest.mark.parametrize("where", ["whole", "rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_by_blocks_is_as_exact_as_the_plain_formula(dtype, where, monkeypatch):
    monkeypatch.setattr(merging, "ELEMENTS", 40)
    W, L, R = torch.randn(13, 17).to(dtype), torch.randn(13, 3), torch.randn(3, 17)
    strips = {
        "whole": [ops.Strip(0, 0, L, R)],
        "rows": [ops.Strip(2, 0, L[:4], R), ops.Strip(8, 0, L[4:9], R)],
        "columns": [ops.Strip(0, 0, L, R[:, :5]), ops.Strip(0, 9, L, R[:, 9:])],
    }[where]
    double = [ops.Strip(row, column, L.double(), R.double()) for row, column, L, R in strips]
    with torch.no_grad():
        mine, plain = (module.add_strips(W, strips, 0.7) for module in (autograd, reference))
        exact = reference.add_strips(W.double(), double, 0.7)
    assert as_good([mine], [plain], [exact])
    assert mine.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_by_itself_has_the_bits_of_the_whole(dtype):
    W, strips = torch.randn(23, 17).to(dtype), [ops.Strip(3, 2, torch.randn(9, 2), torch.randn(2, 11))]
    with torch.no_grad():
        whole = autograd.add_strips(W, strips, 0.7)
        for first, last in merging.row_blocks(23, 17, merging.breaks_of(strips)):
            out = torch.empty_like(W[first:last])
            merging.add_to_block(W[first:last], first, strips, 0.7, out)
            assert torch.equal(out, whole[first:last])
