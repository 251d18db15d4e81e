"""The sentences of a report say the planted numbers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.analysis import Amplification, SubspaceSimilarity
from loralib.recipes.learned.findings import findings
from loralib.recipes.learned.measured import Alone, Measured
from reported import along, analysed, random_adapter


def said(measured: Measured) -> str:
    return "\n".join(f"{found.about}: {sentence}" for found in findings(measured) for sentence in found.sentences)


def test_the_first_direction_is_said_by_role_with_chance() -> None:
    one, two = along(0, 1), along(3, 0)
    text = said(analysed(one, two))
    assert "one and two: The first direction of one lies in the first two of two by φ = 1.00 on q; chance 0.25." in text
    assert "closest in layer.0.q, φ(1, 1) = 0.00" in text
    assert "of all directions φ is 0.50, 2 times chance (0.25)" in text


def test_roles_are_in_the_order_of_what_they_share() -> None:
    both = [along(0, name="layer.0.q"), along(0, name="layer.0.v")], [along(1, name="layer.0.q"), along(0, name="layer.0.v")]
    one, two = (lora.Adapter(lora.LoRAConfig(), {n: u for part in parts for n, u in part.layers.items()}) for parts in both)
    assert "agrees with that of two by φ = 1.00 on v and 0.00 on q; chance 0.12." in said(analysed(one, two))


@pytest.mark.parametrize(
    ("one", "two", "cosine", "meaning"),
    [
        (along(0), along(0), "1.00", "point the same way"),
        (along(0), along(0, strength=(-4.0,)), "-1.00", "work against each other"),
        (along(0), along(1), "0.00", "nearly orthogonal"),
    ],
)
def test_whether_two_interfere(one: lora.Adapter, two: lora.Adapter, cosine: str, meaning: str) -> None:
    text = said(analysed(one, two))
    assert f"one and two: Over all layers the cosine of their updates is {cosine}: " in text
    assert meaning in text


def test_where_the_update_is_large() -> None:
    layers = {
        f"layer.{i}.{kind}": lora.LoRAUpdate(torch.eye(4)[:1], strength * torch.eye(4)[:, :1], lora_alpha=1)
        for i, kind, strength in ((0, "q", 1.0), (1, "q", 1.0), (0, "v", 1.0), (1, "v", 3.0))
    }
    text = said(analysed(lora.Adapter(lora.LoRAConfig(), layers)))
    assert "one: The update is largest in layer.1.v, ‖ΔW‖ = 3 (median of 4 layers: 1)" in text
    assert "of ‖ΔW‖², 83 % is in v and 17 % is in q." in text
    assert "99 % of a layer's ‖ΔW‖² lies in 1 direction, where r is 1." in text


def test_amplification_and_intruders(tmp_path: Path) -> None:
    base = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8, bias=False)})])})
    base.get_submodule("layer.0.q").weight.data = torch.diag(torch.arange(8, 0, -1).float())  # type: ignore[union-attr]
    text = said(analysed(along(7, strength=(5.0,)), base=base))
    assert "one: ΔW amplifies what W has in its directions 5 times." in text
    assert "W is 8 times weaker than in its own strongest" in text


def test_a_layer_of_zero_is_said_and_not_counted() -> None:
    zero = lora.LoRAUpdate(torch.zeros(1, 8), torch.zeros(8, 1), lora_alpha=1)
    adapter = along(0)
    both = adapter.with_layers({**adapter.layers, "layer.1.q": zero})
    assert "1 layer of 2 has an update of zero, such as layer.1.q" in said(analysed(both))
    nothing = adapter.with_layers({"layer.0.q": dataclasses.replace(zero)})
    assert "In no layer that both adapt are both updates other than zero." in said(analysed(adapter, nothing))


def of_one_seed(start: "dict[str, SubspaceSimilarity] | str") -> str:
    measured = analysed(random_adapter(2, 0), random_adapter(4, 1))
    pair = dataclasses.replace(measured.pairs[0], start=start)
    return said(dataclasses.replace(measured, pairs=[pair]))


def test_one_seed_is_a_warning_with_what_was_shared_before_training() -> None:
    start = {name: SubspaceSimilarity(torch.ones(2, 4, dtype=torch.float64), 24) for name in random_adapter(2, 0).layers}
    text = of_one_seed(start)
    assert "Both began with seed" in text
    assert "φ of all directions of A was 1.00 before any training, chance 0.17" in text
    assert "compare runs of different seeds" in text
    assert "How far is not known: the data is gone." in of_one_seed("the data is gone.")
    assert "Both began with seed" not in said(analysed(random_adapter(2, 0), random_adapter(4, 1)))


def test_one_seed_without_a_common_start_is_said_so() -> None:
    start = {name: SubspaceSimilarity(torch.full((2, 4), 0.2, dtype=torch.float64), 24) for name in random_adapter(2, 0).layers}
    assert "Both began with seed None, and yet with different A: φ of all directions was 0.20 then." in of_one_seed(start)
    assert "compare runs of different seeds" not in of_one_seed(start)


def test_layers_with_a_common_start_are_counted() -> None:
    first, *others = random_adapter(2, 0).layers
    start = {name: SubspaceSimilarity(torch.full((2, 4), 0.2, dtype=torch.float64), 24) for name in others}
    start[first] = SubspaceSimilarity(torch.ones(2, 4, dtype=torch.float64), 24)
    assert f"in 1 of 6 layers, such as {first}, φ of all directions of A was 1.00 before any training" in of_one_seed(start)


def test_what_is_infinite_is_left_out() -> None:
    found = Amplification(1, 0.0, 1.0, 0.1, 1.0, 1.0, {})
    assert found.factor == math.inf
    measured = analysed(along(0))
    alone = Alone(measured.alone[0].subject, measured.alone[0].spectra, {"layer.0.q": found})
    assert "amplifies" not in said(dataclasses.replace(measured, alone=[alone]))


def test_of_several_pairs_the_closest_is_said_first_and_the_rest_folded() -> None:
    adapters = [along(0, 1), along(0, 2), along(3, 4), along(5, 6)]
    found = findings(analysed(*adapters, names=["a", "b", "c", "d"]))
    assert found[0].about == "All 6 pairs"
    assert "directions of a and b agree most, φ(1, 1) = 1.00 in the mean over layers" in found[0].sentences[0]
    assert [one.folded for one in found] == [False, *[True] * 10]
    assert not any(one.folded for one in findings(analysed(*adapters[:3])))
