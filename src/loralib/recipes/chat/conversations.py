"""Rows of chat and instruction data as conversations, in the layouts that people have:

    messages                         {"role", "content"} a message, and a column `tools` where the model may call some
    conversations                    ShareGPT's: {"from", "value"} a message
    instruction, [input], output     Alpaca's
    prompt, completion               two texts, or two lists of messages
    text                             plain text, learned whole

A conversation is a dictionary of plain values: `messages`, `tools` (None where there are none) and `learned`, the place of the
first message whose answer is learned, or `text` alone. In memory it is one string of JSON, since the table's own types would
fill the keys that a message lacks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...patterns import nearest_of
from ...storage.json_text import as_json
from .. import records

if TYPE_CHECKING:
    from datasets import Dataset

    from ..records import Record

Conversation = Mapping[str, Any]
Row = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_SENDERS = {  # ShareGPT's names of the roles
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_OF_A_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_SAME_COLUMNS = "Give every row the same columns, or say by --layout which layout they have."
_SYNONYMS = {"developer": "system"}


def _messages(where: str, row: Row) -> Conversation:
    return _conversation(where, checked_messages(f"{where}: messages", row["messages"]), tools=checked_tools(where, row))


def _sharegpt(where: str, row: Row) -> Conversation:
    turns = _list_of_objects(f"{where}: conversations", row["conversations"])
    if all("role" in turn for turn in turns):  # the other layout under this name
        return _messages(where, {**row, "messages": turns})
    messages = []
    for number, turn in enumerate(turns, 1):
        place = f"{where}: conversations {number}"
        records.check_names(place, ("from", "value"), list(turn), "key", "Write the message again.")
        _refuse_unknown(place, turn, ("from", "value"))
        if turn["from"] not in _SENDERS:
            raise DataError(f"{place} is from {turn['from']!r:.60}; known senders are {', '.join(_SENDERS)}.")
        messages.append({"role": _SENDERS[turn["from"]], "content": turn["value"]})
    if isinstance(system := row.get("system"), str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return _conversation(where, checked_messages(f"{where}: conversations", messages), tools=checked_tools(where, row))


def _alpaca(where: str, row: Row) -> Conversation:
    given = [checked_text(f"{where}: instruction", row["instruction"])]
    if row.get("input"):
        given.append(checked_text(f"{where}: input", row["input"]))
    system = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) and row["system"] else []
    return _conversation(where, [*system, *_pair("\n\n".join(given), checked_text(f"{where}: output", row["output"]))])


def _prompt_completion(where: str, row: Row) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(f"{where}: prompt and completion must both be texts, or both be lists of messages.")
    if not isinstance(prompt, list):
        return _conversation(
            where, _pair(checked_text(f"{where}: prompt", prompt), checked_text(f"{where}: completion", completion))
        )
    before = checked_messages(f"{where}: prompt", prompt)
    messages = [*before, *checked_messages(f"{where}: completion", completion)]
    return _conversation(where, messages, tools=checked_tools(where, row), learned=len(before))


def _plain_text(where: str, row: Row) -> Conversation:
    return {"text": checked_text(f"{where}: text", row["text"])}


LAYOUTS: Mapping[str, tuple[Sequence[str], Callable[[str, Row], Conversation]]] = MappingProxyType(
    {
        "messages": (("messages",), _messages),
        "conversations": (("conversations",), _sharegpt),
        "instruction": (("instruction", "output"), _alpaca),
        "prompt": (("prompt", "completion"), _prompt_completion),
        "text": (("text",), _plain_text),
    }
)


def layout_of(columns: Sequence[str]) -> str | None:
    """The layout of rows with these columns; None when it is none of `LAYOUTS`. Texts with labels are to be classified.

    >>> layout_of(["id", "instruction", "input", "output"]), layout_of(["text", "label"])
    ('instruction', None)
    """
    found = next((name for name, (needed, _) in LAYOUTS.items() if set(needed) <= set(columns)), None)
    return None if found == "text" and "label" in columns else found


def read(rows: "Sequence[Record]", source: str, layout: str | None = None) -> "Dataset":
    """The conversations of `rows`, as data with the columns `conversation` (JSON), `prompt`, what comes before an answer, and
    `layout`, which is the same in all.

    rows: each with its place for messages. layout: which it is (by default what their columns say).
    Raises `DataError`, with the row's place, for what cannot serve.
    """
    if not rows:
        raise DataError(f"{source} has no rows; give a file with at least one conversation.")
    columns = list(rows[0][1])
    name = layout or layout_of(columns)
    if name is None:
        known = "; ".join(", ".join(needed) for needed, _ in LAYOUTS.values())
        raise DataError(f"{source} has the columns {records.listed(columns)}; conversations come in one of: {known}.")
    needed, convert = LAYOUTS[name]
    found = []
    for where, row in rows:
        records.check_names(where, needed, list(row), remedy=_SAME_COLUMNS)
        conversation = convert(where, row)
        text = as_json(conversation, ensure_ascii=False)
        found.append({"conversation": text, "prompt": _prompt_of(conversation), "layout": name})
    return records.dataset(source, found, "conversations")


def inputs(rows: "Sequence[Record]", source: str, layout: str | None = None) -> "Dataset":
    """What comes before the last answer of each row, to be answered again; data with the columns `messages` (JSON), `context`,
    its last message, `references`, the answer in the row where there is one, and `category`, which is None.

    With the layout `text`, data of beginnings to go on from: `context`, without `messages` and references.
    Errors as `read`, but a row of messages or a prompt may lack the answer.
    """
    found: list[dict[str, Any]] = []
    for where, row in rows:
        if layout == "text":
            records.check_names(where, LAYOUTS["text"][0], list(row), remedy="a run on plain text goes on from one.")
            found.append({"context": checked_text(f"{where}: text", row["text"]), "references": list[str]()})
            continue
        messages, answers = _question(where, row, source, layout)
        text = str(messages[-1]["content"])
        found.append({"messages": as_json(messages, ensure_ascii=False), "context": text, "references": answers})
    return records.dataset(source, [row | {"category": None} for row in found], "messages to answer")


def _question(where: str, row: Row, source: str, layout: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages before the last answer, and that answer, if there is one."""
    if row.get("tools"):
        raise DataError(f"{where} has tools, which are not given to the model here; leave such rows out.")
    if set(row) & {"messages"}:
        messages = checked_messages(f"{where}: messages", row["messages"])
        check_order(where, messages)
    elif "prompt" in row and isinstance(row["prompt"], str):
        messages = [{"role": "user", "content": checked_text(f"{where}: prompt", row["prompt"])}]
        messages += [{"role": "assistant", "content": row["completion"]}] if row.get("completion") else []
    else:
        if layout_of(list(row)) == "text":
            raise DataError(f"{where} is plain text, which asks nothing; give rows with messages.")
        (conversation,) = of_rows(read([(where, row)], source, layout))
        messages = conversation["messages"]
    if messages[-1]["role"] != "assistant":
        return messages, []
    return messages[:-1], [str(messages[-1]["content"])]


