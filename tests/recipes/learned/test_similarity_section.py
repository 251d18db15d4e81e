"""The section on two adapters: every layer is drawn, on one scale, next to what chance gives."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loralib.analysis import SubspaceSimilarity
from loralib.recipes.learned.page import rendered
from loralib.recipes.learned.similarity_section import MOST_OPEN, mean, scale, similarity_section, spread
from pages import Page
from reported import NAMES, along, analysed, random_adapter


def test_every_layer_and_the_mean_and_chance_of_every_role_are_drawn() -> None:
    measured = analysed(random_adapter(2, 0), random_adapter(3, 1))
    section = similarity_section(measured, measured.pairs[0], 100)
    bar, by_role, *layers = section.galleries
    assert len(bar.pictures) == 1
    titles = [picture.caption.split(":")[0] for picture in by_role.pictures]
    assert titles == ["query", "query, chance", "value", "value, chance"]
    for gallery, kind in zip(layers, ("query", "value"), strict=True):
        assert gallery.title == f"encoder.layer.*.attention.{kind}, layer by layer"
        assert [picture.caption.split(":")[0] for picture in gallery.pictures] == ["0", "1", "10"]
    found = measured.pairs[0].similarity[NAMES[0]]
    assert f"φ(1, 1) = {found.at(1, 1):.2f}, φ(2, 3) = {found.at(2, 3):.2f}; chance 0.12" in layers[0].pictures[0].caption
    assert Page(rendered("t", [], [section])).problems == []


def test_many_layers_are_folded_and_more_than_the_most_are_left_to_the_tables() -> None:
    names = [f"layer.{i}.{kind}" for i in range(30) for kind in ("q", "v")]
    measured = analysed(random_adapter(1, 0, names), random_adapter(1, 1, names))
    assert len(names) > MOST_OPEN
    section = similarity_section(measured, measured.pairs[0], 20)
    for gallery in section.galleries[2:]:
        assert gallery.folded
        assert len(gallery.pictures) == 10
        assert gallery.title.endswith("layer by layer (10 of 30; report.json has all)")
    assert len(section.tables[0].rows) == len(names)


def test_what_they_began_with_is_drawn_where_it_is_known() -> None:
    measured = analysed(random_adapter(2, 0), random_adapter(3, 1))
    start = {name: SubspaceSimilarity(torch.ones(2, 3, dtype=torch.float64), 24) for name in NAMES}
    section = similarity_section(measured, dataclasses.replace(measured.pairs[0], start=start), 100)
    captions = [picture.caption for picture in section.galleries[1].pictures]
    assert "query, A before the first step: φ(1, 1) = 1.00, φ(2, 3) = 1.00" in captions
    unknown = similarity_section(measured, dataclasses.replace(measured.pairs[0], start="gone"), 100)
    assert len(unknown.galleries[1].pictures) == 4


def test_zero_updates_are_a_sentence() -> None:
    measured = analysed(along(0, strength=(0.0,)), along(1))
    section = similarity_section(measured, measured.pairs[0], 100)
    assert section.lead == "In no layer are both updates other than zero."
    assert section.galleries == ()


@pytest.mark.parametrize(("largest", "end"), [(0.0, 0.1), (0.1, 0.1), (0.11, 0.2), (0.95, 1.0), (1.0, 1.0)])
def test_the_scale_ends_at_a_tenth(largest: float, end: float) -> None:
    assert scale([SubspaceSimilarity(torch.tensor([[largest]], dtype=torch.float64), 8)]) == pytest.approx(end)


@given(st.integers(1, 40), st.integers(1, 40))
def test_some_names_are_spread_over_all(count: int, most: int) -> None:
    names = [str(i) for i in range(count)]
    found = spread(names, most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found), key=int)
    assert found[0] == "0"
    assert most == 1 or found[-1] == names[-1]


def test_means_are_of_the_size_that_all_have() -> None:
    assert re.match(r"tensor\(\[\[1\.5", str(mean([torch.ones(1, 1), torch.full((2, 2), 2.0)])))
