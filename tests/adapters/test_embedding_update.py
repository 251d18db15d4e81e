"""The update of an embedding: its layout, and `max_norm` of the base."""

import pytest
import torch

import loralib as lora
from models import close


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_rows_are_renormalised_before_the_update_is_added(norm_type):
    W, A, B = torch.randn(7, 5), torch.randn(2, 7), torch.randn(5, 2)
    update = lora.EmbeddingUpdate(A, B, 3, max_norm=0.5, norm_type=norm_type)
    rows = [row * min(1.0, 0.5 / float(row.norm(norm_type))) for row in W]
    assert close(update.effective_weight(W), torch.stack(rows) + 1.5 * (B @ A).t(), factor=64)


def test_without_max_norm_the_rows_are_as_they_are():
    update = lora.EmbeddingUpdate(torch.randn(2, 7), torch.randn(5, 2), 3)
    W = torch.randn(7, 5)
    assert update.as_used(W) is W
    assert update.delta().shape == W.shape
