"""Training a language model on preference pairs by DPO (Rafailov et al. 2023, arXiv 2305.18290): what of it is trained, and how
it is judged.

The reference is the model as training begins: the base, or the base with the factors of --init-adapter.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ...architectures import DECODER_DROPOUTS
from ...errors import ConfigError
from ...layers import AdaptedLayer
from ...train.preference import PreferenceTrainer, arguments
from .. import model_loader, records, sources
from ..nlg import text_generation
from ..options import TrainOptions
from ..plan import Plan
from . import pair_tokens, pairs, special_tokens, templates
from .samples import watching

if TYPE_CHECKING:
    from datasets import Dataset


def read_rows(options: TrainOptions) -> "list[Dataset]":
    """The pairs of a run, sampled as asked. Raises `DataError` when they cannot be had."""
    return sources.read_rows(options, pairs.read)


def plan(options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
    """Load the language model and prepare it, with the pairs as it takes them."""
    model, tokenizer = text_generation.load(options)
    templates.set_template(tokenizer, options.chat_template)
    chat = templates.ChatFormat(tokenizer)
    names = [records.source(part) for part in data]
    rows = [pairs.of_rows(part) for part in data]
    encoded = [pair_tokens.encode_all(chat, part, options.length, name) for part, name in zip(rows, names, strict=True)]
    notes = [part.note(options.length, name) for part, name in zip(encoded, names, strict=True)]
    notes += [special_tokens.note(tokenizer, map(_messages, part), name) for part, name in zip(rows, names, strict=True)]
    for part in encoded:
        model_loader.check_tokens(model, tokenizer, (row["input_ids"] for row in part.rows))
    _switch_dropouts_off(model)
    bound = text_generation.prepare(model, options)
    _check_head(model)
    model.generation_config.eos_token_id = chat.end_ids()
    held_out = [_conversation(pair) for pair in rows[1]]
    return Plan(
        model=model,
        tokenizer=tokenizer,
        labels=None,
        data=data,
        datasets=[part.rows for part in encoded],
        task_type="CAUSAL_LM",
        bound=bound,
        trainer={"processing_class": tokenizer, "starts_trained": bool(options.init_adapter)},
        kind=PreferenceTrainer,
        arguments=partial(arguments, beta=options.beta, loss=options.dpo_loss),
        settled={"chat_template": templates.name_of(tokenizer, options.chat_template)},
        watch=watching(model, tokenizer, held_out, options.samples),
        notes=[*filter(None, notes)],
    )


def _messages(pair: pairs.Pair) -> list[dict[str, Any]]:
    """Those of the prompt and both answers."""
    return [*pair["prompt"], pair["chosen"], pair["rejected"]]


def _conversation(pair: pairs.Pair) -> dict[str, Any]:
    """The prompt with the answer that is preferred."""
    return {"messages": [*pair["prompt"], pair["chosen"]], "tools": pair["tools"], "learned": len(pair["prompt"])}


def _switch_dropouts_off(model: PreTrainedModel) -> None:
    """Set to 0 the dropouts that modules keep as numbers, under their config's names; TRL does so for modules `nn.Dropout`."""
    for module in model.modules():
        for name in DECODER_DROPOUTS:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def _check_head(model: PreTrainedModel) -> None:
    """`ConfigError` for an output embedding that the loss would not compute as the model does: it reads the plain weight."""
    head: Any = model.get_output_embeddings()
    if head is None:
        raise ConfigError(f"a {type(model).__name__} does not say which layer its output embedding is, which DPO reads.")
    if isinstance(head, AdaptedLayer):
        name = next(name for name, module in model.named_modules() if module is head)
        raise ConfigError(
            f"{name} is the output embedding, whose weight DPO reads without calling it: its LoRA would have no effect; "
            f"leave it out of --target-modules, or add --exclude-modules {name}."
        )
