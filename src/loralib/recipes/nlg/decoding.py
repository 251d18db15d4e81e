"""Writing the text of an input by beam search, as the LoRA paper's scripts do, on transformers' `generate`.

A text's score is Σ log p / length^length_penalty, its length counting the end. A text ends with the end of text or a line
break. No n-gram comes twice in what is *generated*; transformers' own rule counts the prompt too, and would forbid to copy a
long name from the input. The scripts decode every text to its greatest length before they choose; transformers stops when no
running beam promises more than the finished ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...errors import DataError
from .. import model_loader
from ..presets.nlg import Decoding
from . import prompts


class NoRepeatedNGrams(LogitsProcessor):
    """Forbids n-grams that came before among the tokens after the first `prompt` ones."""

    def __init__(self, n: int, prompt: int):
        self.rule, self.prompt = NoRepeatNGramLogitsProcessor(n), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (rows, V) of the next token, -inf where it is forbidden. input_ids: (rows, tokens so far)."""
        allowed: Tensor = self.rule(input_ids[:, self.prompt :], scores)
        return allowed


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    decoding: Decoding,
    batch_size: int = 16,
    told: Callable[[dict[int, str]], None] = lambda texts: None,
) -> list[str]:
    """The text of each of the `contexts`; those of similar length are decoded together, the longest first.

    told: hears of the texts of each batch, by position.
    """
    check_room(model, tokenizer, contexts, decoding.max_new_tokens)
    prompt = [prompts.prompt_ids(tokenizer, context) for context in contexts]
    model_loader.check_tokens(model, tokenizer, prompt)
    order = sorted(range(len(prompt)), key=lambda i: -len(prompt[i]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found = decode_batch(model, tokenizer, [prompt[i] for i in chosen], decoding)
        batch = dict(zip(chosen, found, strict=True))
        told(batch)
        texts |= batch
    return [texts[i] for i in range(len(contexts))]


def decode_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], decoding: Decoding
) -> list[str]:
    """The texts with which the model continues `rows` of tokens, decoded together."""
    width = max(len(row) for row in rows)
    pad, ends = int(tokenizer.pad_token_id), prompts.end_ids(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)  # (rows, width)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    rules = [NoRepeatedNGrams(decoding.no_repeat_ngram, width)] if decoding.no_repeat_ngram else []
    how = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty if decoding.beams > 1 else None,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )
    with _own_defaults_aside(model):
        generate: Any = model.generate
        found = generate(ids, attention_mask=mask, generation_config=how, logits_processor=LogitsProcessorList(rules))
    return [_cut(tokenizer, row.tolist(), ends) for row in found[:, width:]]


@contextmanager
def _own_defaults_aside(model: PreTrainedModel) -> Iterator[None]:
    """Without what the model came with about generating, such as a repetition penalty, which would act beside what is asked."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _cut(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return prompts.text_of(tokenizer, ids[:end])


def check_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts: Sequence[str], new: int) -> None:
    """`DataError` for an input that leaves no room for `new` tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions:
        return
    for context in contexts:
        length = len(prompts.prompt_ids(tokenizer, context))
        if length + new > positions:
            raise DataError(
                f"the input {context[:60]!r} has {length} tokens, and with {new} new ones it exceeds the {positions} that "
                "the model takes; give a smaller --max-new-tokens, or shorten it."
            )
