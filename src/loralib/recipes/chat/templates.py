"""Conversations as tokens, by the chat template of the model's tokenizer, and which of the tokens are learned.

A model answers after `prompt_ids`, and what is learned is exactly how that goes on: for each answer i

    text of messages[: i + 1]  =  text of messages[:i] with the generation prompt  +  what is learned  [+ white space]

so any template serves that continues its own generation prompt, with or without marks of what is generated. The token that
ends a turn is learned, the white space behind it is not. Where a template writes earlier answers in another way once more
messages follow (as those do that drop a reasoning), or a tokenizer joins the end of a prompt with its answer, each answer
becomes a row of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ...errors import ConfigError, DataError
from ..nlg.prompts import IGNORED
from .conversations import Conversation

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ raise_exception('messages of a ' + message['role'] + ' have no place in it') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PAPER, OWN = "none", "tokenizer"  # words for --chat-template: no template, and the tokenizer's own
NAMED: Mapping[str, str] = MappingProxyType({"chatml": _CHATML, "plain": _PLAIN})  # what --chat-template knows by name


@dataclass(frozen=True)
class Encoded:
    """What a model learns from: rows of `input_ids` and `labels`, which are `IGNORED` where nothing is learned.

    cut: how many rows were longer than allowed and lost their end. left_out: how many lost all that is learned, and are not
    among the rows; lost: how that is said.
    """

    rows: list[dict[str, list[int]]]
    cut: int
    left_out: int
    lost: str = "whose answers begin later"

    def note(self, length: int, source: str) -> str:
        """What to say of rows that were too long; "" where there are none."""
        if not self.cut and not self.left_out:
            return ""
        lost = f", and {self.left_out:,} left out, {self.lost}" if self.left_out else ""
        every = len(self.rows) + self.left_out
        return f"{source}: {self.cut:,} of {every:,} rows cut at {length:,} tokens{lost} (--max-length)"


class ChatFormat:
    """How conversations become tokens.

    tokenizer: with a chat template. It is the one that is saved with what is trained, so `set_template` changes it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} is a slow one, which does not say where its tokens stand; "
                "save it with a tokenizer.json."
            )
        self.tokenizer = tokenizer

    def render(self, conversation: Conversation, upto: int, *, prompt: bool = False, where: str = "the conversation") -> str:
        """The text of the first `upto` messages; prompt: with what an answer begins with. Raises `DataError`."""
        tools = conversation.get("tools")
        self._check_tools(conversation, where)
        try:
            text = self.tokenizer.apply_chat_template(
                list(conversation["messages"][:upto]), tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{where}: the chat template of {self.tokenizer.name_or_path!r} refuses its messages ({reason}); change them, "
                "or give another by --chat-template."
            ) from None
        return str(text)

    def _check_tools(self, conversation: Conversation, where: str) -> None:
        """`DataError` for tools that the template would pass over."""
        template = str(self.tokenizer.chat_template)
        calls = any(message["role"] == "tool" or message.get("tool_calls") for message in conversation["messages"])
        for present, word in ((bool(conversation.get("tools")), "tools"), (calls, "tool")):
            if present and word not in template:
                raise DataError(
                    f"{where} has {'tools' if word == 'tools' else 'tool calls'}, which the chat template of "
                    f"{self.tokenizer.name_or_path!r} does not support; leave such rows out, or give another by "
                    "--chat-template."
                )

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int]:
        """The tokens after which the model answers. Raises `DataError` when the template refuses the messages."""
        conversation = {"messages": messages, "tools": tools}
        return self._ids(self.render(conversation, len(messages), prompt=True))

    def encode(self, conversation: Conversation, where: str = "the conversation") -> list[dict[str, list[int]]]:
        """The rows of a conversation, whole. Raises `DataError`."""
        if (text := conversation.get("text")) is not None:
            ids = self.tokenizer(text)["input_ids"]
            ids = ids if ids[-1:] == [self.tokenizer.eos_token_id] else [*ids, self.tokenizer.eos_token_id]
            return [{"input_ids": ids, "labels": [IGNORED, *ids[1:]]}]
        spans = self._spans(conversation, where)
        *earlier, (text, _) = spans
        if all(text.startswith(before) for before, _ in earlier):
            ids, at = self._tokens(text)
            if all(self._begins(ids, text[:start]) for _, (start, _) in spans):
                return [self._row(ids, at, [span for _, span in spans])]
        return [self._row_of_one(before, span) for before, span in spans]

    def _spans(self, conversation: Conversation, where: str) -> list[tuple[str, tuple[int, int]]]:
        """For each answer that is learned, the text up to it and the part of that text that it is."""
        found = []
        for i, message in enumerate(conversation["messages"]):
            if message["role"] != "assistant" or i < conversation.get("learned", 0):
                continue
            prompt = self.render(conversation, i, prompt=True, where=where)
            text = self.render(conversation, i + 1, where=where)
            if not text.startswith(prompt):
                raise DataError(
                    f"{where}: the chat template of {self.tokenizer.name_or_path!r} lets an answer begin with {prompt[-40:]!r} "
                    "and writes it in another way, so what is learned would not be what is generated; give another by "
                    "--chat-template."
                )
            if not text[len(prompt) :].strip():
                raise DataError(
                    f"{where}: the chat template of {self.tokenizer.name_or_path!r} leaves the answer out; give another by "
                    "--chat-template."
                )
            found.append((text, (len(prompt), len(text.rstrip()))))
        return found

    def _begins(self, ids: Sequence[int], prompt: str) -> bool:
        """Whether the tokens of a text begin with those of its prompt: not where a tokenizer joins the prompt's end with the
        answer."""
        first = self._ids(prompt)
        return ids[: len(first)] == first

    def _row_of_one(self, text: str, span: tuple[int, int]) -> dict[str, list[int]]:
        """The row of one answer, whose prompt and answer become tokens apart where they would be joined."""
        start, _ = span
        ids, at = self._tokens(text)
        if not self._begins(ids, text[:start]):
            (before, at), (after, then) = self._tokens(text[:start]), self._tokens(text[start:], start)
            ids, at = [*before, *after], [*at, *then]
        return self._row(ids, at, [span])

    def _row(self, ids: list[int], at: Sequence[int], spans: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
        """The row of these tokens; those that begin in one of the `spans` are learned. at: where each begins in its text."""
        learned = [any(start <= place < end for start, end in spans) for place in at]
        if ids[-1] not in self.tokenizer.all_special_ids and not self._ends(ids, learned):
            ids, learned = [*ids, self.tokenizer.eos_token_id], [*learned, True]
        return {"input_ids": ids, "labels": [token if on else IGNORED for token, on in zip(ids, learned, strict=True)]}

    def _tokens(self, text: str, start: int = 0) -> tuple[list[int], list[int]]:
        """The tokens of a text, and where each begins, counted from `start`."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [start + at for at, _ in found["offset_mapping"]]

    def _ends(self, ids: Sequence[int], learned: Sequence[bool]) -> bool:
        """Whether the last learned token ends a turn: a special token."""
        last = max(i for i, on in enumerate(learned) if on)
        return ids[last] in self.tokenizer.all_special_ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the end of text, and the token that the template ends a turn with."""
        if not self.tokenizer.chat_template:
            return [self.tokenizer.eos_token_id]
        turn = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "learned": 0}
        (row,) = self.encode(turn)
        return list(dict.fromkeys([self.tokenizer.eos_token_id, row["labels"][max(_learned(row))]]))


