"""What an adapter says of itself: counts, ranks and sizes, and nothing that does not apply."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import loralib as lora
from loralib.adapters import summary
from sample_adapters import ROWS, UPDATE, of


def test_the_summary_says_what_there_is():
    mixed = {"a.q": UPDATE, "b.0.q": replace(UPDATE, use_rslora=True), "v": replace(UPDATE, magnitude=torch.ones(4))}
    adapter = of(mixed, tensors={"head.weight": torch.ones(5).bfloat16()}, rows={"e.weight": ROWS}, metadata={"task_type": "T"})
    said = replace(adapter, source="PEFT folder x").summary()
    words = [
        "PEFT folder x",
        "q (2 layers), v (1 layer)",
        "1 of 3 layers",
        "46 in factors, 5 in extra tensors",
        "head",
        "e.weight",
    ]
    for word in [*words, "task_type    T"]:
        assert word in said
    assert adapter.num_parameters() == 3 * 14 + 4
    assert "1 token row" in repr(adapter)


def ranked(*ranks: int) -> dict[str, lora.LoRAUpdate]:
    return {f"{i}.q": lora.LoRAUpdate(torch.ones(r, 3), torch.ones(4, r), 4) for i, r in enumerate(ranks)}


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([2], "1 layer, r=2, 14 parameters"),
        ([4, 2, 4], "3 layers, r in {2, 4}, 70 parameters"),
        ([1, 2, 3, 4, 5], "5 layers, r in {1, 2, 3, 4, 5}, 105 parameters"),
        ([6, 1, 2, 3, 4, 5], "6 layers, r from 1 to 6, 147 parameters"),
        ([200], "1 layer, r=200, 1,400 parameters"),
    ],
)
def test_a_line_names_few_ranks_and_bounds_many(ranks, words):
    assert summary.line(ranked(*ranks), {}, {}).startswith(words)


def test_a_line_counts_tensors_and_has_rows_only_where_there_are_some():
    assert "1 extra tensor" in summary.line({}, {"a": torch.ones(2)}, {})
    assert "2 extra tensors" in summary.line({}, {"a": torch.ones(2), "b": torch.ones(2)}, {})
    assert "token" not in summary.line({}, {}, {})
    assert "3 token rows" in summary.line({}, {}, {"e": ROWS, "f": lora.TokenRows((1, 2), torch.ones(2, 2))})


def facts(layers: dict[str, lora.LoRAUpdate], **fields: Any) -> dict[str, str]:
    return summary.describe(**{"layers": layers, "tensors": {}, "rows": {}, "metadata": {}, "source": ""} | fields)


def test_what_does_not_apply_is_left_out():
    assert facts(ranked(2)) == {
        "r": "2",
        "lora_alpha": "4",
        "scaling": "2",
        "targets": "q (1 layer)",
        "parameters": "14 in factors",
        "stored": "56 bytes, float32",
    }


def test_values_that_differ_are_counted_and_many_are_bounded():
    assert facts(ranked(2, 1, 2))["r"] == "2 (2), 1 (1)"
    assert facts(ranked(1, 2, 3, 4, 5, 5))["r"] == "5 (2), 1 (1), 2 (1), 3 (1), 4 (1)"
    assert facts(ranked(9, 1, 2, 3, 4, 5))["r"] == "1 to 9 (6 different)"
    mixed = {"q": UPDATE, "v": replace(UPDATE, A=UPDATE.A.bfloat16(), B=UPDATE.B.bfloat16())}
    assert facts(mixed)["stored"] == "84 bytes, float32 (2), bfloat16 (2)"


def test_metadata_follow_under_their_names_and_never_hide_a_fact():
    said = facts(ranked(2), metadata={"base_model_name_or_path": "m", "r": "x", "task_type": "T"}, source="a folder")
    assert (said["from"], said["base model"], said["r"]) == ("a folder", "m", "2")
    assert (said["metadata r"], said["task_type"]) == ("x", "T")
    assert "base_model_name_or_path" not in said


def test_few_modules_are_named_and_many_are_counted():
    def trained(count: int) -> str:
        return facts({}, tensors={f"{i}.norm.{leaf}": torch.ones(1) for i in range(count) for leaf in ("weight", "bias")})

    assert "0.norm, 1.norm" in trained(2).values()
    assert "norm (6 modules)" in trained(6).values()
    assert summary.last_name("3.4") == "3.4", "of numbers alone the whole"
