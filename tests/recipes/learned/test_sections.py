"""Which sections a page has."""

import pytest
import torch
from torch import nn

from loralib.recipes.learned import sections as module
from loralib.recipes.learned.sections import sections
from reported import along, analysed

BASE = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8, bias=False)})])})


def titles(*adapters: object, **how: object) -> list[str]:
    return [section.title for section in sections(analysed(*adapters, **how))]  # type: ignore[arg-type]


def test_there_are_sections_for_what_there_is() -> None:
    assert titles(along(0)) == ["Adapters", "Where the update is large", "Spectra"]
    assert titles(along(0), along(1))[1:3] == ["Shared directions: one and two", "Overlap of updates"]
    assert titles(along(0), along(1), along(2))[1] == "All pairs"
    torch.nn.init.eye_(BASE.get_submodule("layer.0.q").weight)  # type: ignore[arg-type]
    assert titles(along(0), base=BASE)[-1] == "Amplification"
    strong = along(0, 1, strength=(40.0, 40.0))
    zero = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8, bias=False)})])})
    torch.nn.init.zeros_(zero.get_submodule("layer.0.q").weight)  # type: ignore[arg-type]
    assert "Intruder dimensions" in titles(strong, base=zero)


def test_the_heatmaps_of_all_pairs_share_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HEATMAPS", 3)
    found = sections(analysed(*(along(i, name=f"layer.{k}.q") for i, k in ((0, 0), (1, 0), (2, 0)))))
    shared = [section for section in found if section.title.startswith("Shared")]
    assert [len(section.galleries[2].pictures) for section in shared] == [1, 1, 1]
