"""Every layout gives the same conversation, and what cannot serve is one sentence with the row's place."""

import json
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.chat import conversations
from loralib.recipes.chat.conversations import layout_of, of_rows, read

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SAME = [
    {"messages": [USER, ANSWER]},
    {"messages": [USER | {"content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]}, ANSWER]},
    {"messages": [USER | {"name": None, "tool_calls": None}, ANSWER | {"tool_calls": []}]},
    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    {"conversations": [USER, ANSWER]},
    {"instruction": "2 + 2?", "input": "", "output": "4"},
    {"instruction": "2 + 2?", "output": "4"},
    {"prompt": "2 + 2?", "completion": "4"},
]


def rows(*values: dict[str, Any]) -> list[Any]:
    return [(f"a.jsonl, line {number}", value) for number, value in enumerate(values, 1)]


def one(row: dict[str, Any], layout: str | None = None) -> Any:
    (found,) = of_rows(read(rows(row), "a.jsonl", layout))
    return found


@pytest.mark.parametrize("row", SAME)
def test_layouts_say_the_same(row: dict[str, Any]) -> None:
    assert one(row) == {"messages": [USER, ANSWER], "tools": None, "learned": 0}


def test_parts_that_only_some_layouts_have() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert one({"instruction": "Add.", "input": "2, 2", "output": "4"})["messages"][0]["content"] == "Add.\n\n2, 2"
    for row in (
        {"system": "Be brief.", "instruction": "2 + 2?", "output": "4"},
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": [{"role": "developer", "content": "Be brief."}, USER, ANSWER]},
    ):
        assert one(row)["messages"] == [system, USER, ANSWER]
    assert one({"text": "Once upon a time."}) == {"text": "Once upon a time."}


def test_what_is_learned_of_a_prompt_with_answers() -> None:
    """The answers in a prompt are context."""
    found = one({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert found["learned"] == 3
    assert len(found["messages"]) == 4


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert one({"messages": [USER, ANSWER, USER]})["messages"] == [USER, ANSWER]


def test_tools() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
    row = {"messages": [USER, call, {"role": "tool", "content": "4", "name": "add"}, ANSWER]}
    for written in (tools, json.dumps(tools)):
        found = one(row | {"tools": written})
        assert found["tools"] == tools
        assert found["messages"][1] == call


def test_keys_that_rows_lack_are_not_filled_in() -> None:
    """Tables fill the keys of all rows in; templates would see them."""
    both = rows({"messages": [USER, ANSWER | {"reasoning_content": "Two and two."}]}, {"messages": [USER, ANSWER]})
    assert of_rows(read(both, "a"))[1]["messages"] == [USER, ANSWER]


def test_prompts_keep_equal_questions_together() -> None:
    data = read(rows({"prompt": "a", "completion": "1"}, {"prompt": "a", "completion": "2"}), "x")
    assert len(set(data["prompt"][:])) == 1


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        (["messages", "id"], "messages"),
        (["conversations"], "conversations"),
        (["instruction", "input", "output"], "instruction"),
        (["prompt", "completion"], "prompt"),
        (["text"], "text"),
        (["text", "label"], None),
        (["context", "completion"], None),
        ([], None),
    ],
)
def test_detection(columns: list[str], layout: str | None) -> None:
    assert layout_of(columns) == layout
    assert layout is None or layout in conversations.LAYOUTS


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"mesages": [USER, ANSWER]}, "has the columns 'mesages'; conversations come in one of: messages;"),
        ({"messages": []}, "line 1: messages is empty"),
        ({"messages": "hello"}, "messages is not a list of objects"),
        ({"messages": [USER, "4"]}, "messages is not a list of objects"),
        ({"messages": [USER]}, "has no message of the assistant to learn"),
        ({"messages": [ANSWER, USER]}, "message 1 is of the assistant, first"),
        ({"messages": [USER, USER, ANSWER]}, "message 2 is of the user, after one of the user"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ANSWER]}, "message 2 is of the system"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]}, "message 2 is of the tool"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, "messages 2 has the role 'bot'; known roles are"),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "has the key 'weight', which would be ignored"),
        ({"messages": [USER, {"role": "assistant", "contents": "4"}]}, "Nearest: content"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages 2: content is empty"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "messages 2: content is int, not a text"),
        ({"messages": [USER | {"content": [{"type": "image", "url": "x"}]}, ANSWER]}, "of the type 'image'"),
        ({"messages": [USER | {"tool_calls": [{}]}, ANSWER]}, "calls tools, and is not of the assistant"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "tools is not JSON"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "is from 'alien'; known senders are"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "has no key 'value'"),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be texts, or both be lists"),
        ({"prompt": [USER], "completion": [USER]}, "message 2 is of the user"),
        ({"instruction": "", "output": "x"}, "instruction is empty"),
        ({"text": None}, "text is NoneType, not a text"),
    ],
)
def test_bad_rows(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        read(rows(row), "a.jsonl")
    assert sentence in str(caught.value)
    assert "a.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_change_their_columns() -> None:
    with pytest.raises(DataError, match="line 2 has no column 'completion'"):
        read(rows({"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}), "a.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        read([], "a.jsonl")


def test_a_run_on_plain_text_goes_on_from_beginnings() -> None:
    data = conversations.inputs(rows({"text": "Once upon"}, {"text": "a time", "id": 2}), "a.jsonl", "text")
    assert data["context"][:] == ["Once upon", "a time"]
    assert data["references"][:] == [[], []]
    assert "messages" not in data.column_names
    for row, sentence in (
        ({"messages": [USER]}, "no column 'text'; .* a run on plain text goes on"),
        ({"text": " "}, "is empty"),
    ):
        with pytest.raises(DataError, match=sentence):
            conversations.inputs(rows(row), "a.jsonl", "text")
    with pytest.raises(DataError, match="is plain text, which asks nothing"):
        conversations.inputs(rows({"text": "Once upon"}), "a.jsonl", "messages")


def test_inputs_with_tools_are_refused() -> None:
    row = {"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}]}
    with pytest.raises(DataError, match="line 1 has tools, which are not given to the model here"):
        conversations.inputs([("line 1", row)], "the file")
