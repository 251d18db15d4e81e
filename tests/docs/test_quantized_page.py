"""The page on quantized bases: each cell of its table is what happens."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import loralib as lora
from quantized_kinds import KINDS, adapted, model_of

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "quantized.md"


def gradients(kind: str) -> bool:
    model = adapted(kind).train()
    x = torch.randn(3, 32, requires_grad=True)
    model(x).sum().backward()
    return all(t.grad is not None and bool(t.grad.any()) for t in (x, model[1].lora_A, model[1].lora_B))


def dense(kind: str) -> bool:
    model, x = adapted(kind), torch.randn(3, 32, requires_grad=True)
    y = model(x)
    lora.merge(model)
    return torch.allclose(model(x), y, atol=1e-4)


def same(kind: str) -> bool:
    model = adapted(kind)
    before = type(model[1].weight)
    lost = lora.merge(model, into="same", most_lost=9)
    return type(model[1].weight) is before and list(lost) == ["1"]


def attached(kind: str) -> bool:
    model, x = adapted(kind), torch.randn(3, 32, requires_grad=True)
    with tempfile.TemporaryDirectory() as folder:
        lora.save(lora.extract(model), folder)
        other = model_of(kind)
        lora.attach(other, folder)
    return torch.allclose(other(x), model(x))


def injected(kind: str) -> bool:
    return list(lora.inject(model_of(kind), lora.LoRAConfig(target_modules=["1"]))) == ["1"]


COLUMNS: dict[str, Callable[[str], bool]] = {
    "inject": injected,
    "gradients": gradients,
    "merge, dense": dense,
    "merge, same": same,
    "save and attach": attached,
}


def said() -> dict[str, list[str]]:
    """The cells of the page's table, by kind."""
    lines = PAGE.read_text(encoding="utf-8").partition("<!-- compatibility -->")[2].strip().split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["kind", *COLUMNS]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_table_has_all_kinds() -> None:
    assert list(said()) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_is_what_happens(kind: str) -> None:
    found: list[str] = []
    for does in COLUMNS.values():
        if found[:1] == ["refused"]:
            found.append("\N{EN DASH}")
            continue
        try:
            assert does(kind)
            found.append("yes")
        except lora.LoRAError:
            found.append("refused")
    assert said()[kind] == found
