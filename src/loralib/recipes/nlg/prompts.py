"""How an input and its text become tokens: in the form of the LoRA paper's scripts for GPT-2 (section 5.4),

    context <|endoftext|> " " completion <|endoftext|>

or, for a model that was made to chat, as a message and its answer by the chat template of its tokenizer (`chat.form`). The loss
is on the completion and its end alone. A row over the greatest length is cut at its end.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from ...errors import DataError

IGNORED = -100


class Form(Protocol):
    """How inputs and texts become tokens, and tokens texts again."""

    tokenizer: PreTrainedTokenizerBase

    def prompt_ids(self, context: Any) -> list[int]:
        """The tokens that a text is generated after. Raises `DataError` for a context that cannot serve."""
        ...

    def row(self, context: Any, completion: str) -> dict[str, list[int]]:
        """`input_ids` of both, and `labels`, which are `IGNORED` on the context."""
        ...

    def end_ids(self) -> list[int]:
        """The tokens that end a text."""
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """What was generated, as text."""
        ...


class PaperForm:
    """The form of the paper's scripts.

    The token between and at the end is the tokenizer's end of text, whatever it is called; a tokenizer that begins every text
    with a token of its own begins the context with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def prompt_ids(self, context: str) -> list[int]:
        """The context and the end of text."""
        ids: list[int] = self.tokenizer.encode(context)
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return [*ids, self.tokenizer.eos_token_id]

    def row(self, context: str, completion: str) -> dict[str, list[int]]:
        """The context, the end of text, the completion after a space, and the end of text."""
        prompt = self.prompt_ids(context)
        after = [*self.tokenizer.encode(" " + completion, add_special_tokens=False), self.tokenizer.eos_token_id]
        return {"input_ids": [*prompt, *after], "labels": [*[IGNORED] * len(prompt), *after]}

    def end_ids(self) -> list[int]:
        """The end of text, and the tokens that are line breaks alone (GPT-2's 198 and 628)."""
        before, *broken = (self.tokenizer.encode(text, add_special_tokens=False) for text in ("a", "a\n", "a\n\n"))
        breaks = [ids[-1] for ids in broken if ids[:-1] == before]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *breaks]))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text up to the first line break, without special tokens and surrounding space."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return next(iter(text.lstrip().splitlines()), "").rstrip()


def encode(form: Form, pairs: Iterable[tuple[str, str]], length: int, source: str) -> list[dict[str, Any]]:
    """A row for each pair of context and completion, none longer than `length` tokens."""
    rows = []
    for context, completion in pairs:
        row = form.row(context, completion)
        prompt = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
        if prompt >= length:
            raise DataError(
                f"{source}: the input {context[:60]!r} alone has {prompt} tokens of {length}, which leaves none for its "
                "text; give a larger --max-length, or leave the row out."
            )
        rows.append({name: ids[:length] for name, ids in row.items()})
    return rows


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Makes a batch of `encode`'s rows: tensors of shape (rows, tokens), padded as the tokenizer pads."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
