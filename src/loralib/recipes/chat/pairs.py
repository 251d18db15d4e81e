"""Rows of preference pairs: a prompt with two answers, `chosen`, which is preferred, and `rejected`, in these layouts:

    prompt, chosen, rejected     texts
    prompt, chosen, rejected     lists of messages, {"role", "content"} each; the prompt may be a text
    chosen, rejected             two conversations that begin alike; their common beginning is the prompt, and a column `prompt`
                                 only repeats it

A pair is a dictionary of plain values: `prompt`, a list of messages, `chosen` and `rejected`, a message of the assistant each,
and `tools` (None where there are none). In memory it is one string of JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...storage.json_text import as_json
from .. import records
from .conversations import check_order, checked_messages, checked_text, checked_tools

if TYPE_CHECKING:
    from datasets import Dataset

    from ..records import Record

Pair = Mapping[str, Any]
Messages = list[dict[str, Any]]

ANSWERS = ("chosen", "rejected")


def are_pairs(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are preference pairs.

    >>> are_pairs(["prompt", "chosen", "rejected"]), are_pairs(["prompt", "completion"])
    (True, False)
    """
    return set(ANSWERS) <= set(columns)


def read(rows: "Sequence[Record]", source: str) -> "Dataset":
    """The pairs of `rows`, as data with the columns `pair` (JSON) and `prompt`, by which rows are not split.

    rows: each with its place for messages. Raises `DataError`, with the row's place, for what cannot serve.
    """
    found = []
    for where, row in rows:
        records.check_names(where, ANSWERS, list(row), remedy="Give every row a chosen and a rejected answer.")
        pair = _pair(where, row)
        found.append({"pair": as_json(pair, ensure_ascii=False), "prompt": as_json(pair["prompt"], ensure_ascii=False)})
    return records.dataset(source, found, "preference pairs")


def of_rows(data: "Dataset") -> list[Pair]:
    """The pairs of data that `read` made."""
    return [json.loads(text) for text in data["pair"][:]]


def _pair(where: str, row: Mapping[str, Any]) -> Pair:
    if isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        raise DataError(f"{where}: chosen and rejected must both be texts, or both be lists of messages.")
    prompt = _prompt(where, row.get("prompt"))
    chosen, rejected = (_answers(f"{where}: {name}", row[name]) for name in ANSWERS)
    shared = _shared(chosen, rejected)
    if prompt and shared and not _repeats(prompt, chosen[:shared], isinstance(row["prompt"], str)):
        raise DataError(f"{where}: chosen and rejected begin with messages that are not the prompt; write the row again.")
    before = _with_system(chosen[:shared] or prompt, row.get("system"))
    if not before:
        raise DataError(f"{where} has no prompt; add one, or write chosen and rejected as lists of messages that begin alike.")
    found = {name: _one(where, name, rest[shared:], before) for name, rest in zip(ANSWERS, (chosen, rejected), strict=True)}
    if found["chosen"] == found["rejected"]:
        raise DataError(
            f"{where}: chosen and rejected are the same answer, of which nothing can be learned; leave the row out."
        )
    return {"prompt": before, **found, "tools": checked_tools(where, row)}


def _prompt(where: str, value: Any) -> Messages:
    """The messages of a prompt; none where there is none."""
    if value is None:
        return []
    if isinstance(value, list):
        return checked_messages(f"{where}: prompt", value)
    return [{"role": "user", "content": checked_text(f"{where}: prompt", value)}]


def _answers(where: str, value: Any) -> Messages:
    if value is None:
        raise DataError(f"{where} is missing; add the answer, or leave the row out.")
    if isinstance(value, list):
        return checked_messages(where, value)
    return [{"role": "assistant", "content": checked_text(where, value)}]


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages both begin with, before the last one."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _repeats(prompt: Messages, shared: Messages, is_text: bool) -> bool:
    """Whether the prompt is what the answers begin with; one that is a text, whether it is the last message of that."""
    return shared == prompt or (is_text and shared[-1:] == prompt)


def _with_system(messages: Messages, system: Any) -> Messages:
    """The messages after the text of a column `system`, where there is one and they have no such message."""
    if not isinstance(system, str) or not system.strip() or not messages or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _one(where: str, name: str, messages: Messages, before: Messages) -> dict[str, Any]:
    """The one message that an answer is."""
    if len(messages) != 1:
        raise DataError(
            f"{where}: {name} has {len(messages)} messages after the prompt; an answer is one message of the assistant. Write "
            "what comes before it in both answers, or as the prompt."
        )
    (answer,) = messages
    if answer["role"] != "assistant":
        raise DataError(f"{where}: {name} ends with a message of the {answer['role']}; an answer is of the assistant.")
    check_order(f"{where}: {name}", [*before, answer])
    return answer
