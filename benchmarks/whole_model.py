"""G9, G12: a training step of a whole model, optimizer included, against the same model frozen with gradients flowing.

Random weights. Gradients flow to the embedded inputs in every contender. Dropout is LoRA's alone; the models have none of their
own. bfloat16: factors in bfloat16, too; mixed: float32 factors, on which 0.1.2 raises. LoRA is on query and value: of GPT-2's
fused projection in ours and 0.1.2 by slices, in PEFT, which cannot, over its full width. oneDNN: inside `ops.use("onednn")`,
which takes another kernel for all frozen float32 products of the model; the reference and the others use torch's default.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, LEGACY, PEFT

ONEDNN = "loralib, oneDNN"
ENABLED = [True, False, True]


@dataclass(frozen=True)
class WholeModel(Case):
    """A model's shape, layers and width d; batch and length of the input; r rank, p dropout."""

    group_title = "{shape}-shaped, {layers} x {d}, {dtype}"
    case_title = "{batch} x {length} tokens, r {r}, dropout {p:g}"
    shape: str
    layers: int
    d: int
    r: int
    batch: int
    length: int
    p: float
    dtype: str


def gpt2(layers: int, d: int, length: int) -> nn.Module:
    """A language model. A vocabulary of 1,000 keeps its head from hiding what LoRA costs."""
    sizes: dict[str, Any] = {
        "n_layer": layers,
        "n_embd": d,
        "n_head": max(1, d // 64),
        "n_positions": length,
        "vocab_size": 1000,
    }
    others: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **others, attn_pdrop=0.0))
    model.loss_type = "ForCausalLM"  # which transformers would take as well, with a warning
    return model


def bert(layers: int, d: int, length: int) -> nn.Module:
    """A classifier of two classes."""
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": d, "intermediate_size": 4 * d, "vocab_size": 1000}
    others: dict[str, Any] = {"num_attention_heads": max(1, d // 32), "max_position_embeddings": length}
    config = BertConfig(**sizes, **others, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(config)


def in_0_1(model: nn.Module, case: WholeModel) -> dict[str, nn.Module]:
    """0.1.2's layers for the targets."""
    legacy, d, options = peers.loralib_0_1(), case.d, {"r": case.r, "lora_alpha": 16, "lora_dropout": case.p}
    if case.shape == "GPT-2":
        fused = {"enable_lora": ENABLED, "fan_in_fan_out": True}
        names = [name for name, _ in model.named_modules() if name.endswith("c_attn")]
        return {name: legacy.MergedLinear(d, 3 * d, **fused, **options) for name in names}
    names = [name for name, _ in model.named_modules() if name.endswith(("query", "value"))]
    return {name: legacy.Linear(d, d, **options) for name in names}


def training_step(model: nn.Module, embedded: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, backward and, where anything is trained, a step of AdamW."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        model(inputs_embeds=embedded, labels=labels).loss.backward()
        if optimizer:
            optimizer.step()
        model.zero_grad()
        embedded.grad = None

    return step


def with_onednn(lora: ModuleType, step: Callable[[], None]) -> Callable[[], None]:
    """The same step with the frozen products by oneDNN's kernel."""

    def routed() -> None:
        with lora.ops.use("onednn"):
            step()

    return routed


def contenders(case: WholeModel, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype = torch.float32 if case.dtype == "float32" else torch.bfloat16
    factors = torch.float32 if case.dtype == "mixed" else dtype
    is_gpt2 = case.shape == "GPT-2"
    base = (gpt2 if is_gpt2 else bert)(case.layers, case.d, case.length).to(device, dtype).requires_grad_(False)
    options = {"r": case.r, "lora_alpha": 16, "lora_dropout": case.p}
    theirs: dict[str, Any] = (
        {"target_modules": ["c_attn"], "fan_in_fan_out": True} if is_gpt2 else {"target_modules": ["query", "value"]}
    )
    own: dict[str, Any] = {"target_modules": ["c_attn"], "enable_lora": ENABLED} if is_gpt2 else theirs
    models = {
        FROZEN: base,
        LEGACY: peers.legacy_on(copy.deepcopy(base), in_0_1(base, case), factors),
        PEFT: peers.peft_on(copy.deepcopy(base), upcast=case.dtype == "mixed", **theirs, **options),
        OURS: peers.ours_on(lora, copy.deepcopy(base), factors, **own, **options),
    }
    embedded = torch.randn(case.batch, case.length, case.d, device=device, dtype=dtype, requires_grad=True)
    labels = (
        torch.randint(1000, (case.batch, case.length), device=device) if is_gpt2 else torch.arange(case.batch).to(device) % 2
    )
    steps = {name: training_step(model, embedded, labels) for name, model in models.items()}
    if case.dtype == "float32" and device == "cpu" and lora.ops.onednn.available():
        models[ONEDNN] = models[OURS]
        steps[ONEDNN] = with_onednn(lora, steps[OURS])
    return {name: Contender(step, models[name]) for name, step in steps.items()}


def goals(rows: list[Row]) -> list[Goal]:
    both = (LEGACY, PEFT)
    return [
        Goal("G9", "time / frozen model, at worst", worst(rows, "ratio", [OURS]), at_most=1.1),
        Goal("G9", "times faster than a peer, at worst", worst(rows, "speedup", both, min), at_least=1),
        Goal("G9", "share of a peer's peak memory, at worst", worst(rows, "peak_share", both), at_most=1),
        Goal("G12", "oneDNN: time / frozen model, at worst", worst(rows, "ratio", [ONEDNN]), at_most=0.85),
        Goal("G12", "oneDNN, GPT-2-shaped", worst(where(rows, shape="GPT-2"), "ratio", [ONEDNN]), at_most=0.7),
    ]


SHAPES = [("GPT-2", 6, 768, 4), ("BERT", 6, 384, 8)]
DTYPES = ("float32", "bfloat16", "mixed")

BENCHMARK = Benchmark(
    cases=[WholeModel(*shape, 8, 128, p, dtype) for shape in SHAPES for dtype in DTYPES for p in (0.0, 0.1)],
    quick=[WholeModel("GPT-2", 2, 768, 4, 2, 128, 0.1, "float32"), WholeModel("BERT", 3, 384, 8, 2, 128, 0.1, "mixed")],
    smallest=WholeModel("GPT-2", 1, 16, 2, 1, 4, 0.1, "mixed"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen model",
)
