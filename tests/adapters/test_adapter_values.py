"""An adapter is a value: equal when everything is, to the last bit, and never changed by what is made of it."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from models import same_bits
from sample_adapters import ROWS, UPDATE, adapters, of

# --- equality -------------------------------------------------------------------------------------------------------


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


@settings(max_examples=60, deadline=None)
@given(adapters())
def test_no_operation_changes_the_adapter(adapter):
    before = adapter.digest()
    for operation in (
        lambda a: 2 * a,
        lambda a: -a,
        lambda a: a.scale(0),
        lambda a: a + a,
        lambda a: a - a,
        lambda a: a.truncate(1) if all(t.isfinite().all() for t in a.all_tensors()) else a,
        lambda a: a.rename({"": "x"}),
        lambda a: a.to(dtype=torch.float64),
        lambda a: a.with_metadata({"x": "y"}),
        lambda a: a.summary(),
    ):
        operation(adapter)
        assert adapter.digest() == before


# --- arithmetic -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(adapters(dtypes=[torch.float64], extra=False))
def test_sums_and_differences_are_those_of_the_updates(adapter):
    double = {name: 2 * adapter.delta(name) for name in adapter.layers}
    for found in (adapter + adapter, 3 * adapter - adapter, 0.5 * adapter + adapter * 1.5):
        assert all(torch.allclose(found.delta(name), delta, atol=1e-9) for name, delta in double.items())
    zero = adapter - adapter
    assert all(float(zero.delta(name).abs().max()) < 1e-9 * max(1.0, float(d.abs().max())) for name, d in double.items())
    assert 1 * adapter is adapter


def test_what_is_no_adapter_or_number_is_not_computed_with():
    for operation in (lambda a: a + 1, lambda a: a - "x", lambda a: a * "x", lambda a: a * a):
        with pytest.raises(TypeError):
            operation(of())


def test_truncating_wants_a_rank_or_a_share():
    with pytest.raises(lora.ConfigError, match="needs a rank r"):
        of().truncate()
    with pytest.raises(lora.ConfigError, match="r=0"):
        of().truncate(0)
    with pytest.raises(lora.AlgebraError, match="energy=2"):
        of().truncate(energy=2)
    with pytest.raises(lora.AlgebraError, match=r"a\.q.*DoRA"):
        2 * of({"a.q": replace(UPDATE, magnitude=torch.ones(4))})


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_part_is_what_lies_in_a_module():
    adapter = of({"unet.q": UPDATE, "text.q": UPDATE}, tensors={"unet.bias": torch.ones(1)})
    part = adapter.part("unet")
    assert list(part.layers) == ["q"]
    assert list(part.tensors) == ["bias"]
    with pytest.raises(lora.TargetError, match=r"^part: 'tex' fits nothing in the adapter\. Nearest names: .*text"):
        adapter.part("tex")


# --- what it says ---------------------------------------------------------------------------------------------------


def test_other_dtypes_and_devices_hold_everything():
    adapter = of(
        {"q": replace(UPDATE, magnitude=torch.ones(4))},
        tensors={"n": torch.tensor(3)},
        rows={"e": ROWS},
    )
    low = adapter.to(dtype=torch.bfloat16)
    assert {t.dtype for t in low.all_tensors()} == {torch.bfloat16, torch.int64}
    assert same_bits(low.to(dtype=torch.float32).layers["q"].A, UPDATE.A)
    assert {t.device.type for t in adapter.to(device="meta").all_tensors()} == {"meta"}
