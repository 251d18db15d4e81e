"""The loss is the written-out formula, per token however it is batched, and perplexity counts every token once."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from loralib.recipes import run_folder
from loralib.recipes.nlg import language_models, loss, prompts
from loralib.recipes.nlg.prompts import IGNORED, PaperForm
from models import bits, same_bits
from recipes.nlg.conftest import options, read_jsonl, run


def plain_losses(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """(1 - ε)·(-log p(t)) + ε·mean of (-log p), token by token, in float64."""
    rows, tokens, V = logits.shape
    found = torch.zeros(rows, tokens - 1, dtype=torch.float64)
    for i in range(rows):
        for t in range(tokens - 1):
            if labels[i, t + 1] != IGNORED:
                z = logits[i, t].double()
                minus_log_p = [float(z.exp().sum().log() - z[v]) for v in range(V)]
                found[i, t] = (1 - smoothing) * minus_log_p[int(labels[i, t + 1])] + smoothing * sum(minus_log_p) / V
    return found


def drawn(rows: int, tokens: int, V: int, kept: float = 0.6) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are ignored here and there, never all."""
    labels = torch.randint(V, (rows, tokens)).where(torch.rand(rows, tokens) < kept, torch.tensor(IGNORED))
    labels[0, -1] = 0
    return 3 * torch.randn(rows, tokens, V), labels


