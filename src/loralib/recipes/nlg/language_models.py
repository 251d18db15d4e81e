"""Causal language models: loading them strictly, and knowing their parts."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...architectures import DECODER_DROPOUTS
from ...choices import QuantizedBase
from ...errors import ConfigError, RunError
from .. import model_loader, quantizing, records

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_language_model(
    name: str,
    base_dropout: float | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    quantize: QuantizedBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model `name` and its tokenizer, or `RunError` when its checkpoint lacks a weight.

    base_dropout: all dropouts of the model itself; None means as its config says. trust_remote_code: whether to run the Python
    code in the model's folder, where it needs some. dtype: of its weights, "fp32", "bf16" or "fp16". quantize: how its linear
    layers are quantized.
    """
    loaded = model_loader.load(
        AutoModelForCausalLM,
        name,
        "a causal language model",
        {},
        lambda config: set_dropouts(config, base_dropout),
        trust_remote_code=trust_remote_code,
        dtype=DTYPES[dtype or "fp32"],
    )
    if loaded.missing:
        names = records.listed(sorted(loaded.missing), most=3)
        raise RunError(
            f"the checkpoint of {name!r} lacks weights of a {type(loaded.model).__name__} ({names}), which would be drawn at "
            "random; give a whole causal language model."
        )
    if loaded.tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {name!r} has no end-of-text token, which ends every text here; give it one.")
    check_causal(loaded.model)
    quantizing.quantize(loaded.model, quantize)
    loaded.tokenizer.padding_side = "right"
    return loaded.model, loaded.tokenizer


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """`RunError` for a model that sees the tokens it has to predict: transformers loads encoders as such models too."""
    training, first = model.training, next(model.parameters())
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=first.device)
    try:
        one, other = model.eval()(ids, use_cache=False).logits[:, 0].float()
    finally:
        model.train(training)
    if float((one - other).abs().max()) > (1e-4 if first.dtype == torch.float32 else 1e-2) * float(one.abs().max()):
        raise RunError(
            f"{model.name_or_path!r} is not a causal language model: a {type(model).__name__} sees the tokens that come later; "
            "give one that writes text, such as a Llama."
        )


def set_dropouts(config: PretrainedConfig, dropout: float | None) -> None:
    """Set all dropouts of the model itself; None leaves them as they are. Raises `ConfigError` when the config knows none."""
    known = [name for name in DECODER_DROPOUTS if name in config.to_dict()]
    model_loader.set_dropout(config, "base_dropout", dropout, known, "dropouts")


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
