"""Preference pairs as tokens, in the form that answers are learned in (`templates`): `prompt_ids`, `chosen_ids` and
`rejected_ids`, the columns of TRL's collator, and all of them as `input_ids`, the row's length."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from ...errors import DataError
from ..nlg.prompts import IGNORED
from .pairs import ANSWERS, Pair
from .templates import ChatFormat, Encoded


def encode_all(chat: ChatFormat, pairs: Sequence[Pair], length: int, source: str) -> Encoded:
    """The rows of all pairs, prompt and answer not longer than `length` tokens. Raises `DataError` when none is left.

    Those are left out whose answers do not differ within that length.
    """
    rows, cut, left_out = [], 0, 0
    for number, pair in enumerate(pairs, 1):
        prompt, *answers = encode(chat, pair, f"{source}, row {number}")
        room = max(0, length - len(prompt))
        chosen, rejected = (ids[:room] for ids in answers)
        if chosen == rejected:
            left_out += 1
            continue
        cut += any(len(ids) > room for ids in answers)
        ids = [*prompt, *chosen, *prompt, *rejected]
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "input_ids": ids})
    if not rows:
        raise DataError(f"{source}: no row has answers that differ within {length} tokens; give a larger --max-length.")
    return Encoded(rows, cut, left_out, "whose answers do not differ before")


def encode(chat: ChatFormat, pair: Pair, where: str = "the pair") -> tuple[list[int], list[int], list[int]]:
    """The tokens of the prompt, of the chosen answer and of the rejected one, each up to the end of its turn.

    The prompt is what both begin with, before any token that is learned. Raises `DataError`.
    """
    chosen, rejected = (_answer(chat, pair, name, where) for name in ANSWERS)
    same = list(takewhile(lambda ids: ids[0] == ids[1], zip(chosen[0], rejected[0], strict=False)))
    begin = min(len(same), chosen[1], rejected[1])
    return chosen[0][:begin], chosen[0][begin:], rejected[0][begin:]


def _answer(chat: ChatFormat, pair: Pair, name: str, where: str) -> tuple[list[int], int]:
    """The tokens of the prompt and an answer, and where the answer begins."""
    messages: list[Any] = [*pair["prompt"], pair[name]]
    conversation = {"messages": messages, "tools": pair["tools"], "learned": len(pair["prompt"])}
    (row,) = chat.encode(conversation, f"{where}: {name}")
    learned = list(_learned(row["labels"]))
    return row["input_ids"][: learned[-1] + 1], learned[0]


def _learned(labels: Sequence[int]) -> Iterator[int]:
    return (i for i, label in enumerate(labels) if label != IGNORED)