@given(st.integers(1, 4), st.integers(2, 6), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_token_losses_are_the_formula(rows: int, tokens: int, V: int, smoothing: float) -> None:
    logits, labels = drawn(rows, tokens, V)
    expected = plain_losses(logits, labels, smoothing)
    exact = loss.token_losses(logits.double(), labels, smoothing)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.token_losses(logits, labels, smoothing), expected.float())
    assert bool(((labels[:, 1:] == IGNORED) == (exact == 0)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_low_precision_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    logits, labels = drawn(2, 9, 50)
    low = logits.to(dtype)
    found = loss.token_losses(low, labels, 0.1)
    assert same_bits(found, loss.token_losses(low.float(), labels, 0.1))
    off = (nn.functional.cross_entropy(low[0, :-1], labels[0, 1:], reduction="none").float() - found[0]).abs().max()
    assert off > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_in_parts_has_the_gradient_of_the_whole(smoothing: float) -> None:
    torch.manual_seed(0)
    head, features = nn.Linear(5, 11).double(), torch.randn(6, 7, 5, dtype=torch.float64)
    _, labels = drawn(6, 7, 11)
    labels[3:, :5] = IGNORED  # the parts have different numbers of tokens
    compute = loss.training_loss(head, smoothing)

    def gradient(parts: list[slice], count: Any) -> Tensor:
        head.zero_grad()
        for part in parts:
            compute(SimpleNamespace(logits=head(features[part])), labels[part], count).backward()
        assert head.weight.grad is not None
        return head.weight.grad.clone()

    total = (labels[:, 1:] != IGNORED).sum()
    whole = gradient([slice(0, 6)], None)
    torch.testing.assert_close(gradient([slice(0, 6)], total), whole)
    torch.testing.assert_close(gradient([slice(0, 3), slice(3, 6)], total), whole)
    expected = plain_losses(head(features).detach(), labels, smoothing).sum() / int(total)
    torch.testing.assert_close(compute(SimpleNamespace(logits=head(features)), labels, total).detach(), expected)
    assert not torch.allclose(gradient([slice(0, 3), slice(3, 6)], None) / 2, whole)


IN_PARTS: dict[str, Any] = {"num_train_epochs": 1, "label_smoothing_factor": 0.1, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def at_once(gpt2: Path, meals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run(folder, options(gpt2, meals, **IN_PARTS))
    return folder


@pytest.mark.parametrize("way", [{"gradient_accumulation_steps": 2}, {"device_batch_size": 3}], ids=lambda way: next(iter(way)))
def test_a_run_in_parts_is_the_same_run(gpt2: Path, meals: Path, tmp_path: Path, at_once: Path, way: dict[str, int]) -> None:
    whole, results = (
        json.loads((at_once / run_folder.METRICS).read_text()),
        run(tmp_path / "run", options(gpt2, meals, **IN_PARTS, **way)),
    )
    assert results["steps"] == whole["steps"] == 5
    first, second = ([row["loss"] for row in found["history"] if "loss" in row] for found in (whole, results))
    assert second == pytest.approx(first, rel=1e-4)
    assert results["value"] == pytest.approx(whole["value"], rel=1e-4)
    stored, expected = (lora.load(folder / run_folder.ADAPTER).layers for folder in (tmp_path / "run", at_once))
    for name, update in expected.items():
        torch.testing.assert_close(stored[name].B, update.B, rtol=0.02, atol=1e-3 * float(update.B.abs().max()))


def test_smoothing_acts_in_training_alone(gpt2: Path) -> None:
    model, _ = language_models.load_language_model(str(gpt2))
    logits, labels = drawn(2, 5, 9)
    smoothed, plain = (plain_losses(logits, labels, s).sum() / (labels[:, 1:] != IGNORED).sum() for s in (0.3, 0.0))
    compute, outputs = loss.training_loss(model, 0.3), SimpleNamespace(logits=logits)
    assert float(compute(outputs, labels)) == pytest.approx(float(plain))  # as it was loaded
    model.train()
    assert float(compute(outputs, labels)) == pytest.approx(float(smoothed))
    model.eval()
    assert float(compute(outputs, labels)) == pytest.approx(float(plain))


def test_a_run_is_judged_without_smoothing(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, label_smoothing_factor=0.5, learning_rate=1e-9, num_train_epochs=1))
    (evaluation,) = (row for row in results["history"] if "eval_loss" in row)
    assert evaluation["eval_loss"] == pytest.approx(evaluation["eval_nll"], rel=1e-5)  # all rows are one batch
    model, tokenizer = language_models.load_language_model(str(gpt2))
    train = prompts.encode(
        PaperForm(tokenizer), [(r["context"], r["completion"]) for r in read_jsonl(meals / "train.jsonl")], 99, "x"
    )
    batch = prompts.collator(tokenizer)(train)
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    mean = float(plain_losses(logits, batch["labels"], 0.5).sum() / (batch["labels"] != IGNORED).sum())
    shown = [row["loss"] for row in results["history"] if "loss" in row]
    assert sum(shown) / len(shown) == pytest.approx(mean, rel=0.05)
    assert mean > 1.2 * evaluation["eval_loss"]


# --- perplexity -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(1, 6))
def test_perplexity_counts_every_token_once(lengths: list[int], batch_size: int) -> None:
    V, sums, total, count = 7, [], 0.0, 0
    rows = [
        (3 * torch.randn(n, V), torch.tensor([IGNORED] + [int(torch.randint(V, ())) for _ in range(n - 1)])) for n in lengths
    ]
    for logits, labels in rows:
        for t in range(len(labels) - 1):
            total -= float(logits[t].double().log_softmax(-1)[labels[t + 1]])
            count += 1
    for start in range(0, len(rows), batch_size):
        logits, labels = zip(*rows[start : start + batch_size], strict=True)
        padded = nn.utils.rnn.pad_sequence(list(labels), True, IGNORED)
        sums.append(loss.row_losses(nn.utils.rnn.pad_sequence(list(logits), True, 1e3), padded))
    found = loss.of_rows(torch.cat(sums).numpy())
    assert found == {"nll": pytest.approx(total / count), "perplexity": pytest.approx(math.exp(total / count))}
    assert torch.cat(sums)[:, 1].tolist() == [n - 1 for n in lengths]


def test_a_run_is_judged_alike_however_its_rows_are_batched(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"learning_rate": 1e-9, "num_train_epochs": 0.2}
    found = [run(tmp_path / str(n), options(gpt2, meals, per_device_eval_batch_size=n, **values))["metrics"] for n in (3, 64)]
    assert found[1]["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-5)
    assert found[1]["nll"] == pytest.approx(found[0]["nll"], rel=1e-5)


def test_a_perplexity_beyond_all_numbers_is_still_one() -> None:
    found = loss.of_rows(np.array([[1e9, 3.0]]))
    assert math.isfinite(found["perplexity"])
    assert found["nll"] == pytest.approx(1e9 / 3)


def test_the_helpers_can_tell() -> None:
    logits, labels = drawn(2, 4, 5)
    assert bits(plain_losses(logits, labels, 0.0)) != bits(plain_losses(logits, labels, 0.1))
