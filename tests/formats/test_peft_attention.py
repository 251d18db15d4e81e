"""`nn.MultiheadAttention` in PEFT's layout and back: the same ΔW, and what was written comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora
from kinds import PROJECTIONS
from loralib.formats.peft_attention import apart, configured, joined, plain
from models import close, same_bits
from sample_adapters import UPDATE

E = 4
ALL = (*PROJECTIONS, "out_proj")


def projection(r: int, lora_alpha: float = 3, use_rslora: bool = False, seed: int = 0) -> lora.ProjectionUpdate:
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.rand(shape, generator=generator) + 1 for shape in ((r, E), (E, r)))  # nowhere zero
    return lora.ProjectionUpdate(A, B, lora_alpha, use_rslora)


def dense(updates: dict[str, lora.LoRAUpdate]) -> Tensor:
    """ΔW (3·E, E) of the packed projection."""
    return torch.cat([updates[f"a.{name}"].delta() if f"a.{name}" in updates else torch.zeros(E, E) for name in PROJECTIONS])


@given(
    ranks=st.dictionaries(st.sampled_from(ALL), st.integers(1, 3), min_size=1),
    lora_alpha=st.sampled_from([1, 3, 8]),
    use_rslora=st.booleans(),
)
def test_what_peft_computes_is_the_same_update_and_it_comes_back(ranks, lora_alpha, use_rslora):
    updates = {f"a.{name}": projection(r, lora_alpha, use_rslora, seed=r) for name, r in ranks.items()}
    written = joined(updates)
    assert written.keys() == {"a", "a.base_layer.out_proj"}
    packed, out = written["a"], written["a.base_layer.out_proj"]
    assert packed.r == out.r
    assert packed.scaling == out.scaling
    assert close(packed.delta(), dense(updates), factor=16)
    expected = updates["a.out_proj"].delta() if "out_proj" in ranks else torch.zeros(E, E)
    assert close(2 * out.delta(), expected, factor=16), "PEFT adds it twice"
    read = apart(written)
    assert read.keys() == updates.keys()
    for name, update in updates.items():
        assert type(read[name]) is lora.ProjectionUpdate
        assert read[name].r == update.r
        assert close(read[name].delta(), update.delta(), factor=16)
        assert read[name].use_rslora == use_rslora


def test_of_one_scaling_the_factors_come_back_to_the_bit():
    updates = {"a.q_proj": projection(2, 4), "a.v_proj": projection(2, 4, seed=1), "a.out_proj": projection(2, 4, seed=2)}
    read = apart(joined(updates))
    for name, update in updates.items():
        assert same_bits(read[name].A, update.A)
        assert same_bits(read[name].B, update.B)
        assert read[name].lora_alpha == pytest.approx(4)


def test_different_scalings_go_into_the_factors():
    updates = {"a.q_proj": projection(1, 2), "a.k_proj": projection(2, 5)}
    packed = joined(updates)["a"]
    assert packed.scaling == 1
    assert close(packed.delta(), dense(updates), factor=16)


def test_layers_that_are_no_projections_stay_as_they_are():
    assert joined({"b": UPDATE}) == apart({"b": UPDATE}) == {"b": UPDATE}
    written = joined({"b": UPDATE, "x.a.q_proj": projection(1)})
    assert written["b"] == UPDATE
    assert written.keys() == {"b", "x.a", "x.a.base_layer.out_proj"}
    assert apart({"c.base_layer.out_proj": UPDATE}) == {"c.out_proj": UPDATE}, "without an update of the attention"


def test_an_attention_that_was_not_trained_yet_has_all_four():
    zero = lora.LoRAUpdate(torch.ones(2, E), torch.zeros(3 * E, 2), 4)
    read = apart({"a": zero, "a.base_layer.out_proj": lora.LoRAUpdate(torch.ones(2, E), torch.zeros(E, 2), 4)})
    assert list(read) == [f"a.{name}" for name in ALL]
    assert {(update.r, update.scaling) for update in read.values()} == {(2, 2)}


@pytest.mark.parametrize("shapes", [((2, 5), (4, 2)), ((2, 4), (6, 2))])
def test_keys_of_another_width_are_refused(shapes):
    odd = lora.ProjectionUpdate(torch.ones(shapes[0]), torch.ones(shapes[1]), 3)
    with pytest.raises(lora.FormatError, match=r"'m\.a' has keys or values of another width.*Nothing was written"):
        joined({"m.a.q_proj": projection(2), "m.a.k_proj": odd})


def test_names_are_those_of_the_model_and_of_the_configuration():
    assert plain("m.a.base_layer.out_proj") == "m.a.out_proj"
    assert plain("m.base_layers.out") == "m.base_layers.out"
    assert configured("m.a.base_layer.out_proj") == "m.a"
    assert configured("m.a.out_proj") == "m.a.out_proj"
