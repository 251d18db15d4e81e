"""Tiny random mixtures of experts, of transformers and of no library, and what they compute with updates in their weights."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
from peers import library

_SHARED = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
_SIZES = _SHARED | {"max_position_embeddings": 64, "initializer_range": 0.3, "tie_word_embeddings": False, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "intermediate_size": 24},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12},
    "DeepseekV3": {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "intermediate_size": 24},
        **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8},
        **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4},
    },
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12},
    "Llama4": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 12, "intermediate_size_mlp": 24},
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
CASES = [(family, how) for family in FAMILIES for how in IMPLEMENTATIONS if family != "Llama4" or how == "eager"]
IDS = torch.arange(3, 17).reshape(2, 7)


def mixture(family: str, implementation: str = "eager", dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A causal language model with two blocks, the last of which is a mixture."""
    transformers = library("transformers")
    torch.manual_seed(0)
    settings = _SIZES | FAMILIES[family] | config
    if family == "Llama4":
        made = transformers.Llama4TextConfig(**settings, interleave_moe_layer_step=1, pad_token_id=0)
        model = transformers.Llama4ForCausalLM(made)
    else:
        model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.dim() > 1 else 1.0))
    model.set_experts_implementation(implementation)
    return model.to(dtype).eval()


def fill(model: nn.Module) -> nn.Module:
    """Random numbers for all factors, so that updates are about as large as what they are added to."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("lora_A", "lora_B")):
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(input_ids=ids).logits
    return found


def with_weights(plain: nn.Module, adapter: lora.Adapter) -> nn.Module:
    """A copy of a mixture in float64, with W + ΔW in the places of its weights; the formula is written out here."""
    model: Any = copy.deepcopy(plain).double()
    model.set_experts_implementation("eager")  # the only one in float64
    with torch.no_grad():
        for name, update in adapter.layers.items():
            A, B, s = update.A.double(), update.B.double(), update.scaling
            if not isinstance(update, lora.ExpertsUpdate):
                model.get_submodule(name).weight += s * (B @ A)
                continue
            W = model.get_parameter(name)
            owner = model.get_submodule(name.rpartition(".")[0])
            for e in range(len(W)):
                delta = s * (B[e % len(B)] @ A[e % len(A)])
                W[e] += delta.t() if getattr(owner, "is_transposed", False) else delta
    return model


class Experts(nn.Module):
    """Two matrices for each of `count` experts, multiplied with in the way that `forward` is given."""

    def __init__(self, count: int = 3, d: int = 6, k: int = 5, transposed: bool = False):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(count, d, k) if transposed else torch.randn(count, k, d))
        self.is_transposed = transposed

    def forward(self, x: Tensor, way: Any) -> Any:
        return way(x, self.w1)


def each(x: Tensor, W: Tensor) -> Tensor:
    """One expert after the other, by a linear layer's product: x (E, n, d), W (E, k, d)."""
    return torch.stack([F.linear(x[e], W[e]) for e in range(len(W))])
