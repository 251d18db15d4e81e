"""What each method costs on a model, counted without its weights."""

from pathlib import Path
from typing import Any

import pytest

from loralib.errors import TargetError
from loralib.recipes.cost import COUNTED, costs

GPT3 = 175e9
CLASSES = ["0", "1"]


def on(model: str, **options: Any) -> Any:
    return lambda causal: {"model": model, "task": "e2e" if causal else "sst2", **options}


def test_the_papers_saving_on_gpt3() -> None:
    found = costs("gpt3", None, on("gpt3", r=4), dtype="fp16")
    full, lora = found["full"], found["lora"]
    assert full.parameters["total"] == pytest.approx(GPT3, rel=0.01)
    assert full.memory.total == pytest.approx(4 * 2 * full.parameters["total"], rel=1e-3)  # weight, gradient, two moments
    assert lora.memory.total == pytest.approx(350e9, rel=0.01)  # section 4.2: from 1.2 TB to 350 GB
    assert lora.memory.saved == 4 * lora.parameters["lora"]  # our factors are in float32
    assert 2 * lora.parameters["lora"] == pytest.approx(35e6, rel=0.1)  # the paper's are in 16 bits


def test_every_method_is_counted_on_a_local_encoder(encoder: Path) -> None:
    found = costs(str(encoder), CLASSES, on(str(encoder), r=4, layers=["query"]))
    assert tuple(found) == COUNTED
    trained = [cost.memory.trained for cost in found.values()]
    assert found["full"].parameters["total"] == trained[2] > max(trained[:2])
    assert (len(found["lora"].bound), len(found["full"].bound)) == (2, 0)
    assert trained == [cost.parameters["trained"] for cost in found.values()]


def test_what_cannot_be_found_is_an_error(encoder: Path) -> None:
    with pytest.raises(TargetError, match="nosuch"):
        costs(str(encoder), CLASSES, on(str(encoder), target_modules=["nosuch"]))
