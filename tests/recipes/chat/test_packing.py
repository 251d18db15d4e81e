"""Packed rows have the loss and the gradients of the rows apart, for models of several families."""

import random
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.errors import ConfigError
from loralib.recipes.chat.packing import PackedCollator, check_kept_apart, pack
from loralib.recipes.nlg import loss
from loralib.recipes.nlg.prompts import IGNORED
from recipes.chat.conftest import tiny

KINDS: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {}, "gemma2": {}, "gpt_neox": {}}


def rows(n: int = 7) -> list[dict[str, list[int]]]:
    rng = random.Random(0)
    found = []
    for _ in range(n):
        ids = [rng.randrange(20, 300) for _ in range(rng.randrange(6, 30))]
        prompt = rng.randrange(1, 5)
        found.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return found


def gradients(model: Any, batches: list[Any]) -> tuple[float, dict[str, Any]]:
    """The mean loss over all labels of the batches, and what it gives the factors."""
    model.zero_grad()
    count = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        labels = batch.pop("labels")
        part = loss.training_loss(model, 0.0)(model(**batch, use_cache=False), labels, num_items_in_batch=count)
        part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_apart(kind: str) -> None:
    model = tiny(kind, **KINDS[kind])
    lora.inject(model, lora.LoRAConfig(r=2))
    lora.mark_only_lora_as_trainable(model)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    collate = loss.LabelledBatch(PackedCollator(0), model)
    one_by_one = [collate([row]) for row in rows()]
    packed = pack(rows(), 40)
    assert len(packed) < len(rows())
    assert max(len(row["input_ids"]) for row in packed) <= 40
    check_kept_apart(model, rows()[0]["input_ids"])
    expected, found = gradients(model, one_by_one), gradients(model, [collate(packed)])
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys() != set()
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5, msg=name)


def test_every_token_is_packed_once() -> None:
    def parts(row: dict[str, list[int]]) -> Any:
        at = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            yield tuple(row["input_ids"][at : at + length]), tuple(row["labels"][at : at + length])
            at += length

    before = sorted(part for row in rows() for part in parts(row))
    assert sorted(part for row in pack(rows(), 40) for part in parts(row)) == before


def test_a_model_that_mixes_rows_is_refused() -> None:
    class Mixes(nn.Module):
        """Sees all that came before, whatever the positions say."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)

        def forward(self, input_ids: Any, position_ids: Any, use_cache: bool = False) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1))

    with pytest.raises(ConfigError, match="a Mixes does not keep packed rows apart"):
        check_kept_apart(Mixes(), [3, 5, 7])
