"""Runs by BitFit and by prefix tuning: what they train, learn, write, and can be resumed from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from loralib.errors import ConfigError, RunError
from loralib.recipes import plan, run_folder
from loralib.recipes.nlu import predictor, text_classification
from loralib.recipes.run import Interrupted
from loralib.train.checkpoints import last_whole_checkpoint
from models import same_bits
from peers import library
from recipes.conftest import options, run
from recipes.nlu.test_text_classification import TEXTS, InterruptAt

PREFIX: dict[str, Any] = {"prefix_length": 5, "learning_rate": 5e-2, "group_by_length": False}
WIDTH, BLOCKS = 32, 2
HEAD = 2 * WIDTH + 2


def evaluated(folder: Path, reviews: Path) -> Any:
    opened = predictor.open_run(folder)
    return opened.evaluate(predictor.read_rows(opened.options, str(reviews / "test.tsv"), {}))


def measured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / run_folder.METRICS).read_text())
    return found


@pytest.fixture(scope="module")
def bitfit_run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "bitfit"
    run(folder, options(encoder, reviews, method="bitfit"))
    return folder


@pytest.fixture(scope="module")
def prefix_run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library("peft")
    folder = tmp_path_factory.mktemp("run") / "prefix"
    run(folder, options(encoder, reviews, method="prefix", **PREFIX))
    return folder


def test_bitfit_changes_biases_and_the_head_alone(bitfit_run: Path, encoder: Path, reviews: Path) -> None:
    results = measured(bitfit_run)
    assert results["value"] > 0.8
    before, after = (AutoModelForSequenceClassification.from_pretrained(path) for path in (encoder, bitfit_run / "model"))
    of_head = ("classifier.weight", "classifier.bias")
    biases = {name for name, _ in before.named_parameters() if name.rpartition(".")[2] == "bias"}
    sizes = {name: p.numel() for name, p in before.named_parameters()}
    assert results["parameters"]["trained"] == sum(sizes[name] for name in biases | set(of_head))
    assert results["parameters"]["lora"] == 0
    changed = {name for name, tensor in after.state_dict().items() if not same_bits(tensor, before.state_dict()[name])}
    no_gradient = {name for name in biases if name.endswith("attention.self.key.bias")}  # softmax takes it out
    assert biases - no_gradient <= changed | set(of_head) <= biases | set(of_head)
    assert evaluated(bitfit_run, reviews)["accuracy"] == pytest.approx(results["metrics"]["accuracy"])


def test_a_prefix_is_saved_apart_from_the_model_and_peft_reads_it(prefix_run: Path, encoder: Path, reviews: Path) -> None:
    results = measured(prefix_run)
    assert results["value"] > 0.8
    of_prefix = 5 * BLOCKS * 2 * WIDTH
    counts = results["parameters"]
    assert (counts["prefix"], counts["trained"]) == (of_prefix, of_prefix + HEAD)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    assert counts["total"] == sum(p.numel() for p in base.parameters())
    assert not (prefix_run / run_folder.MODEL).exists()
    assert results["saved_bytes"] < 5 * 4 * counts["trained"]
    peft = library("peft").PeftModel.from_pretrained(base, str(prefix_run / run_folder.ADAPTER)).eval()
    batch = AutoTokenizer.from_pretrained(encoder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(peft(**batch).logits, predictor.open_run(prefix_run).logits(TEXTS), rtol=1e-4, atol=1e-5)
    assert evaluated(prefix_run, reviews)["accuracy"] == pytest.approx(results["metrics"]["accuracy"])
    assert run_folder.read_options(prefix_run)[0].prefix == 5


def test_a_checkpoint_of_a_prefix_never_holds_the_base_model(prefix_run: Path) -> None:
    checkpoint = last_whole_checkpoint(prefix_run / run_folder.CHECKPOINTS)
    assert checkpoint is not None
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert not {"model.safetensors", "pytorch_model.bin", "README.md"} & names


def test_other_folders_say_that_there_is_no_lora_adapter(prefix_run: Path, bitfit_run: Path, capsys: Any) -> None:
    from loralib.cli import main

    assert main(["info", str(prefix_run)]) == 2
    assert "trained a prefix, which is not a LoRA adapter" in capsys.readouterr().err
    assert main(["info", str(bitfit_run)]) == 2
    assert "trained a whole model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_score_is_learned_with_a_prefix_and_only_the_last_layer_of_the_head(
    encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    library("peft")
    own = {"problem": "regression", "label_column": "score", "train_head": "classifier", "num_train_epochs": 8}
    results = run(tmp_path / "run", options(encoder, reviews, method="prefix", learning_rate=5e-2, **own))
    assert results["metric"] == "pearson"
    assert results["value"] > 0.3
    assert results["parameters"]["trained"] == 10 * BLOCKS * 2 * WIDTH + WIDTH + 1
    (good, nothing), (bad, _) = predictor.open_run(tmp_path / "run").predict(TEXTS[:2])
    assert nothing is None
    assert float(good) > float(bad)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 12, 35])
@pytest.mark.parametrize("method", ["bitfit", "prefix"])
def test_an_interrupted_run_resumes_bit_for_bit(
    method: str, step: int, encoder: Path, reviews: Path, tmp_path: Path, bitfit_run: Path, prefix_run: Path
) -> None:
    own = PREFIX if method == "prefix" else {}
    chosen, whole = options(encoder, reviews, method=method, **own), {"bitfit": bitfit_run, "prefix": prefix_run}[method]
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(step)])
    assert interrupted.value.checkpoint is not None
    run(tmp_path / "run", chosen, resume=True)
    results, expected = measured(tmp_path / "run"), measured(whole)
    for key in ("value", "metrics", "kept_epoch", "steps"):
        assert results[key] == expected[key]
    part = "model/model.safetensors" if method == "bitfit" else "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / part).read_bytes() == (whole / part).read_bytes()


def test_what_cannot_work_is_refused_before_anything_is_written(
    encoder: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for values, message in (
        ({"method": "bitfit", "prefix_length": 3}, r"prefix_length=3 has no effect with method=bitfit"),
        ({"method": "prefix", "r": 4}, r"r=4 has no effect with method=prefix"),
        ({"method": "prefix", "prefix_length": 0}, r"prefix_length=0: must be positive"),
        ({"method": "prefix", "gradient_checkpointing": True}, r"cannot be used with method=prefix"),
        ({"method": "prefix", "max_length": 158}, r"the model takes at most 150 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "run", options(encoder, reviews, **values))
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"method=prefix needs the package peft; run: pip install peft"):
        run(tmp_path / "run", options(encoder, reviews, method="prefix"))
    assert not (tmp_path / "run").exists()


def test_the_head_may_be_trained_in_its_last_layer_alone(encoder: Path, reviews: Path) -> None:
    library("peft")
    for method in ("bitfit", "prefix"):
        chosen = options(encoder, reviews, method=method, train_head="classifier")
        model = text_classification.plan(chosen, text_classification.read_rows(chosen)).model
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert sum(name.endswith("weight") for name in trained) == (1 if method == "bitfit" else 2)
