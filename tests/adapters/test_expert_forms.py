"""Experts together and apart: the same ΔW, and what was taken apart comes back."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora
from loralib.adapters.expert_forms import Stack, in_form_of, module_of, stacked
from models import close
from sample_adapters import of, tensor, updates

E, D, K = 3, 4, 5
NAMES = {"": ("gate_proj", "up_proj", "down_proj"), "w": ("w1", "w3", "w2"), "fc": ("fc1", "fc3", "fc2")}


def each(r: int = 2, names: str = "", alphas: Any = 3, module: str = "m.experts") -> dict[str, lora.LoRAUpdate]:
    """Updates of gate, up (D → K) and down (K → D) of all experts."""
    found = {}
    for e in range(E):
        for i, leaf in enumerate(NAMES[names]):
            d, k = (K, D) if i == 2 else (D, K)
            A, B = tensor((r, d), torch.float64, 10 * e + i), tensor((k, r), torch.float64, 100 + 10 * e + i)
            found[f"{module}.{e}.{leaf}"] = lora.LoRAUpdate(A, B, alphas[i] if isinstance(alphas, list) else alphas)
    return found


def gate_up(layers: Any, e: int, interleaved: bool = False, module: str = "m.experts", names: str = "") -> Tensor:
    gate, up = (layers[f"{module}.{e}.{leaf}"].delta() for leaf in NAMES[names][:2])
    return torch.stack([gate, up], 1).flatten(0, 1) if interleaved else torch.cat([gate, up])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("alphas", [3, [3, 6, 1]])
def test_together_is_the_same_update(interleaved: bool, names: str, alphas: Any) -> None:
    layers = each(names=names, alphas=alphas)
    found = lora.stack_experts(of(layers), interleaved=interleaved).layers
    assert set(found) == {"m.experts.gate_up_proj", "m.experts.down_proj"}
    for e in range(E):
        assert close(found["m.experts.gate_up_proj"].delta()[e], gate_up(layers, e, interleaved, names=names), factor=16)
        assert close(found["m.experts.down_proj"].delta()[e], layers[f"m.experts.{e}.{NAMES[names][2]}"].delta(), factor=16)


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_is_put_together_comes_apart_again(interleaved: bool) -> None:
    layers = each()
    again = lora.split_experts(lora.stack_experts(of(layers), interleaved=interleaved), interleaved).layers
    assert again.keys() == layers.keys()
    for name, update in layers.items():
        assert again[name].r == update.r
        assert close(again[name].delta(), update.delta(), factor=16)


@settings(max_examples=30)
@given(updates(["experts", "shared"], [torch.float64], k=4), st.booleans())
def test_what_is_taken_apart_is_the_same_update(update: lora.ExpertsUpdate, interleaved: bool) -> None:
    apart = lora.split_experts(of({"m.experts.gate_up_proj": update, "m.experts.down_proj": update}), interleaved).layers
    assert all(type(own) is lora.LoRAUpdate for own in apart.values())
    for e, delta in enumerate(update.delta()):
        assert torch.allclose(gate_up(apart, e, interleaved), delta, atol=1e-12)
        assert torch.allclose(apart[f"m.experts.{e}.down_proj"].delta(), delta, atol=1e-12)
    together = lora.stack_experts(of(apart), interleaved=interleaved).layers["m.experts.gate_up_proj"]
    assert torch.allclose(together.delta(), update.delta(), atol=1e-12)


def test_halves_with_one_first_factor_keep_the_rank() -> None:
    layers = each()
    for e in range(E):
        name = f"m.experts.{e}.up_proj"
        layers[name] = lora.LoRAUpdate(layers[f"m.experts.{e}.gate_proj"].A.clone(), layers[name].B, 3)
    found = lora.stack_experts(of(layers)).layers["m.experts.gate_up_proj"]
    assert found.r == 2
    assert close(found.delta()[1], gate_up(layers, 1), factor=16)


def test_experts_without_an_update_and_of_other_ranks() -> None:
    layers = {name: update for name, update in each().items() if ".1." not in name and not name.endswith("2.up_proj")}
    wide = each(r=4)
    layers["m.experts.0.down_proj"] = wide["m.experts.0.down_proj"]
    found = stacked(of(layers), {"m.experts": Stack(E + 1)}).layers
    both, down = found["m.experts.gate_up_proj"].delta(), found["m.experts.down_proj"].delta()
    assert len(both) == len(down) == E + 1
    assert not both[1].any()
    assert not both[3].any()
    assert close(both[2][:K], layers["m.experts.2.gate_proj"].delta(), factor=16)
    assert not both[2][K:].any()
    assert close(down[0], wide["m.experts.0.down_proj"].delta(), factor=16)
    assert close(down[2], layers["m.experts.2.down_proj"].delta(), factor=16)


def test_other_layers_and_modules_stay() -> None:
    others = {"q": each()["m.experts.0.gate_proj"]} | each(module="n.experts")
    found = stacked(of(each() | others), {"m.experts": Stack(E)})
    assert {name for name in found.layers if not name.startswith("m.")} == set(others)
    assert found.settings.modules_to_save == ("head",)
    without = stacked(of(each()), {"m.experts": Stack(E, fused=False)})
    assert {name.rpartition(".")[2] for name in without.layers} == {"gate_proj", "up_proj", "down_proj"}


def test_factors_of_two_precisions_lose_nothing() -> None:
    layers = {name: u if ".0." in name else lora.LoRAUpdate(u.A.float(), u.B.bfloat16(), 3) for name, u in each().items()}
    found = lora.stack_experts(of(layers)).layers["m.experts.down_proj"]
    assert (found.A.dtype, found.B.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_form_is_that_of_the_files(prefix: str) -> None:
    together = {"m.experts.gate_up_proj": (E, 2 * K, D), "m.experts.down_proj": (E, D, K)}
    apart = {f"{prefix}m.experts.{e}.{leaf}.weight": (K, D) for e in range(E) for leaf in NAMES[""]}
    one = lora.stack_experts(of(each()))
    assert set(in_form_of(one, apart).layers) == set(each())
    assert set(in_form_of(of(each()), {prefix + name: shape for name, shape in together.items()}).layers) == set(together)
    assert in_form_of(one, {prefix + name: shape for name, shape in together.items()}).layers == one.layers
    assert in_form_of(of(each()), apart).layers == each()


def test_which_names_are_of_one_expert() -> None:
    names = ["a.experts.0.w1", "a.experts.12.down_proj", "a.experts.x.w1", "a.0.q_proj", "experts.w1"]
    assert [module_of(name) for name in names] == ["a.experts", "a.experts", None, None, None]
