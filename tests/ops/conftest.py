"""The fused operations compute whatever their size: what is small elsewhere is not small here."""

import pytest

from loralib.ops import dispatch
from loralib.ops.autograd import dropout

SMALL, FEW = dispatch._SMALL, dropout._FEW


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_SMALL", 0)
    monkeypatch.setattr(dropout, "_FEW", 0)
