"""Adding strips by blocks: the sum that the plain form gives, with bits that depend neither on blocks nor on threads."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralib import ops
from loralib.ops import reference
from loralib.ops.autograd import merging
from models import close, same_bits


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads(), merging.ELEMENTS
    yield
    torch.set_num_threads(before[0])
    merging.ELEMENTS = before[1]


def merged(W, strips, threads, elements=merging.ELEMENTS):
    torch.set_num_threads(threads)
    merging.ELEMENTS = elements
    with torch.no_grad():
        result = merging.add_strips(W, strips, 0.5)
    assert torch.get_num_threads() == threads
    return result


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 60), n=st.integers(1, 60), r=st.integers(1, 8), elements=st.integers(1, 900), cut=st.integers(0, 59))
def test_blocks_give_the_plain_sum_with_any_number_of_threads(m, n, r, elements, cut):
    cut = min(cut, m - 1)
    W = torch.randn(m, n)
    strips = [ops.Strip(first, 0, torch.randn(last - first, r), torch.randn(r, n)) for first, last in ((0, cut), (cut, m))]
    one = merged(W, strips, 1, elements)
    assert all(same_bits(one, merged(W, strips, threads, elements)) for threads in (2, 3))
    assert close(one, reference.add_strips(W, strips, 0.5), factor=4)


@pytest.mark.parametrize("shape", [(5, 204), (9, 4000), (4000, 37), (1100, 1024)])
def test_narrow_weights_do_not_depend_on_threads_either(shape):
    """Those of MKL's products do."""
    W, strip = torch.randn(shape), ops.Strip(0, 0, torch.randn(shape[0], 8), torch.randn(8, shape[1]))
    one = merged(W, [strip], 1)
    assert all(same_bits(one, merged(W, [strip], threads)) for threads in (2, 4))


def test_many_blocks_are_computed_side_by_side(monkeypatch):
    add, seen = merging.add_to_block, set()

    def noted(*args):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        add(*args)

    monkeypatch.setattr(merging, "add_to_block", noted)
    W, strip = torch.randn(32, 4), ops.Strip(0, 0, torch.randn(32, 2), torch.randn(2, 4))
    merged(W, [strip], 2, elements=8)
    assert seen == {(False, 1)}
    seen.clear()
    merged(W, [strip], 2)
    assert seen == {(True, 1)}


def test_single_threads_leave_everything_as_it_was():
    torch.set_num_threads(3)
    with ops.single_threads(2) as pool:
        found = pool.submit(lambda: (torch.get_num_threads(), torch.is_grad_enabled())).result()
    assert found == (1, False)
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), ops.single_threads(1) as pool:
        pool.submit(lambda: 1 / 0).result()
    assert torch.get_num_threads() == 3


def test_merging_in_several_threads_leaves_the_number_of_threads_as_it_was():
    W, strip = torch.randn(64, 37), ops.Strip(0, 0, torch.randn(64, 4), torch.randn(4, 37))
    expected, found, after = merged(W, [strip], 2), [], []

    def work():
        for _ in range(20):
            with torch.no_grad():
                found.append(merging.add_strips(W, [strip], 0.5))
        after.append(torch.get_num_threads())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(same_bits(W_, expected) for W_ in found)
    assert torch.get_num_threads() == 2
    assert after == [2] * 4


@pytest.mark.parametrize(("dtype", "calls"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_away_from_the_processor_a_weight_that_needs_no_conversion_is_one_product(dtype, calls, monkeypatch):
    add, seen = merging.add_to_block, []
    monkeypatch.setattr(merging, "add_to_block", lambda *args: seen.append(args[1]) or add(*args))
    monkeypatch.setattr(merging, "ELEMENTS", 8 * 4)
    W = torch.empty(32, 4, dtype=dtype, device="meta")
    strip = ops.Strip(0, 0, torch.empty(32, 2, device="meta"), torch.empty(2, 4, device="meta"))
    assert merging.add_strips(W, [strip], 0.5).shape == W.shape
    assert len(seen) == calls
