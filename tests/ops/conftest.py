"""The fused operations compute whatever their size: what is small elsewhere is not small here."""

import pytest

from loralib.ops import dispatch
from loralib.ops.autograd import dropout

SMALL, FEW = dispatch.SMALL, dropout.FEW


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dropout, "FEW", 0)
