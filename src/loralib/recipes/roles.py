"""What the layers of known models do: query, key, value, output of attention, and the MLP, whatever a model calls them.

Data first: by model type and role, how the names of such layers end. GPT-2 keeps query, key and value in one fused layer, of
which LoRA adapts the slices (the paper's GPT-2 recipe, section 5.4, adapts query and value).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .. import patterns
from ..errors import ConfigError

_ATTENTION = {"query": ("query",), "key": ("key",), "value": ("value",)}
_DENSE = {"output": ("attention.output.dense",), "mlp": ("intermediate.dense", "output.dense")}
_BERT = _ATTENTION | _DENSE
_PROJECTIONS = {"query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",)}
_LLAMA = _PROJECTIONS | {"output": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}

ENCODERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "albert": _ATTENTION | {"output": ("attention.dense",), "mlp": ("ffn", "ffn_output")},
    "bert": _BERT,
    "deberta-v2": {"query": ("query_proj",), "key": ("key_proj",), "value": ("value_proj",)} | _DENSE,
    "distilbert": {
        "query": ("q_lin",),
        "key": ("k_lin",),
        "value": ("v_lin",),
        "output": ("out_lin",),
        "mlp": ("lin1", "lin2"),
    },
    "electra": _BERT,
    "mpnet": {"query": ("attn.q",), "key": ("attn.k",), "value": ("attn.v",), "output": ("attn.o",), "mlp": _DENSE["mlp"]},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
DECODERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt2": {"output": ("attn.c_proj",), "mlp": ("mlp.c_fc", "mlp.c_proj")},
    "gpt_neo": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("mlp.c_fc", "mlp.c_proj")},
    "gptj": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("fc_in", "fc_out")},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "opt": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("fc1", "fc2")},
    "phi": _PROJECTIONS | {"output": ("self_attn.dense",), "mlp": ("fc1", "fc2")},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
FUSED: Mapping[str, tuple[str, tuple[str, ...]]] = {"gpt2": ("attn.c_attn", ("query", "key", "value"))}


def role_targets(model: PreTrainedModel, roles: Sequence[str]) -> dict[str, Any]:
    """What a `LoRAConfig` says to adapt the layers of `model` that play the `roles` (of `options.ROLES`): `target_modules`,
    their full names, and `enable_lora`, the slices of those that are fused.

    Raises `ConfigError` for a model whose layers are not known here.
    """
    kind = model.config.model_type
    table = ENCODERS.get(kind) or DECODERS.get(kind)
    if table is None:
        raise ConfigError(
            f"which layers of a {kind} model are {', '.join(roles)} is not known; "
            "give --target-modules: their names, or all-linear."
        )
    endings = {ending: role for role, names in table.items() for ending in names}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    targets = [name for name in linear if endings.get(_longest(name, endings)) in roles]
    fused, parts = FUSED.get(kind, ("", ()))
    mask = [part in roles for part in parts]
    if not any(mask):
        return {"target_modules": targets}
    whole = [name for name in linear if patterns.ends_with(name, fused)]
    return {
        "target_modules": [name for name in linear if name in targets or name in whole],
        "enable_lora": {patterns.exactly(name): mask for name in whole},
    }


def _longest(name: str, endings: Iterable[str]) -> str:
    """The longest of the endings that `name` has, or "" (`output.dense` is another layer than `attention.output.dense`)."""
    return max((ending for ending in endings if patterns.ends_with(name, ending)), key=len, default="")
