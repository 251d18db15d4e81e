"""What is measured: the library's functions on each adapter and on every two."""

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.recipes.learned.measured import measure
from reported import NAMES, along, analysed, random_adapter


def test_every_two_are_compared_the_lower_rank_first() -> None:
    measured = analysed(random_adapter(4, 0), random_adapter(2, 1), random_adapter(3, 2))
    assert [pair.title for pair in measured.pairs] == ["two and one", "three and one", "two and three"]
    assert [alone.subject.name for alone in measured.alone] == ["one", "two", "three"]
    assert measured.pairs[0].similarity[NAMES[0]].phi.shape == (2, 4)
    assert measured.pairs[0].start is None


def test_roles_group_layers_in_natural_order() -> None:
    measured = analysed(random_adapter(2, 0))
    assert measured.by_role(NAMES) == {
        kind: [f"encoder.layer.{i}.attention.{kind}" for i in (0, 1, 10)] for kind in ("query", "value")
    }


def test_progress_counts_pairs_and_adapters() -> None:
    seen: list[tuple[int, int]] = []
    analysed(along(0), along(1), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_adapters_that_share_no_layer_are_named() -> None:
    with pytest.raises(lora.TargetError, match=r"^one and two: .*share no layer.*Nothing was written\.$"):
        analysed(along(0), along(0, name="other.0.k"))


def test_the_base_may_be_a_model_and_is_named() -> None:
    base = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])})
    measured = analysed(along(0), base=base)
    assert measured.base == "ModuleDict"
    assert set(measured.alone[0].amplification) == {"layer.0.q"}
    assert measure([measured.alone[0].subject]).alone[0].amplification == {}


def test_an_adapter_of_dora_alone_has_no_amplification_and_a_note() -> None:
    adapter = along(0)
    update = adapter.layers["layer.0.q"]
    dora = lora.Adapter(lora.LoRAConfig(), {"layer.0.q": lora.LoRAUpdate(update.A, update.B, 1, magnitude=torch.ones(8))})
    measured = analysed(dora, base=nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])}))
    assert measured.alone[0].amplification == measured.alone[0].intruders == {}
    assert measured.alone[0].spectra["layer.0.q"].values == pytest.approx((4.0,))
    [note] = measured.notes
    assert note.startswith("one: amplification and intruders are left out for its DoRA layers (1, such as layer.0.q)")
