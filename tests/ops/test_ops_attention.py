"""Attention on projected queries, keys and values is its formula, and what torch refuses is refused."""

import math

import pytest
import torch
from torch import Tensor

import loralib as lora
from loralib.ops import attention


def drawn(n: int = 2, H: int = 2, target: int = 3, source: int = 4, h: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, H, target, h), torch.randn(n, H, source, h), torch.randn(n, H, source, h)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_the_output_is_the_formulas_and_so_are_the_weights(masked, need_weights):
    q, k, v = drawn()
    mask = torch.randn(2, 1, 3, 4) if masked else None
    scores = torch.einsum("nHlh,nHsh->nHls", q.double(), k.double()) / math.sqrt(5)
    shares = (scores if mask is None else scores + mask).softmax(-1)
    y, weights = attention.attend(q, k, v, mask, 0.0, need_weights)
    assert torch.allclose(y.double(), shares @ v.double(), atol=1e-5)
    assert (weights is not None) == need_weights
    if weights is not None:
        assert torch.allclose(weights.double(), shares, atol=1e-5)


def test_dropout_acts_on_the_weights():
    q, k, v = drawn(target=16, source=16)
    y, weights = attention.attend(q, k, v, None, 0.5, need_weights=True)
    assert 0.2 < float((weights == 0).float().mean()) < 0.8
    assert torch.allclose(y, weights @ v, atol=1e-5)


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 4)])
def test_masks_of_both_kinds_add_up_and_further_positions_are_seen(shape, extra):
    n, H = 2, 2
    boolean, padding = torch.rand(shape) < 0.5, torch.tensor([[False] * 4, [False, False, True, True]])
    found = attention.additive_mask(boolean, padding, n, extra, torch.float32)
    for i in range(n):
        for head in range(H):
            own = boolean if len(shape) == 2 else boolean[i * H + head]
            hidden = torch.nn.functional.pad(own | padding[i], (0, extra))
            seen = found.expand(n, H, 3, 4 + extra)[i, head]
            assert torch.equal(seen, torch.zeros(3, 4 + extra).masked_fill(hidden, -math.inf))


def test_numbers_are_added_as_they_are_and_no_mask_is_none():
    numbers = torch.randn(3, 4)
    assert torch.equal(attention.additive_mask(numbers, None, 2, 0, torch.float32), numbers)
    assert attention.additive_mask(numbers.double(), None, 2, 0, torch.float32).dtype == torch.float32
    assert attention.additive_mask(None, None, 2, 1, torch.float32) is None


@pytest.mark.parametrize(
    ("shapes", "masks", "message"),
    [
        (((2, 3, 8), (2, 4, 8), (2, 5, 8)), {}, "do not go together"),
        (((2, 3, 8), (1, 4, 8), (1, 4, 8)), {}, "do not go together"),
        (
            ((2, 3, 8), (2, 4, 8), (2, 4, 8)),
            {"key_padding_mask": (2, 3)},
            r"has shape \(2, 3\); expected \(2, 4\)",
        ),
        (((2, 3, 8), (2, 4, 8), (2, 4, 8)), {"attn_mask": (4, 3)}, r"expected \(3, 4\) or \(4, 3, 4\)"),
        (((2, 3, 8), (2, 4, 8), (2, 4, 8)), {"attn_mask": (2, 3, 4)}, r"attn_mask has shape \(2, 3, 4\)"),
    ],
)
def test_what_does_not_go_together_is_refused(shapes, masks, message):
    held = {name: torch.zeros(masks[name]) if name in masks else None for name in ("key_padding_mask", "attn_mask")}
    with pytest.raises(lora.LayerError, match=message):
        attention.check_shapes(*map(torch.zeros, shapes), **held, H=2)


def test_masks_are_truth_values_or_numbers():
    q, k = torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)
    for mask in (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4, 3, 4).half()):
        attention.check_shapes(q, k, k, None, mask, H=2)
    with pytest.raises(lora.LayerError, match=r"attn_mask has dtype torch.int32; expected torch.bool"):
        attention.check_shapes(q, k, k, None, torch.zeros(3, 4).int(), H=2)
