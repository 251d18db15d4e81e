"""The fused step of an embedding gives the reference's numbers and keeps what it says."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from loralib.ops import autograd, reference
from steps import DTYPES, as_good, doubled, kept, step

SIZES = st.sampled_from([1, 2, 3, 5, 17, 123])


@given(
    n=st.lists(st.integers(1, 5), max_size=3),
    V=SIZES,
    k=SIZES,
    r=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    keeps=st.booleans(),
    by_frequency=st.booleans(),
)
def test_an_embedding_step_is_as_exact_as_the_plain_formula(n, V, k, r, dtype, keeps, by_frequency):
    ids = torch.randint(0, V, tuple(n))
    keep = torch.rand(ids.shape).to(dtype) if keeps else None
    tensors = {"y": torch.randn(*n, k).to(dtype), "A": torch.randn(r, V).to(dtype), "B": torch.randn(k, r).to(dtype)}

    def on(module, dtype):
        kept = None if keep is None else keep.to(dtype)
        return lambda y, A, B: module.add_embedding_update(y.clone(), ids, A, B, 0.7, kept, by_frequency)

    exact = step(on(reference, torch.float64), doubled(tensors))
    assert as_good(step(on(autograd, dtype), tensors), step(on(reference, dtype), tensors), exact)


def test_an_embedding_keeps_its_tokens_and_the_small_product():
    model = nn.Sequential(nn.Embedding(50, 40)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=3, target_modules=["0"]))
    ids = torch.randint(0, 50, (10,))
    assert kept(lambda: model(ids)) == {torch.int64: 10, torch.float32: 10 * 3}
