"""Adapters and updates as values."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora
from models import close, same_bits


def update(r: int = 2, d: int = 3, k: int = 4, **options) -> lora.LoRAUpdate:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(r, d, generator=generator), torch.randn(k, r, generator=generator)
    return lora.LoRAUpdate(*factors, **{"lora_alpha": 3} | options)


def adapter() -> lora.Adapter:
    layers = {"proj": update(), "out": update(1)}
    tensors = {"head.weight": torch.ones(2, 2), "head.count": torch.tensor(3)}
    return lora.Adapter(lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["proj", "out"]), layers, tensors, {"task_type": "X"})


def all_tensors(value: lora.Adapter) -> list[Tensor]:
    return [t for u in value.layers.values() for t in (u.A, u.B)] + list(value.tensors.values())


@given(r=st.integers(1, 8), lora_alpha=st.floats(0.1, 64), use_rslora=st.booleans())
def test_delta_is_the_scaled_product_of_the_factors(r, lora_alpha, use_rslora):
    made = update(r, lora_alpha=lora_alpha, use_rslora=use_rslora)
    scaling = lora_alpha / (r**0.5 if use_rslora else r)
    assert made.r == r
    assert made.scaling == pytest.approx(scaling)
    assert close(made.delta(), (scaling * made.B.double() @ made.A.double()).float(), factor=32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_delta_is_computed_in_at_least_float32(dtype):
    made = lora.LoRAUpdate(update().A.to(dtype), update().B.to(dtype), 3)
    assert made.delta().dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("shapes", [((2, 3), (4, 3)), ((3,), (4, 3)), ((2, 3), (4, 2, 2)), ((0, 3), (4, 0))])
def test_tensors_that_are_no_factors_of_one_update_are_refused(shapes):
    A, B = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(lora.ConfigError, match=r"are not factors of one update: expected \(r, in\) and \(out, r\)"):
        lora.LoRAUpdate(A, B, 1)


def test_an_adapter_says_what_it_is():
    assert repr(adapter()) == "Adapter(2 layers, r in {1, 2}, 21 parameters, 2 extra tensors)"
    assert adapter().num_parameters() == 2 * (3 + 4) + 1 * (3 + 4)


def test_an_adapter_cannot_be_changed():
    value = adapter()
    for mapping in (value.layers, value.tensors, value.metadata):
        with pytest.raises(TypeError):
            mapping["other"] = None
    with pytest.raises(AttributeError):
        value.config = None
    with pytest.raises(AttributeError):
        value.layers["proj"].lora_alpha = 5


def test_later_changes_of_the_mapping_it_was_made_from_do_not_show():
    layers = {"proj": update()}
    value = lora.Adapter(lora.LoRAConfig(), layers)
    layers.clear()
    assert list(value.layers) == ["proj"]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_the_same_content(how):
    value, copied = adapter(), how(adapter())
    assert (copied.config, copied.metadata) == (value.config, value.metadata)
    assert list(copied.layers) == list(value.layers)
    assert all(same_bits(a, b) for a, b in zip(all_tensors(copied), all_tensors(value), strict=True))
    assert copied.layers["proj"].scaling == value.layers["proj"].scaling


def test_a_deep_copy_shares_no_memory():
    value = adapter()
    copied = copy.deepcopy(value)
    copied.layers["proj"].A.zero_()
    assert value.layers["proj"].A.any()


def test_to_changes_floating_point_tensors_only():
    moved = adapter().to(dtype=torch.bfloat16, device="cpu")
    assert {t.dtype for u in moved.layers.values() for t in (u.A, u.B)} == {torch.bfloat16}
    assert [t.dtype for t in moved.tensors.values()] == [torch.bfloat16, torch.int64]
    assert (moved.config, moved.metadata) == (adapter().config, adapter().metadata)
    assert [u.lora_alpha for u in moved.layers.values()] == [3, 3]


def test_the_delta_of_an_unknown_layer_names_the_nearest():
    assert same_bits(adapter().delta("proj"), update().delta())
    with pytest.raises(lora.TargetError, match="Nearest names: proj"):
        adapter().delta("nothing")
