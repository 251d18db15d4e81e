"""Blocks of a stored weight: together all of it, each of them the same rows of the whole result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.layout import Layout
from loralib.checkpoints.merge_blocks import Block, Change, blocks_of
from loralib.ops.autograd import merging
from models import same_bits
from sample_adapters import tensor, updates


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(merging, "ELEMENTS", 12)


def layout_of(update: lora.LoRAUpdate, transposed: bool = False) -> Layout:
    if isinstance(update, lora.ConvolutionUpdate) and update.transposed:
        return Layout(deconvolution=update.groups)
    return update.usual_layout if isinstance(update, lora.EmbeddingUpdate) else Layout(transposed=transposed)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dora=st.booleans(), transposed=st.booleans())
def test_the_rows_of_all_blocks_are_the_effective_weight(data, dora, transposed):
    kinds = ["linear", "embedding", "conv", "transposed"] if dora else ["linear", "embedding", "conv", "legacy", "merged"]
    update = data.draw(updates(kinds, dora=dora))
    layout = layout_of(update, transposed and update.A.dim() == 2 and not isinstance(update, lora.LegacyConvolutionUpdate))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    W = tensor(layout.stored_shape(update.canonical_shape), dtype, 3)
    with torch.no_grad():
        blocks = list(blocks_of(tuple(W.shape), [Change(update, layout)]))
        rows = [block.effective_rows(W[block.first : block.last]) for block in blocks]
        assert same_bits(torch.cat(rows), update.effective_weight(W, layout))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 30),
    width=st.integers(1, 20),
    parts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=4),
)
def test_blocks_are_all_rows_once_and_in_order(rows, width, parts):
    changes, at = [], 0
    for start, count in sorted(parts):
        if at <= start and start + count <= rows:
            update = lora.ProjectionUpdate(torch.ones(2, width), torch.ones(count, 2), 1)
            changes.append(Change(update, Layout(start=start, rows=count)))
            at = start + count
    blocks = list(blocks_of((rows, width), changes[::-1]))
    assert [row for block in blocks for row in range(block.first, block.last)] == list(range(rows))
    for change in changes:
        own = [row for block in blocks if block.change is change for row in range(block.first, block.last)]
        assert own == list(range(*change.rows(rows)))


def test_rows_without_a_change_stay_as_they_are():
    W = torch.randn(9, 2)
    update = lora.ProjectionUpdate(torch.ones(1, 2), torch.ones(3, 1), 1)
    blocks = blocks_of((9, 2), [Change(update, Layout(start=3, rows=3))])
    assert [(block.first, block.last, block.change is None) for block in blocks] == [
        (0, 3, True),
        (3, 6, False),
        (6, 9, True),
    ]
    assert Block(0, 3, None).effective_rows(W[:3]).data_ptr() == W.data_ptr()


@pytest.mark.parametrize("kind", ["dora", "legacy", "transposed"])
def test_what_changes_the_weight_as_a_whole_is_one_block(kind):
    update = {
        "dora": lambda: lora.LoRAUpdate(torch.ones(1, 9), torch.ones(8, 1), 1, magnitude=torch.ones(8)),
        "legacy": lambda: lora.LegacyConvolutionUpdate(torch.ones(2, 4), torch.ones(16, 2), 1, weight_shape=(8, 2, 2, 2)),
        "transposed": lambda: lora.ConvolutionUpdate(torch.ones(1, 4, 2), torch.ones(8, 1, 1), 1, transposed=True),
    }[kind]()
    layout = layout_of(update)
    shape = layout.stored_shape(update.canonical_shape)
    [block] = blocks_of(shape, [Change(update, layout)])
    assert (block.first, block.last) == (0, shape[0])
