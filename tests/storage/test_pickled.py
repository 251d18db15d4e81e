"""What is said of a pickle that is refused: what is in it, and never how to run it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from loralib.errors import FormatError
from loralib.storage.pickled import read_pickled


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


class Own:
    pass


@pytest.mark.parametrize(
    ("value", "named"),
    [(Command(), "system, which could run code"), (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), (Own(), "Own")],
)
def test_a_refused_pickle_is_not_recommended(value: object, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": value}, path)
    with pytest.raises(FormatError) as raised:
        read_pickled(path)
    said = str(raised.value)
    assert named in said
    assert said.isprintable()
    assert not any(word in said for word in ("weights_only", "safe_globals", "trust", "torch.load", "two options"))
