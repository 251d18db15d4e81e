"""A layout turns a stored weight into the canonical one and back, and nothing that an update does depends on it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.layout import Layout
from models import close, same_bits

SIZE = st.integers(1, 5)


@given(shape=st.tuples(SIZE, SIZE), start=st.integers(0, 3))
def test_matrices_come_back_from_the_canonical_layout(shape, start):
    W = torch.randn(shape)
    for layout in (Layout(), Layout(transposed=True)):
        assert same_bits(layout.from_canonical(layout.to_canonical(W)), W)
    packed = torch.randn(start + shape[0] + 2, shape[1])
    part = Layout(start=start, rows=shape[0])
    assert same_bits(part.to_canonical(packed), packed[start : start + shape[0]])


@given(d=SIZE, k=SIZE, groups=st.integers(1, 3), kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_transposed_convolutions_come_back_from_the_canonical_layout(d, k, groups, kernel):
    W, layout = torch.randn(d * groups, k, *kernel), Layout(deconvolution=groups)
    canonical = layout.to_canonical(W)
    assert canonical.shape == (k * groups, d, *kernel)
    assert same_bits(layout.from_canonical(canonical), W)
    for g in range(groups):  # the outputs of a group see its inputs
        assert same_bits(canonical[g * k : (g + 1) * k], W[g * d : (g + 1) * d].transpose(0, 1))


def updates() -> dict[str, tuple[lora.LoRAUpdate, Layout]]:
    """An update of each kind with a layout other than the canonical one."""
    fused = lora.FusedUpdate(torch.randn(4, 6), torch.randn(7, 2), 3, enable_lora=(True, False, True), widths=(4, 2, 3))
    convolution = lora.ConvolutionUpdate(torch.randn(2, 3, 2), torch.randn(8, 2, 1), 3, groups=2, transposed=True)
    return {
        "transposed": (lora.LoRAUpdate(torch.randn(2, 6), torch.randn(9, 2), 3), Layout(transposed=True)),
        "embedding": (lora.EmbeddingUpdate(torch.randn(2, 6), torch.randn(9, 2), 3), Layout(transposed=True)),
        "fused": (fused, Layout(transposed=True)),
        "deconvolution": (convolution, Layout(deconvolution=2)),
        "dora": (
            lora.LoRAUpdate(torch.randn(2, 6), torch.randn(9, 2), 3, magnitude=torch.rand(9) + 0.5),
            Layout(transposed=True),
        ),
    }


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", updates())
def test_the_effective_weight_is_the_canonical_one_stored(kind, grad):
    update, layout = updates()[kind]
    out = len(update.B) if kind != "fused" else 9
    canonical = torch.randn(out, *update.A.shape[1:])
    with torch.set_grad_enabled(grad):
        expected = update.effective_weight(canonical, Layout())
        found = update.effective_weight(layout.from_canonical(canonical), layout)
    assert close(layout.to_canonical(found), expected, factor=4)
    if kind != "dora":
        assert close(layout.to_canonical(update.delta(layout)), expected - canonical, factor=64)


def test_max_norm_is_applied_before_the_update_is_added():
    W, update = torch.randn(6, 4) * 3, lora.EmbeddingUpdate(torch.randn(2, 6), torch.randn(4, 2), 3, max_norm=1.0)
    expected = torch.renorm(W, 2.0, 0, 1.0) + update.delta()
    assert close(update.effective_weight(W), expected, factor=4)
