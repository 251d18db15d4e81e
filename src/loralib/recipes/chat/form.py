"""Inputs and texts as messages and answers, by the chat template of the model's tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..nlg.prompts import IGNORED, Form, PaperForm
from . import templates
from .templates import PAPER


class ChatForm:
    """An input is a message of the user, or a list of messages; its text is the answer, of as many lines as it has."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self._format = tokenizer, templates.ChatFormat(tokenizer)

    def prompt_ids(self, context: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens that an answer is generated after."""
        return self._format.prompt_ids(_messages(context))

    def row(self, context: str | Sequence[Mapping[str, Any]], completion: str) -> dict[str, list[int]]:
        """The message and its answer, of which the answer and its end are learned."""
        before = _messages(context)
        messages = [*before, {"role": "assistant", "content": completion}]
        (row,) = self._format.encode({"messages": messages, "tools": None, "learned": len(before)})
        return row

    def end_ids(self) -> list[int]:
        """The end of text, and what the template ends a turn with."""
        return self._format.end_ids()

    def text_of(self, ids: Sequence[int]) -> str:
        """The answer without special tokens and surrounding space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


class TextForm:
    """An input is the beginning of a text, which goes on: what a run on plain text learned."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def prompt_ids(self, context: str) -> list[int]:
        """The tokens of the beginning."""
        ids: list[int] = self.tokenizer.encode(context)
        ends = len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends else ids or [int(self.tokenizer.eos_token_id)]

    def row(self, context: str, completion: str) -> dict[str, list[int]]:
        """The whole text, of which all after the beginning is learned."""
        prompt = self.prompt_ids(context)
        after = [*self.tokenizer.encode(completion, add_special_tokens=False), self.tokenizer.eos_token_id]
        return {"input_ids": [*prompt, *after], "labels": [*[IGNORED] * len(prompt), *after]}

    def end_ids(self) -> list[int]:
        """The end of text."""
        return [int(self.tokenizer.eos_token_id)]

    def text_of(self, ids: Sequence[int]) -> str:
        """What was generated, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).rstrip()


def _messages(context: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": context}] if isinstance(context, str) else list(context)


def resolve(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> tuple[Form, str]:
    """The form for data of inputs and texts, and the word that names it: the tokenizer's own chat template where it has one and
    nothing else is asked for. Raises `ConfigError` for a template that is not there."""
    name = templates.name_of(tokenizer, chat_template)
    if name == PAPER:
        return PaperForm(tokenizer), name
    templates.set_template(tokenizer, name)
    return ChatForm(tokenizer), name


def of_run(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, layout: str | None = None) -> Form:
    """The form of a run, whose tokenizer has the template that it was trained with; a run that names none had none.

    layout: of a run on conversations.
    """
    if layout == "text":
        return TextForm(tokenizer)
    return PaperForm(tokenizer) if chat_template in (None, PAPER) else ChatForm(tokenizer)
