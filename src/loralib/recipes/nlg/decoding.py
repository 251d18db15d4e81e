"""Writing the text of an input by beam search, as the LoRA paper's scripts do, or by sampling, on transformers' `generate`.

A beam's score is Σ log p / length^length_penalty, its length counting the end. A text ends with what its form ends texts
with, or before one of the strings that stop it. No n-gram comes twice in what is *generated*; transformers' own rule counts the
prompt too, and would forbid to copy a long name from the input. The scripts decode every text to its greatest length before
they choose; transformers stops when no running beam promises more than the finished ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
)

from ...errors import DataError
from ...train import prefix
from .. import model_loader
from ..presets.nlg import Decoding
from .prompts import Form


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
    form: Form,
    contexts: Sequence[Any],
    decoding: Decoding,
    batch_size: int = 16,
    on_progress: Callable[[dict[int, str]], None] = lambda texts: None,
) -> list[str]:
    """The text of each of the `contexts`, which `form` makes prompts of; those of similar length are decoded together, the
    longest first.

    on_progress: called with the texts of each batch, by position.
    """
    prompt = [form.prompt_ids(context) for context in contexts]
    check_room(model, form, prompt, decoding.max_new_tokens)
    model_loader.check_tokens(model, form.tokenizer, prompt)
    order = sorted(range(len(prompt)), key=lambda i: -len(prompt[i]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found = decode_batch(model, form, [prompt[i] for i in chosen], decoding)
        batch = dict(zip(chosen, found, strict=True))
        on_progress(batch)
        texts |= batch
    return [texts[i] for i in range(len(contexts))]


def decode_batch(
    model: PreTrainedModel, form: Form, rows: Sequence[list[int]], decoding: Decoding, streamer: Any = None
) -> list[str]:
    """The texts with which the model continues `rows` of tokens, decoded together.

    streamer: one of transformers', which gets the tokens of a single row as they come.
    """
    width, tokenizer = max(len(row) for row in rows), form.tokenizer
    pad, ends = int(tokenizer.pad_token_id), form.end_ids()
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)  # (rows, width)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    rules = [NoRepeatedNGrams(decoding.no_repeat_ngram, width)] if decoding.no_repeat_ngram else []
    how = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty if decoding.beams > 1 else None,
        do_sample=decoding.temperature > 0,
        **({"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.temperature > 0 else {}),
        **({"stop_strings": list(decoding.stop)} if decoding.stop else {}),
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )
    with _without_own_defaults(model):
        generate: Any = model.generate
        more: dict[str, Any] = {"streamer": streamer} if streamer else {}
        more |= {"tokenizer": tokenizer} if decoding.stop else {}
        found = generate(ids, attention_mask=mask, generation_config=how, logits_processor=LogitsProcessorList(rules), **more)
    return [_cut(form, row.tolist(), ends, decoding.stop) for row in found[:, width:]]


@contextmanager
def _without_own_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own settings of generation, such as a repetition penalty."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _cut(form: Form, ids: list[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    """The text of the tokens before the first end, up to the first of the strings that stop it."""
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = form.text_of(ids[:end])
    return text[: min((at for word in stop if (at := text.find(word)) >= 0), default=len(text))].rstrip()


def room(model: PreTrainedModel) -> int | None:
    """The positions that the model has for tokens; None where that is not known."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions and positions - prefix.length_of(model)


def check_room(model: PreTrainedModel, form: Form, prompts: Iterable[Sequence[int]], new: int) -> None:
    """`DataError` for an input that leaves no room for `new` tokens. prompts: the tokens of each."""
    positions = room(model)
    if not positions:
        return
    for prompt in prompts:
        if len(prompt) + new > positions:
            shown = form.tokenizer.decode(list(prompt[:60]), skip_special_tokens=True)[:60]
            raise DataError(
                f"the input {shown!r} has {len(prompt)} tokens, and with {new} new ones it exceeds the {positions} that "
                "the model takes; give a smaller --max-new-tokens, or shorten it."
            )
