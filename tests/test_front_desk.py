"""The requests of `make chat`: the files are what a script writes and share no value, and how answers are scored."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # `examples` is not a part of what is installed

from examples import chat
from examples.front_desk import make

FILES = ("train", "test")
Row = dict[str, Any]


def rows(part: str) -> list[Row]:
    return [json.loads(line) for line in (chat.DESK / f"{part}.jsonl").read_text().splitlines()]


def pair(row: Row) -> tuple[str, Row]:
    request, answer = row["messages"]
    assert (request["role"], answer["role"]) == ("user", "assistant")
    return request["content"], json.loads(answer["content"])


def values(part: str) -> set[Any]:
    """The values of a file, and the first and last names."""
    found = [(key, value) for row in rows(part) for key, value in pair(row)[1].items() if key != "intent"]
    return {value for _, value in found} | {word for key, value in found if key == "name" for word in value.split()}


def phrasing(request: str, answer: Row) -> str:
    """The phrasing of a request: what it is with its values taken out."""
    found = [
        text
        for text in (*make.INTENTS[answer["intent"]].known, *make.INTENTS[answer["intent"]].new)
        if text.format(**answer).casefold() == request.casefold()
    ]
    assert len(found) == 1
    return found[0]


def test_the_script_writes_the_files(tmp_path: Path) -> None:
    assert make.main(tmp_path) == 0
    for part in FILES:
        assert (tmp_path / f"{part}.jsonl").read_bytes() == (chat.DESK / f"{part}.jsonl").read_bytes()


@pytest.mark.parametrize(("part", "each"), [("train", 66), ("test", 48)])
def test_every_intent_comes_as_often_with_its_keys_and_no_request_twice(part: str, each: int) -> None:
    pairs = [pair(row) for row in rows(part)]
    assert Counter(answer["intent"] for _, answer in pairs) == dict.fromkeys(make.INTENTS, each)
    assert all(list(answer) == ["intent", *make.INTENTS[answer["intent"]].keys] for _, answer in pairs)
    assert len({request for request, _ in pairs}) == len(pairs) == 5 * each


@pytest.mark.parametrize("part", FILES)
def test_every_value_stands_in_its_request(part: str) -> None:
    for request, answer in map(pair, rows(part)):
        assert all(str(answer[key]) in request for key in make.INTENTS[answer["intent"]].keys)
        assert request.isascii()


def test_no_held_out_value_was_trained_on() -> None:
    assert not values("train") & values("test")
    assert {"Tom", "Weber", 16} <= values("train")
    requests = " ".join(pair(row)[0] for row in rows("train"))
    assert not [value for value in values("test") if isinstance(value, str) and value in requests]


def test_half_of_the_held_out_requests_have_phrasings_that_were_not_trained_on() -> None:
    trained = {phrasing(*pair(row)) for row in rows("train")}
    held_out = {kind: {phrasing(*pair(row)) for row in rows("test") if row["phrasing"] == kind} for kind in ("known", "new")}
    assert trained == {text for intent in make.INTENTS.values() for text in intent.known}
    assert held_out["known"] <= trained
    assert not held_out["new"] & trained
    assert Counter(row["phrasing"] for row in rows("test")) == {"known": 120, "new": 120}


EXPECTED = '{"intent": "order", "quantity": 21, "item": "blue mugs", "name": "Ada Lind"}'


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (EXPECTED, (True, True, 1.0)),
        ('{"name":"Ada Lind", "item":"blue mugs", "quantity":21, "intent":"order"}', (True, True, 1.0)),
        (EXPECTED.replace("21", '"21"'), (True, False, 2 / 3)),  # a text is not a number
        (EXPECTED.replace("21", "21.0"), (True, False, 2 / 3)),
        (EXPECTED.replace("order", "booking"), (True, False, 1.0)),
        (EXPECTED.replace("blue mugs", "red mugs").replace("Ada Lind", "Ada"), (True, False, 1 / 3)),
        (EXPECTED.replace("}", ', "more": null}'), (True, False, 1.0)),
        ('{"intent": "order"}', (True, False, 0.0)),  # a memorised form
        (f"Sure! {EXPECTED}", (False, False, 0.0)),
        (f"```json\n{EXPECTED}\n```", (False, False, 0.0)),
        (EXPECTED[:-1], (False, False, 0.0)),
        (f"[{EXPECTED}]", (False, False, 0.0)),
        ("21", (False, False, 0.0)),
        ("", (False, False, 0.0)),
        ("[" * 100_000, (False, False, 0.0)),
    ],
)
def test_the_score_of_an_answer(answer: str, score: tuple[bool, bool, float]) -> None:
    found = chat.Score.of(answer, EXPECTED)
    assert (found.valid, found.exact) == score[:2]
    assert found.values == pytest.approx(score[2])


def test_the_expected_answers_score_all_and_those_to_other_requests_nothing() -> None:
    data = chat.read_requests(chat.DESK / "test.jsonl")
    expected = [answer for (answer,) in data["references"][:]]
    assert len(data) == 240
    assert chat.means(chat.scores(expected, data)) == {"exact": 1.0, "valid": 1.0, "values": 1.0}
    shifted = chat.means(chat.scores([*expected[1:], expected[0]], data))
    assert shifted["valid"] == 1.0
    assert shifted["exact"] == 0.0
    assert shifted["values"] < 0.02
