"""Preference pairs as tokens, in the form that answers are learned in (`templates`): `prompt_ids`, `chosen_ids` and
`rejected_ids`, the columns of TRL's collator, and all of them as `input_ids`, the row's length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ...errors import DataError
from ..nlg.prompts import IGNORED
from .pairs import ANSWERS, Pair
from .templates import ChatFormat

Row = dict[str, list[int]]


@dataclass(frozen=True)
class EncodedPairs:
    """Rows as TRL's collator takes them.

    cut: how many rows have an answer that was longer than allowed and lost its end. left_out: how many have no answer within
    that length, or answers that differ behind it only, and are not among the rows.
    """

    rows: list[Row]
    cut: int
    left_out: int

    def note(self, length: int, source: str) -> str:
        """What to say of rows that were too long; "" where there are none."""
        if not self.cut and not self.left_out:
            return ""
        lost = f", and {self.left_out:,} left out, whose answers do not differ before" if self.left_out else ""
        every = len(self.rows) + self.left_out
        return f"{source}: {self.cut:,} of {every:,} rows cut at {length:,} tokens{lost} (--max-length)"


def encode_all(chat: ChatFormat, pairs: Sequence[Pair], length: int, source: str) -> EncodedPairs:
    """The rows of all pairs, prompt and answer not longer than `length` tokens. Raises `DataError` when none is left."""
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
    return EncodedPairs(rows, cut, left_out)


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
