"""How an input and its text become tokens, as in the LoRA paper's scripts for GPT-2 (section 5.4):

    context <|endoftext|> " " completion <|endoftext|>

The loss is on the completion and the end alone. The token between and at the end is the tokenizer's end of text, whatever it is
called; a tokenizer that begins every text with a token of its own begins the context with it. A row over the greatest length is
cut at its end.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from ...errors import DataError

IGNORED = -100


def prompt_ids(tokenizer: PreTrainedTokenizerBase, context: str) -> list[int]:
    """The tokens that a text is generated after: the context and the end of text."""
    ids: list[int] = tokenizer.encode(context)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return [*ids, tokenizer.eos_token_id]


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: str) -> list[int]:
    """The tokens that are to be generated: the completion after a space, and the end of text."""
    return [*tokenizer.encode(" " + completion, add_special_tokens=False), tokenizer.eos_token_id]


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], length: int, source: str
) -> list[dict[str, Any]]:
    """A row for each pair of context and completion: `input_ids` and `labels`, which are `IGNORED` on the context."""
    rows = []
    for context, completion in pairs:
        prompt = prompt_ids(tokenizer, context)
        if len(prompt) >= length:
            raise DataError(
                f"{source}: the input {context[:60]!r} alone has {len(prompt)} tokens of {length}, which leaves none for its "
                "text; give a larger --max-length, or leave the row out."
            )
        ids = [*prompt, *completion_ids(tokenizer, completion)][:length]
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]})
    return rows


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the end of text, and the tokens that are line breaks alone (GPT-2's 198 and 628)."""
    before, *broken = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", "a\n", "a\n\n"))
    breaks = [ids[-1] for ids in broken if ids[:-1] == before]
    return list(dict.fromkeys([tokenizer.eos_token_id, *breaks]))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What was generated, as text: up to the first line break, without special tokens and surrounding space."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return next(iter(text.lstrip().splitlines()), "").rstrip()


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Makes a batch of `encode`'s rows: tensors of shape (rows, tokens), padded as the tokenizer pads."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
