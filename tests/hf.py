"""Tiny random Hugging Face models, built from configurations, and batches for them."""

from typing import Any

import torch
from torch import Tensor, nn

from peers import library

SIZES = {
    "Bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "Roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
}
QUERY_VALUE = {"Bert": ["query", "value"], "Roberta": ["query", "value"], "DistilBert": ["q_lin", "v_lin"]}
HEADS = {"Bert": ["classifier"], "Roberta": ["classifier"], "DistilBert": ["pre_classifier", "classifier"]}


def tiny(family: str, head: str = "ForSequenceClassification", seed: int = 0, **config: Any) -> nn.Module:
    """A model of the family, in evaluation mode, with random weights (large enough to show updates), by seed."""
    transformers = library("transformers")
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "max_position_embeddings": 40, "initializer_range": 0.3} | SIZES[family] | config
    model: nn.Module = getattr(transformers, family + head)(getattr(transformers, family + "Config")(**sizes))
    return model.eval()


def batch() -> dict[str, Tensor]:
    """Two sentences, the second one padded."""
    ids = torch.arange(2, 14).reshape(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**batch()).logits
    return result


ENCODERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
OF_ITS_OWN = {
    "albert": {"embedding_size": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30},
    "electra": {"embedding_size": 8},
}


def encoder_shape(kind: str) -> Any:
    """A small classifying encoder of two blocks without weights, by its model type."""
    transformers = library("transformers")
    values = OF_ITS_OWN[kind] if kind == "distilbert" else ENCODERS | OF_ITS_OWN.get(kind, {})
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(transformers.AutoConfig.for_model(kind, **values))
