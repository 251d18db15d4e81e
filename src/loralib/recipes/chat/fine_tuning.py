"""Fine-tuning a causal language model on conversations: what of it is trained, and how it is judged."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import model_loader, records, sources
from ..nlg import prompts, text_generation
from ..options import TrainOptions
from ..plan import Plan
from . import packing, special_tokens, templates
from .conversations import of_rows, read
from .samples import watching

if TYPE_CHECKING:
    from datasets import Dataset


def read_rows(options: TrainOptions) -> "list[Dataset]":
    """The conversations of a run, sampled as asked. Raises `DataError` when they cannot be had."""
    return sources.read_rows(options, partial(read, layout=options.layout))


def plan(options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
    """Load the language model and prepare it, with the rows as it takes them."""
    model, tokenizer = text_generation.load(options)
    conversations, names = [of_rows(part) for part in data], [records.source(part) for part in data]
    template = templates.name_of(tokenizer, options.chat_template)
    if template != templates.PAPER or any("messages" in row for part in conversations for row in part):
        templates.set_template(tokenizer, options.chat_template)
    chat = templates.ChatFormat(tokenizer)
    encoded = [templates.encode_all(chat, part, options.length, name) for part, name in zip(conversations, names, strict=True)]
    for part in encoded:
        model_loader.check_tokens(model, tokenizer, (row["input_ids"] for row in part.rows))
    notes = [_learned(encoded[0].rows, data[0]["layout"][0])]
    for part, rows, name in zip(encoded, conversations, names, strict=True):
        messages = [row["messages"] for row in rows if "messages" in row]
        notes += [part.note(options.length, name), special_tokens.note(tokenizer, messages, name)]
    datasets: list[list[dict[str, Any]]] = [part.rows for part in encoded]
    collate: Any = prompts.collator(tokenizer)
    if options.packing:
        packing.check_kept_apart(model, datasets[0][0]["input_ids"])
        datasets = [packing.pack(rows, options.length) for rows in datasets]
        collate = packing.PackedCollator(tokenizer.pad_token_id)
        notes.append(f"packed {len(encoded[0].rows):,} rows into {len(datasets[0]):,} of at most {options.length:,} tokens")
    model.generation_config.eos_token_id = chat.end_ids()
    settled = text_generation.settled(model, options, template)
    if len(layouts := {part["layout"][0] for part in data}) == 1:
        settled |= {"layout": layouts.pop()}
    return Plan(
        model=model,
        tokenizer=tokenizer,
        labels=None,
        data=data,
        datasets=datasets,
        task_type="CAUSAL_LM",
        bound=text_generation.prepare(model, options),
        trainer=text_generation.trainer_arguments(model, collate, options.label_smoothing_factor),
        settled=settled,
        watch=watching(model, tokenizer, conversations[1], options.samples),
        notes=[*filter(None, notes), *text_generation.advice(model, options.updated(settled))],
    )


def _learned(rows: Sequence[Mapping[str, Sequence[int]]], layout: str) -> str:
    """What is learned of the rows to train on, for the user to see."""
    every = sum(len(row["labels"]) for row in rows)
    on = sum(label != prompts.IGNORED for row in rows for label in row["labels"])
    what = "all of the text is" if layout == "text" else "the assistant's messages are"
    return f"rows in the layout {layout} (--layout): {what} learned, {on:,} of {every:,} tokens"
