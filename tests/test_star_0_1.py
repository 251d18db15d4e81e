"""`from loralib import *` gives what it gave in loralib 0.1, and more."""

from typing import Any

import pytest

import loralib as lora
from peers import loralib_0_1


@pytest.mark.parametrize("of", ["", ".layers", ".utils"])
def test_a_star_import_gives_what_it_gave(of):
    names: list[dict[str, Any]] = [{}, {}]
    for module, found in zip(("loralib_0_1", "loralib"), names, strict=True):
        loralib_0_1()
        exec(f"from {module}{of} import *", found)
    theirs, ours = names
    assert theirs.keys() <= ours.keys()
    foreign = {name for name, value in theirs.items() if "loralib" not in str(getattr(value, "__module__", value))}
    assert {"nn", "torch"} <= foreign
    assert all(ours[name] is theirs[name] or ours[name] == theirs[name] for name in foreign - {"__builtins__"})
    assert lora.name == loralib_0_1().name == "lora"
