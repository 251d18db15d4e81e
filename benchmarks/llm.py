"""G18: a training step of a small language model with LoRA on all linear layers, against full fine-tuning and PEFT.

The shape of SmolLM2-135M (a Llama of 30 blocks, width 576, 49,152 words), random weights, float32, AdamW included. Every
contender computes the same loss, on all tokens, from whole logits; gradients flow to the embedded inputs of all of them, the
frozen model included. In *half labelled* the first half of each row has no label, as prompts have none: ours computes logits
where labels are, by `logits_to_keep`. *chunked loss* is ours with TRL's head, which never holds all logits.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, PEFT
from loralib.recipes.nlg import loss
from loralib.recipes.nlg.prompts import IGNORED

FULL, LABELLED, CHUNKED = "full fine-tuning", "loralib, labelled logits", "loralib, chunked loss"


@dataclass(frozen=True)
class LanguageModel(Case):
    """A model of so many blocks and a width d; batch and length of the input; r rank, p dropout, labelled: share of tokens."""

    group_title = "Llama-shaped, {layers} x {d}, {vocabulary:,} words"
    case_title = "{batch} x {length} tokens, r {r}, dropout {p:g}, labels on {labelled:.0%}"
    layers: int
    d: int
    vocabulary: int
    r: int
    batch: int
    length: int
    p: float
    labelled: float


def llama(case: LanguageModel) -> nn.Module:
    """The model."""
    heads = max(1, case.d // 64)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.d,
        intermediate_size=case.d * 8 // 3,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        max_position_embeddings=case.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


Loss = Callable[[Any, Tensor, Tensor], Tensor]


def whole(model: Any, embedded: Tensor, labels: Tensor) -> Tensor:
    """The loss from all logits."""
    found: Tensor = model(inputs_embeds=embedded, labels=labels, use_cache=False).loss
    return found


def labelled(model: Any, embedded: Tensor, labels: Tensor) -> Tensor:
    """The loss from the logits where labels are."""
    logits = model(inputs_embeds=embedded, logits_to_keep=loss.kept_positions(labels), use_cache=False).logits
    return loss.token_losses(logits, labels).sum() / (labels[:, 1:] != IGNORED).sum()


def chunked(model: Any, embedded: Tensor, labels: Tensor) -> Tensor:
    """The loss by TRL's head."""
    found: Tensor = model(inputs_embeds=embedded, labels=labels, fused_lm_head=True).loss
    return found


def training_step(model: nn.Module, of: Loss, embedded: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, backward and, where anything is trained, a step of AdamW."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        of(model, embedded, labels).backward()
        if optimizer:
            optimizer.step()
        model.zero_grad()
        embedded.grad = None

    return step


def contenders(case: LanguageModel, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    base = llama(case).to(device).requires_grad_(False)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 2 * case.r, "lora_dropout": case.p, "target_modules": "all-linear"}
    ours = peers.ours_on(lora, copy.deepcopy(base), **options)
    models: dict[str, tuple[nn.Module, Loss]] = {
        FROZEN: (base, whole),
        FULL: (copy.deepcopy(base).requires_grad_(True), whole),
        PEFT: (peers.peft_on(copy.deepcopy(base), **options), whole),
        OURS: (ours, whole),
        LABELLED: (ours, labelled),
    }
    if case.labelled == 1:
        fused: Any = copy.deepcopy(ours)
        add_fused_lm_head(fused)
        models[CHUNKED] = (fused, chunked)
    embedded = torch.randn(case.batch, case.length, case.d, device=device, requires_grad=True)
    labels = torch.randint(case.vocabulary, (case.batch, case.length), device=device)
    labels[:, : round(case.length * (1 - case.labelled))] = IGNORED
    tokens = case.batch * case.length

    def facts(seconds: float) -> Mapping[str, Any]:
        return {"tokens_per_second": tokens / seconds}

    steps = {name: training_step(model, of, embedded, labels) for name, (model, of) in models.items()}
    return {name: Contender(step, models[name][0], facts=facts) for name, step in steps.items()}


def goals(rows: list[Row]) -> list[Goal]:
    without, dropped = where(rows, p=0.0, labelled=1.0), where(rows, p=0.05, labelled=1.0)
    return [
        Goal("G18", "without dropout: time over the frozen model", worst(without, "ratio", [OURS]), at_most=1.10),
        Goal("G18", "with dropout: time over the frozen model", worst(dropped, "ratio", [OURS]), at_most=1.13),
        Goal("G18", "times faster than PEFT without dropout", worst(without, "speedup", [PEFT], min), at_least=1.05),
        Goal("G18", "times faster than PEFT with dropout", worst(dropped, "speedup", [PEFT], min), at_least=1.3),
        Goal("G18", "times faster than full fine-tuning, at worst", worst(rows, "speedup", [FULL], min), at_least=1.2),
        Goal("G18", "share of full fine-tuning's peak memory, at worst", worst(rows, "peak_share", [FULL]), at_most=1),
        Goal("G18", "share of PEFT's peak memory, at worst", worst(rows, "peak_share", [PEFT]), at_most=1),
    ]


SMOLLM2 = (30, 576, 49_152, 16, 4, 128)

BENCHMARK = Benchmark(
    cases=[LanguageModel(*SMOLLM2, p, part) for p, part in ((0.0, 1.0), (0.05, 1.0), (0.05, 0.5))],
    quick=[LanguageModel(4, 576, 4096, 16, 2, 128, 0.05, 1.0)],
    smallest=LanguageModel(1, 16, 40, 2, 1, 6, 0.1, 1.0),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen model",
)
