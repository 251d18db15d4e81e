"""An adapter is a value: equal when everything is, to the last bit, and never changed by what is made of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

import loralib as lora
from models import same_bits
from sample_adapters import ROWS, UPDATE, adapters, of


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
