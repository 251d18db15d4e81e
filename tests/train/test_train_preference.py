"""DPO with one model in memory learns what TRL's DPOTrainer learns with a second one, and what the formula says."""

import copy
import gc
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction
from trl.trainer import base_trainer
from trl.trainer.dpo_trainer import DPOTrainer

import loralib as lora
from chats import tokenizer
from loralib.train.preference import PreferenceTrainer, arguments, judge
from recipes.chat.conftest import tiny

pytestmark = pytest.mark.filterwarnings("error")

BETA = 0.3
SLOW = pytest.mark.slow
ADAPTED: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": "all-linear"},
    "head in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["v_proj"], "bias": "all"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


def rows(count: int = 6) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(3)

    def ids(least: int) -> list[int]:
        length = int(torch.randint(least, 9, (), generator=generator))
        return torch.randint(20, 300, (length,), generator=generator).tolist()

    found = [{"prompt_ids": ids(2), "chosen_ids": ids(1), "rejected_ids": ids(1)} for _ in range(count)]
    return [row | {"input_ids": [*row["prompt_ids"], *row["chosen_ids"]]} for row in found]


def base(**sizes: Any) -> nn.Module:
    model: nn.Module = tiny(initializer_range=0.2, **sizes)
    return model


def trainer(model: nn.Module, folder: Path, kind: Any = PreferenceTrainer, loss: str = "sigmoid", **how: Any) -> Any:
    values: dict[str, Any] = {"learning_rate": 3e-2, "per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1}
    values |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "lr_scheduler_type": "constant"}
    values |= {"per_device_eval_batch_size": 4, "save_strategy": "no"}
    own = {name: how.pop(name) for name in ("starts_trained", "ref_model") if name in how}
    return kind(
        model,
        args=arguments(beta=BETA, loss=loss, output_dir=str(folder), **values | how),
        train_dataset=rows(),
        eval_dataset=rows(5),
        processing_class=tokenizer(),
        **own,
    )


class TheirTrainer(DPOTrainer):
    """TRL's trainer, given tokens."""

    def __init__(self, model: Any, **how: Any):
        from datasets import Dataset

        sets = {name: Dataset.from_list(how.pop(name)) for name in ("train_dataset", "eval_dataset")}
        super().__init__(model, **sets, **how)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def log_probs(model: nn.Module, row: dict[str, list[int]], answer: str) -> torch.Tensor:
    """log π(answer | prompt), from plain logits."""
    ids = torch.tensor([row["prompt_ids"] + row[answer]])
    found = F.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
    return found[len(row["prompt_ids"]) - 1 :].sum()


@torch.no_grad()
def ratios(model: nn.Module, reference: nn.Module, data: list[dict[str, list[int]]]) -> torch.Tensor:
    """log π - log π₀ of each pair's answers, (rows, 2)."""
    return (
        torch.stack(
            [
                torch.stack([log_probs(m, row, f"{name}_ids") for name in ("chosen", "rejected")])
                for m in (model, reference)
                for row in data
            ]
        )
        .reshape(2, len(data), 2)
        .diff(dim=0)[0]
        .neg()
    )


@pytest.mark.parametrize(
    "name", ["linear", "head in full", *(pytest.param(name, marks=SLOW) for name in ("biases", "embedding"))]
)
def test_as_with_a_copy_of_the_model(name: str, tmp_path: Path) -> None:
    """At the start and after each step the loss is that of a deep-copied reference; the base keeps its bits."""
    model = base()
    kept = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(r=4, lora_alpha=16, **ADAPTED[name]))
    lora.mark_only_lora_as_trainable(model, bias=ADAPTED[name].get("bias", "none"))
    theirs = copy.deepcopy(model)
    ours = trainer(model, tmp_path / "a")
    ours.train()
    other = trainer(theirs, tmp_path / "b", TheirTrainer, ref_model=copy.deepcopy(kept))
    with warnings.catch_warnings(action="ignore"):
        other.train()
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (ours, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses[0][-1] - math.log(2)) > 0.05
    for mine, theirs_too in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs_too, atol=1e-4, rtol=1e-4)
    del model.forward  # TRL's, which computes log-probabilities
    lora.eject(model)
    for key, value in kept.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


