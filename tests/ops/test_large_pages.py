"""Memory for large pages is asked for where it helps, within the tensor, and never changes a value."""

import mmap
import sys

import pytest
import torch

from loralib import ops
from loralib.ops import large_pages
from loralib.ops.autograd import merging


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What was asked of the system."""
    asked: list[tuple[int, int, int]] = []

    def madvise(*words: int) -> int:
        asked.append(words)
        return -1  # refused, which must not matter

    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    monkeypatch.setattr(large_pages, "_madvise", lambda: madvise)
    return asked


@pytest.mark.parametrize("offset", [0, 1, 1000])
def test_whole_pages_within_the_tensor_are_asked_for(advised, offset):
    whole = torch.empty(large_pages.LEAST + offset + 5000, dtype=torch.uint8)
    tensor = whole[offset:]
    assert large_pages.ask(tensor) is tensor
    ((start, length, _),) = advised
    assert start % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= start < tensor.data_ptr() + mmap.PAGESIZE
    assert tensor.nbytes - 2 * mmap.PAGESIZE < length <= tensor.nbytes - (start - tensor.data_ptr())


def test_small_tensors_and_those_elsewhere_are_left_alone(advised):
    for tensor in (torch.empty(large_pages.LEAST - 1, dtype=torch.uint8), torch.empty(1 << 30, device="meta")):
        assert large_pages.ask(tensor) is tensor
    assert not advised


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_system_without_it_is_not_asked(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    large_pages._madvise.cache_clear()
    assert large_pages._madvise() is None
    large_pages.ask(torch.empty(large_pages.LEAST, dtype=torch.uint8))
    monkeypatch.undo()
    large_pages._madvise.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_asks_and_computes_the_same(dtype, advised, monkeypatch):
    W, L, R = torch.randn(2048, 1024).to(dtype), torch.randn(2048, 3), torch.randn(3, 1024)
    with torch.no_grad():
        merged = ops.add_strips(W, [ops.Strip(0, 0, L, R)], 0.5)
        assert len(advised) == 1
        monkeypatch.setattr(large_pages, "_madvise", lambda: None)
        assert torch.equal(merged, ops.add_strips(W, [ops.Strip(0, 0, L, R)], 0.5))


def test_a_thread_that_computes_alone_uses_its_memory_again():
    like = torch.empty(4, 3)
    assert merging._scratch(like, torch.float32) is not merging._scratch(like, torch.float32)

    def pointers() -> list[int]:
        shapes = (like, like[:2], torch.empty(5, 3))
        return [merging._scratch(one, torch.float32).data_ptr() for one in shapes]

    with merging.single_threads(1) as pool:
        first, cut, _ = pool.submit(pointers).result()
        assert first == cut
        wide = pool.submit(merging._scratch, like, torch.float64).result()
    assert (wide.dtype, wide.shape) == (torch.float64, like.shape)
