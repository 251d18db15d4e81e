"""Two adapters are equal when all that they hold is, to the last bit; nothing can be put into one."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from sample_adapters import ROWS, UPDATE, adapters, of


@settings(max_examples=80, deadline=None)
@given(adapters())
def test_copies_are_equal_and_have_one_hash_and_digest(adapter):
    for again in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert again == adapter
        assert hash(again) == hash(adapter)
        assert again.digest() == adapter.digest()


@settings(max_examples=80, deadline=None)
@given(adapters(), st.data())
def test_one_bit_makes_another_adapter(adapter, data):
    name = data.draw(st.sampled_from(list(adapter.layers)))
    update = adapter.layers[name]
    B = update.B.clone()
    B.view(-1).view(torch.uint8)[0] ^= 1
    other = replace(adapter, layers=dict(adapter.layers) | {name: replace(update, B=B)})
    assert other != adapter
    assert other.digest() != adapter.digest()


def test_what_makes_adapters_differ():
    adapter = of(tensors={"head.weight": torch.ones(2)}, metadata={"k": "v"}, rows={"e": ROWS})
    others = [
        replace(adapter, config=lora.LoRAConfig(lora_dropout=0.1)),
        replace(adapter, layers={"a.q": UPDATE}),
        replace(adapter, layers={"a.q": UPDATE, "a.k": UPDATE}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, lora_alpha=5)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, use_rslora=True)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, magnitude=torch.ones(4))}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": lora.EmbeddingUpdate(UPDATE.A, UPDATE.B, 4)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, A=UPDATE.A.double())}),
        replace(adapter, tensors={"head.weight": torch.ones(1, 2)}),
        replace(adapter, tensors={"head.weight": -torch.ones(2)}),
        replace(adapter, metadata={"k": "w"}),
        replace(adapter, rows={"e": lora.TokenRows((2,), torch.ones(1, 2))}),
    ]
    digests = {other.digest() for other in others}
    assert all(other != adapter for other in others)
    assert len(digests | {adapter.digest()}) == len(others) + 1
    assert replace(adapter, source="a file") == adapter
    assert replace(adapter, layers=dict(reversed(adapter.layers.items()))) == adapter
    assert adapter != "adapter"
    assert UPDATE != "update"
    nan = of({"q": replace(UPDATE, A=torch.full((2, 3), float("nan")))})
    assert nan == copy.deepcopy(nan), "bits decide"
    assert of({"q": replace(UPDATE, A=torch.zeros(2, 3))}) != of({"q": replace(UPDATE, A=-torch.zeros(2, 3))})


def test_nothing_can_be_put_into_an_adapter():
    adapter = of()
    with pytest.raises(FrozenInstanceError):
        adapter.config = lora.LoRAConfig()
    with pytest.raises(TypeError):
        adapter.layers["x"] = UPDATE
