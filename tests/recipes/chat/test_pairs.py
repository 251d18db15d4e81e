"""Rows of preference pairs: the layouts that people have, and what is wrong with others."""

from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes import detection
from loralib.recipes.chat import pairs

USER = {"role": "user", "content": "What is the capital of Peru?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("It is Lima.", "No idea."))
PAIR = {"prompt": [USER], "chosen": GOOD, "rejected": BAD, "tools": None}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = {"prompt": USER["content"], "chosen": GOOD["content"], "rejected": BAD["content"]}


def read(**row: Any) -> Any:
    (pair,) = pairs.of_rows(pairs.read([("d.jsonl, line 1", row)], "d.jsonl"))
    return pair


@pytest.mark.parametrize(
    "row",
    [
        TEXTS,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD["content"], "rejected": BAD["content"]},
        {"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # as UltraFeedback has it
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 3},
    ],
)
def test_layouts(row: dict[str, Any]) -> None:
    assert read(**row) == PAIR


def test_what_comes_before() -> None:
    """The longest common beginning, with a system message of either place."""
    turns = [SYSTEM, USER, GOOD, {"role": "user", "content": "Thanks"}]
    assert read(chosen=[*turns, GOOD], rejected=[*turns, BAD])["prompt"] == turns
    assert read(**TEXTS, system="Be brief.")["prompt"] == [SYSTEM, USER]
    assert read(chosen=[USER, GOOD], rejected=[USER, BAD], system="Be brief.")["prompt"] == [SYSTEM, USER]
    assert read(chosen=[SYSTEM, USER, GOOD], rejected=[SYSTEM, USER, BAD], system="x")["prompt"] == [SYSTEM, USER]
    assert read(prompt=USER["content"], chosen=[SYSTEM, USER, GOOD], rejected=[SYSTEM, USER, BAD])["prompt"] == [SYSTEM, USER]


def test_rows_of_one_prompt_are_known_by_it() -> None:
    rows = [("1", TEXTS), ("2", TEXTS | {"rejected": "Cusco."}), ("3", TEXTS | {"prompt": "And of France?"})]
    first, second, third = pairs.read(rows, "d")["prompt"]
    assert first == second != third


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    (TEXTS | {"rejected": GOOD["content"]}, "chosen and rejected are the same answer"),
    (TEXTS | {"chosen": None}, "chosen is missing; add the answer, or leave the row out"),
    (TEXTS | {"rejected": "  "}, "rejected is empty"),
    (TEXTS | {"rejected": 3}, "rejected is int, not a text"),
    (TEXTS | {"prompt": ""}, "prompt is empty"),
    (TEXTS | {"chosen": [GOOD]}, "chosen and rejected must both be texts, or both be lists"),
    (TEXTS | {"prompt": None}, "has no prompt; add one, or write chosen and rejected as lists of messages that begin alike"),
    ({"chosen": [GOOD], "rejected": [BAD]}, "has no prompt"),
    ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "chosen is empty"),
    (
        {"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]},
        "message 3 is of the assistant, after one of the assistant",
    ),
    ({"prompt": [SYSTEM], "chosen": [GOOD], "rejected": [BAD]}, "message 2 is of the assistant, after one of the system"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "chosen ends with a message of the user"),
    ({"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD]}, "chosen has 3 messages after the prompt"),
    ({"prompt": "Other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "begin with messages that are not the prompt"),
    ({"prompt": [USER], "chosen": [{"role": "boss", "content": "x"}], "rejected": [BAD]}, "has the role 'boss'"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS)
def test_what_cannot_serve(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=rf"^d\.jsonl, line 1.*{sentence}"):
        read(**row)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"line 2 has no column 'rejected'.*Give every row a chosen and a rejected answer"):
        pairs.read([("line 1", TEXTS), ("line 2", {"prompt": "x", "chosen": "y"})], "d.jsonl")
    with pytest.raises(DataError, match=r"d\.jsonl has no preference pairs"):
        pairs.read([], "d.jsonl")


@pytest.mark.parametrize("row", ['{"prompt": "a", "chosen": "b", "rejected": "c"}', '{"chosen": [], "rejected": []}'])
def test_detected_by_the_columns(row: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(row + "\n")
    assert detection.problem_of(str(tmp_path / "d.jsonl")) == "preference"
