"""The parts of an adapter, by name: of the right kinds, and renamed without two of one name."""

import pytest
import torch

import loralib as lora
from loralib.adapters import parts
from sample_adapters import ROWS, UPDATE, of


def test_modules_are_renamed_with_all_that_lies_in_them():
    adapter = of(tensors={"head.weight": torch.ones(2)}, rows={"a.emb.weight": ROWS})
    renamed = adapter.rename({"a": "model.b", "head": "classifier"})
    assert list(renamed.layers) == ["model.b.q", "model.b.v"]
    assert list(renamed.tensors) == ["classifier.weight"]
    assert list(renamed.rows) == ["model.b.emb.weight"]
    assert renamed.config.target_modules == ("model.b.q", "model.b.v")
    assert renamed.config.modules_to_save == ("classifier",)
    assert renamed.rename({"model.b": "a", "classifier": "head"}).layers == adapter.layers
    assert list(adapter.rename({"a.q": "q", "a": "b"}).layers) == ["q", "b.v"]
    assert list(adapter.rename(str.upper).layers) == ["A.Q", "A.V"]


@pytest.mark.parametrize(
    ("names", "telling"),
    [({"b": "c"}, "'b' fits nothing"), ({"a.q": "a.v"}, "more than one thing"), ({"a.q": ""}, "a name is needed")],
)
def test_renaming_that_cannot_be_is_refused(names, telling):
    with pytest.raises(lora.TargetError, match=telling):
        of().rename(names)


def test_every_value_gets_its_new_name_in_order():
    assert list(parts.renamed(str.upper, {"b": 1, "a": 2}).items()) == [("B", 1), ("A", 2)]
    assert parts.renamed(str.upper, {}) == {}


@pytest.mark.parametrize(
    ("new", "telling"),
    [(lambda _: "x", "'b' cannot become 'x': more than one"), (lambda name: name[1:], "'a' cannot become ''")],
)
def test_two_of_one_name_and_none_without_one(new, telling):
    with pytest.raises(lora.TargetError, match=telling):
        parts.renamed(new, {"a": 1, "b": 2})


@pytest.mark.parametrize("part", ["layers", "tensors", "metadata", "rows"])
def test_a_part_of_another_kind_is_refused_by_its_name(part):
    good = {"layers": {"q": UPDATE}, "tensors": {"head": torch.ones(2)}, "metadata": {"a": "b"}, "rows": {"e": ROWS}}
    parts.check_parts(**good)
    for wrong in ([1], {3: "x"}, None):
        with pytest.raises(lora.ArgumentError, match=part):
            parts.check_parts(**good | {part: wrong})
    if part != "metadata":
        with pytest.raises(lora.ArgumentError, match=part):
            parts.check_parts(**good | {part: {"x": "a text"}})
