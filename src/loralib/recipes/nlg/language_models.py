"""Causal language models: loading them strictly, and knowing their parts."""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ...architectures import DECODER_DROPOUTS
from ...errors import ConfigError, RunError
from .. import records


def load_language_model(name: str, base_dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pretrained causal language model `name` in float32, and its tokenizer, which can pad.

    base_dropout: all dropouts of the model itself; None means as its config says. Strict: raises `RunError` when the model
    cannot be had (offline included), or its checkpoint lacks a weight, which would then be drawn at random; `ConfigError`
    when it knows no dropout, or its tokenizer no end of text.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
        set_dropouts(config, base_dropout)
        tokenizer = AutoTokenizer.from_pretrained(name)
        how: Any = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **how)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"model {name!r} cannot be loaded as a causal language model; give a local folder, or a name on the Hugging Face "
            f"hub and a network. ({reason})"
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise RunError(
            f"the checkpoint of {name!r} lacks weights of a {type(model).__name__} ({records.listed(missing, most=3)}), which "
            "would be drawn at random; give a whole causal language model."
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {name!r} has no end-of-text token, which ends every text here; give it one.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked in training and decoding
    return model, tokenizer


def set_dropouts(config: PretrainedConfig, dropout: float | None) -> None:
    """Set all dropouts of the model itself; None leaves them as they are. Raises `ConfigError` when the config knows none."""
    if dropout is None:
        return
    known = [name for name in DECODER_DROPOUTS if name in config.to_dict()]
    if not known:
        raise ConfigError(f"base_dropout={dropout:g}: a {config.model_type} model is not known to have dropouts; leave it out.")
    for name in known:
        setattr(config, name, dropout)


def check_length(model: PreTrainedModel, length: int) -> None:
    """`ConfigError` when the model has no positions for `length` tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and length > positions:
        raise ConfigError(f"max_length={length}: the model takes at most {positions} tokens.")


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, first to last. Raises `ConfigError` when the model has no such list."""
    depth = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not found:
        raise ConfigError(f"the blocks of a {model.config.model_type} model are not known; use --method lora or full.")
    return found[0]


def freeze_all_but_last_blocks(model: PreTrainedModel, n: int = 2) -> None:
    """Freeze everything but the last `n` blocks: for n = 2 the paper's baseline FT-Top2 (Table 3)."""
    model.requires_grad_(False)
    for block in list(blocks(model))[-n:]:
        block.requires_grad_(True)