def of_rows(data: "Dataset") -> list[Conversation]:
    """The conversations of data that `read` made."""
    return [json.loads(text) for text in data["conversation"][:]]


def _prompt_of(conversation: Conversation) -> str:
    """What comes before the first answer that is learned: rows that are equal in it are not split."""
    messages = conversation.get("messages")
    if messages is None:
        return str(conversation["text"])
    first = next(i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= conversation["learned"])
    return as_json(messages[:first], ensure_ascii=False)


def _pair(prompt: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _conversation(where: str, messages: list[dict[str, Any]], tools: list[Any] | None = None, learned: int = 0) -> Conversation:
    """The conversation up to its last answer, once its roles are found to be in order."""
    check_order(where, messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= learned]
    if not answers:
        raise DataError(f"{where} has no message of the assistant to learn; add the answer, or leave the row out.")
    return {"messages": messages[: answers[-1] + 1], "tools": tools, "learned": learned}


def check_order(where: str, messages: Sequence[Mapping[str, Any]]) -> None:
    """`DataError` for roles in an order that no conversation has."""
    may_follow = {
        None: ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user", "tool"),
        "tool": ("tool", "assistant", "user"),
    }
    before = None
    for number, message in enumerate(messages, 1):
        if message["role"] not in may_follow[before]:
            after = f"after one of the {before}" if before else "first"
            raise DataError(f"{where}: message {number} is of the {message['role']}, {after}; join, move or remove messages.")
        before = message["role"]


def checked_messages(where: str, value: Any) -> list[dict[str, Any]]:
    """The messages of a list, each with the keys that say something. Raises `DataError`."""
    return [_message(f"{where} {number}", message) for number, message in enumerate(_list_of_objects(where, value), 1)]


def _message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """One message with the keys that say something."""
    _refuse_unknown(where, message, _OF_A_MESSAGE)
    role = _SYNONYMS.get(str(message.get("role")), message.get("role"))
    if role not in ROLES:
        raise DataError(f"{where} has the role {role!r:.60}; known roles are {', '.join(ROLES)}.")
    kept = {name: message[name] for name in _OF_A_MESSAGE if message.get(name) is not None} | {"role": role}
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
        kept["content"] = _content(where, message.get("content"), may_be_empty=role == "system")
    elif role != "assistant":
        raise DataError(f"{where} calls tools, and is not of the assistant.")
    else:
        kept["content"] = _content(where, kept.get("content") or "", may_be_empty=True)
        kept["tool_calls"] = _list_of_objects(f"{where}: tool_calls", kept["tool_calls"])
    return kept


def _content(where: str, value: Any, may_be_empty: bool) -> str:
    """The text of a message, whose parts may be given apart."""
    if isinstance(value, list):
        parts = _list_of_objects(f"{where}: content", value)
        if other := next((part.get("type") for part in parts if part.get("type") != "text"), None):
            raise DataError(f"{where} has a part of the type {other!r:.60}; only text can be learned here.")
        value = "".join(checked_text(f"{where}: content", part.get("text")) for part in parts)
    if may_be_empty and value in ("", None):
        return ""
    return checked_text(f"{where}: content", value)


def checked_tools(where: str, row: Row) -> list[Any] | None:
    """The tools that the model may call: a list, or one written as JSON."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: tools is not JSON ({error}); write a list of tools.") from None
    return _list_of_objects(f"{where}: tools", tools) if tools else None


def _refuse_unknown(where: str, message: Mapping[str, Any], known: Sequence[str]) -> None:
    """`DataError` for a key with a value that would be passed over."""
    if unknown := [name for name, value in message.items() if name not in known and value is not None]:
        raise DataError(
            f"{where} has the key {unknown[0]!r:.60}, which would be ignored; a message has {', '.join(known)}. "
            f"Nearest: {nearest_of(unknown[0], known)}. Rename or remove it."
        )


def _list_of_objects(where: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where} is not a list of objects; write the row again.")
    if not value:
        raise DataError(f"{where} is empty; write at least one, or leave the row out.")
    return value


def checked_text(where: str, value: Any) -> str:
    """A text that is not blank. Raises `DataError` for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{where} is {type(value).__name__}, not a text; write the row again.")
    if not value.strip():
        raise DataError(f"{where} is empty; give it a text, or leave the row out.")
    return value