def _learned(row: Mapping[str, Sequence[int]]) -> list[int]:
    return [i for i, label in enumerate(row["labels"]) if label != IGNORED]


def encode_all(chat: ChatFormat, conversations: Sequence[Conversation], length: int, source: str) -> Encoded:
    """The rows of all conversations, none longer than `length` tokens. Raises `DataError` when none is left."""
    rows, cut, left_out = [], 0, 0
    for number, conversation in enumerate(conversations, 1):
        for row in chat.encode(conversation, f"{source}, row {number}"):
            short = {name: ids[:length] for name, ids in row.items()}
            if not _learned(short):
                left_out += 1
                continue
            cut += len(row["input_ids"]) > length
            rows.append(short)
    if not rows:
        raise DataError(f"{source}: no row has an answer within {length} tokens; give a larger --max-length.")
    return Encoded(rows, cut, left_out)


def name_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The word for the template that is used: the one that is asked for, or else the tokenizer's own, or none."""
    return template or (OWN if tokenizer.chat_template else PAPER)


def set_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Give the tokenizer a chat template: one of `NAMED`, or a file (.jinja). None and "tokenizer" keep its own, which it must
    have."""
    if template in (None, OWN):
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; name one: --chat-template plain, chatml, "
                "or a .jinja file."
            )
        return
    assert template is not None
    if template not in NAMED and not Path(template).is_file():
        raise ConfigError(f"chat_template={template!r}: must be {OWN}, {', '.join(NAMED)}, or the path of a .jinja file.")
    tokenizer.chat_template = NAMED.get(template) or _template_in(Path(template))


def _template_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a chat template: it is not UTF-8 text; give a .jinja file.") from None
