"""Encoders for classification: loading them, and knowing their parts."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..errors import ConfigError, RunError

QUERY_VALUE = {
    "albert": ["query", "value"],
    "bert": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "mpnet": ["attn.q", "attn.v"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
}


@dataclass(frozen=True)
class Encoder:
    """A model with a classification head, its tokenizer, and the names of the modules that its checkpoint did not fill or
    that lie outside the pretrained body: the head."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: tuple[str, ...]


def load_encoder(name: str, labels: list[str] | None) -> Encoder:
    """The pretrained encoder `name` with a new head: one output a label, or a single one (regression) for None.

    Raises `RunError` when the model cannot be had, offline included.
    """
    outputs: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if labels is not None:
        outputs = {
            "num_labels": len(labels),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the new head is no news
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(name, **outputs)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"model {name!r} cannot be loaded; give a local folder, or a name on the Hugging Face hub and a network. ({reason})"
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return Encoder(model, tokenizer, _head(model, info["missing_keys"]))


def _head(model: PreTrainedModel, missing: set[str]) -> tuple[str, ...]:
    body = model.base_model_prefix
    head = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    filled_anew = {key.rpartition(".")[0] for key in missing}
    head += [name for name in sorted(filled_anew) if not any(name == part or name.startswith(part + ".") for part in head)]
    return tuple(head)


def default_targets(model: PreTrainedModel) -> list[str] | str:
    """The attention's query and value projections, which the paper adapts; `ConfigError` for a model not known here."""
    if model.config.model_type not in QUERY_VALUE:
        raise ConfigError(
            f"the query and value projections of a {model.config.model_type} model are not known; "
            "give --target-modules: their names, or all-linear."
        )
    return QUERY_VALUE[model.config.model_type]