LOSSES = {
    "sigmoid": lambda c, r, n: -F.logsigmoid(BETA * (c - r)),
    "hinge": lambda c, r, n: torch.relu(1 - BETA * (c - r)),
    "ipo": lambda c, r, n: (c / n[:, 0] - r / n[:, 1] - 1 / (2 * BETA)) ** 2,
}


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", pytest.param("hinge", marks=SLOW)])
def test_evaluation_is_the_mean_over_all_pairs(loss: str, tmp_path: Path) -> None:
    """By the formula, with five pairs in batches of four."""
    model, data = base(), rows(5)
    kept = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(r=4, lora_alpha=16))
    lora.mark_only_lora_as_trainable(model)
    ours = trainer(model, tmp_path, loss=loss)
    ours.train()
    found = ours.evaluate()
    found_too = {name.replace("test_", "eval_"): value for name, value in ours.predict(ours.eval_dataset).metrics.items()}
    chosen, rejected = ratios(model, kept, data).T
    lengths = torch.tensor([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in data])
    for metrics in (found, found_too):
        assert metrics["eval_reward_accuracy"] == pytest.approx(float((chosen > rejected).float().mean()))
        assert metrics["eval_reward_margin"] == pytest.approx(float(BETA * (chosen - rejected).mean()), abs=1e-5)
        assert metrics["eval_loss"] == pytest.approx(float(LOSSES[loss](chosen, rejected, lengths).mean()), abs=1e-5)
    assert not [name for name in found if "rewards/" in name]


def test_a_start_that_is_trained_is_the_reference(tmp_path: Path) -> None:
    """Factors that have an effect already: the model with them is what is compared with, not the base."""
    model = base()
    lora.inject(model, lora.LoRAConfig(r=4, lora_alpha=16, modules_to_save=["lm_head"], target_modules=["q_proj", "up_proj"]))
    lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    kept = copy.deepcopy(model)
    ours = trainer(model, tmp_path, starts_trained=True)
    ours.train()
    assert ours.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    found, (chosen, rejected) = ours.evaluate(), ratios(model, kept, rows(5)).T
    assert found["eval_reward_margin"] == pytest.approx(float(BETA * (chosen - rejected).mean()), abs=1e-5)
    assert abs(found["eval_reward_margin"]) > 1e-2


def test_one_base_in_memory(tmp_path: Path) -> None:
    model = base()
    lora.inject(model, lora.LoRAConfig(r=4))
    lora.mark_only_lora_as_trainable(model)
    own, before = {id(p) for p in model.parameters()}, _large_tensors()
    ours = trainer(model, tmp_path)
    ours.train()
    assert _large_tensors() - before == set()
    assert [*ours.reference.parameters()] == [*ours.ref_model.parameters()] == []
    assert {id(p) for p in ours.model.parameters()} == own


def _large_tensors() -> set[int]:
    """Where the Parameters are that are as large as a frozen weight."""
    gc.collect()
    return {p.data_ptr() for p in gc.get_objects() if type(p) is nn.Parameter and p.numel() >= 512}


def test_a_second_model_would_be_seen() -> None:
    before = _large_tensors()
    second = base()
    assert len(_large_tensors() - before) >= len([p for p in second.parameters() if p.numel() >= 512])


@pytest.mark.parametrize(
    "how", [{"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}, {"gradient_checkpointing": True}]
)
def test_in_parts_and_with_checkpoints(how: dict[str, Any], tmp_path: Path) -> None:
    """Gradients that are accumulated, and activations that are computed twice, give the same."""
    found = []
    if "gradient_checkpointing" in how:
        known = (
            "activation_checkpointing" in type(arguments(beta=1.0, loss="ipo", output_dir=str(tmp_path))).__dataclass_fields__
        )
        how = {"activation_checkpointing" if known else "gradient_checkpointing": True}
    for changes in ({}, how):
        model = base()
        lora.inject(model, lora.LoRAConfig(r=4))
        lora.mark_only_lora_as_trainable(model)
        trainer(model, tmp_path, **changes).train()
        found.append(lora.extract(model))
    for name, update in found[0].layers.items():
        torch.testing.assert_close(update.B, found[1].layers[name].B, atol=1e-4, rtol=1e-3)


def test_nobody_is_informed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    sent: list[Any] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: sent.append(args))
    for kind, expected in ((PreferenceTrainer, 0), (TheirTrainer, 1)):
        model = base()
        lora.inject(model, lora.LoRAConfig(r=4))
        trainer(model, tmp_path, kind, **({"ref_model": base()} if kind is TheirTrainer else {}))
        assert len(sent) == expected


def test_judge() -> None:
    rewards = [[0.5, 0.25, 1.0], [0.0, 0.0, 2.0], [-1.0, 1.0, 3.0]]
    found = judge(EvalPrediction(predictions=torch.tensor(rewards).numpy(), label_ids=None))
    assert found == pytest.approx({"reward_accuracy": 1 / 3, "reward_margin": -1.75 / 3, "loss": 2.0})
