"""The shapes of the models that the LoRA paper adapts, as data, and models without weights built from them.

A model on the meta device has names and shapes and takes no memory, which is all that counting needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from ..errors import RunError
from .nlu import encoders
from .roles import ENCODERS

_ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DEBERTA = {
    "vocab_size": 128_100,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _encoder(kind: str, common: Mapping[str, Any], *sizes: int) -> tuple[str, dict[str, Any]]:
    return kind, {**common, **dict(zip(_SIZES, sizes, strict=True))}


def _gpt2(width: int, layers: int, heads: int) -> tuple[str, dict[str, Any]]:
    return "gpt2", {"n_embd": width, "n_layer": layers, "n_head": heads}


PUBLISHED: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "roberta-base": _encoder("roberta", _ROBERTA, 768, 12, 12, 3072),
        "roberta-large": _encoder("roberta", _ROBERTA, 1024, 24, 16, 4096),
        "deberta-v2-xxlarge": _encoder("deberta-v2", _DEBERTA, 1536, 48, 24, 6144),
        "gpt2": _gpt2(768, 12, 12),
        "gpt2-medium": _gpt2(1024, 24, 16),
        "gpt2-large": _gpt2(1280, 36, 20),
        "gpt2-xl": _gpt2(1600, 48, 25),
    }
)


@dataclass(frozen=True)
class Shape:
    """A model on the meta device and the names of the parts of its head, which are trained beside LoRA."""

    model: PreTrainedModel
    head: tuple[str, ...]

    @property
    def is_causal(self) -> bool:
        """Whether it generates text, and has no head to train."""
        return not self.head


def read_config(name: str) -> PretrainedConfig:
    """The config of a model: from a local folder, from what is known here by the last part of the name, or from the hub.

    Raises `RunError` when it cannot be had.
    """
    known = name.rstrip("/").rpartition("/")[2].lower()
    try:
        if known in PUBLISHED:
            kind, values = PUBLISHED[known]
            config: PretrainedConfig = AutoConfig.for_model(kind, **values)
        else:
            config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"the shape of model {name!r} cannot be had; give a local folder, a name on the Hugging Face hub and a network, or "
            f"one of {', '.join(PUBLISHED)}. ({reason})"
        ) from None
    return config


def build(name: str, labels: list[str] | None) -> Shape:
    """The model `name` on the meta device: an encoder with a head for `labels` (None: regression), or a causal language model.

    Raises `RunError` when its shape cannot be had.
    """
    config = read_config(name)
    causal = config.model_type not in ENCODERS
    if not causal:
        for key, value in encoders.outputs(labels).items():
            setattr(config, key, value)
    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        model = kind.from_config(config)
    return Shape(model, () if causal else encoders.head_of(model))
