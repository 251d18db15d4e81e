"""A run from data to run folder: what it learns, writes, and can be resumed from."""

import hashlib
import io
import json
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import loralib as lora
from loralib.cli import main
from loralib.errors import AttachError, ConfigError, DataError, FormatError, RunError
from loralib.recipes import run_folder
from loralib.recipes.nlu import encoders, predictor, text_classification
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import Interrupted, train
from loralib.train.checkpoints import last_whole_checkpoint
from models import close
from peers import library
from recipes.conftest import options, run, sentence

TEXTS = ["the lamp was good and lovely", "the soup was awful and broken", "a very dull poor film", "a great fine film again"]


class InterruptAt(TrainerCallback):
    """Presses Ctrl-C at the beginning of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


class CrashAt(TrainerCallback):
    """Ends a run at the beginning of a step, and saves nothing."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("the power is gone")


@pytest.fixture(scope="module")
def lora_run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "lora"
    run(folder, options(encoder, reviews, save_merged=True, lora_dropout=0.1))
    return folder


def test_a_lora_run_learns_and_writes_what_it_says(lora_run: Path) -> None:
    results = json.loads((lora_run / run_folder.METRICS).read_text())
    assert results["value"] > 0.8
    attention, feed_forward, pooler = 4 * (32 + 32), 2 * (32 + 48), 32 + 32
    assert results["parameters"]["lora"] == 4 * (2 * (attention + feed_forward) + pooler)
    assert results["parameters"]["trained"] == results["parameters"]["lora"] + 2 * 32 + 2
    assert {path.name for path in lora_run.iterdir()} == run_folder.PARTS - {
        run_folder.MODEL,
        run_folder.SUBMISSION,
        run_folder.GENERATED,
        run_folder.SAMPLES,
    }
    assert (lora_run / run_folder.CURVE).read_bytes().startswith(b"\x89PNG")
    assert len([row for row in results["history"] if "eval_loss" in row]) == 4


def test_a_checkpoint_of_a_lora_run_never_holds_the_base_model(lora_run: Path, encoder: Path) -> None:
    checkpoint = last_whole_checkpoint(lora_run / run_folder.CHECKPOINTS)
    assert checkpoint is not None
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert not {"model.safetensors", "pytorch_model.bin"} & names
    stored = lora.load(checkpoint)
    assert set(stored.tensors) == {"classifier.weight", "classifier.bias"}
    assert sum(t.numel() for t in torch.load(checkpoint / "optimizer.pt")["state"][0].values()) < 1000


def test_the_adapter_loads_by_lora_by_peft_and_merged_by_plain_transformers(lora_run: Path) -> None:
    expected = predictor.open_run(lora_run).logits(TEXTS)
    results = json.loads((lora_run / run_folder.METRICS).read_text())
    chosen, labels = run_folder.read_options(lora_run)
    assert results["versions"]["loralib"] == lora.__version__
    assert labels == ["blame", "praise"]

    base = AutoModelForSequenceClassification.from_pretrained(chosen.model, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    peft = library("peft").PeftModel.from_pretrained(base, str(lora_run / run_folder.ADAPTER)).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(lora_run / run_folder.MERGED)
    with torch.no_grad():
        assert torch.allclose(peft(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(merged(**batch).logits, expected, atol=1e-5)
    assert merged.config.id2label == {0: "blame", 1: "praise"}
    assert lora.load(lora_run / run_folder.ADAPTER).metadata["task_type"] == "SEQ_CLS"


def test_a_finished_run_predicts_and_evaluates_as_it_was_measured(lora_run: Path, reviews: Path) -> None:
    opened = predictor.open_run(lora_run)
    rows = predictor.read_rows(opened.options, str(reviews / "test.tsv"), {})
    measured = json.loads((lora_run / run_folder.METRICS).read_text())["metrics"]
    assert opened.evaluate(rows)["accuracy"] == pytest.approx(measured["accuracy"])
    predicted = opened.predict(rows["text"][:])
    right = sum(label == expected for (label, _), expected in zip(predicted, rows["label"], strict=True))
    assert right / len(rows) == pytest.approx(measured["accuracy"])
    assert all(probability is not None and 0.5 <= probability <= 1 for _, probability in predicted)
    with pytest.raises(DataError, match="none of 'blame', 'praise'"):
        opened.evaluate(predictor.read_rows(opened.options, str(reviews / "test.tsv"), {"label_column": "score"}))


@pytest.mark.parametrize("method", ["last-layers", "full"])
def test_the_other_methods_train_what_they_say(encoder: Path, reviews: Path, tmp_path: Path, method: str) -> None:
    chosen = options(encoder, reviews, method=method, num_train_epochs=1, learning_rate=1e-3)
    results = run(tmp_path / "run", chosen)
    counts = results["parameters"]
    assert counts["lora"] == 0
    assert counts["trained"] == (66 if method == "last-layers" else counts["total"])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / run_folder.MODEL)
    batch = AutoTokenizer.from_pretrained(tmp_path / "run" / run_folder.MODEL)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert close(plain(**batch).logits, predictor.open_run(tmp_path / "run").logits(TEXTS), factor=8)
    frozen = AutoModelForSequenceClassification.from_pretrained(encoder)
    same = torch.equal(plain.bert.embeddings.word_embeddings.weight, frozen.bert.embeddings.word_embeddings.weight)
    assert same == (method == "last-layers")


def test_regression_scores_numbers(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, problem="regression", label_column="score", num_train_epochs=8, learning_rate=1e-2)
    results = run(tmp_path / "run", chosen)
    assert results["metric"] == "pearson"
    assert results["value"] > 0.8
    (good, nothing), (bad, _) = predictor.open_run(tmp_path / "run").predict(TEXTS[:2])
    assert nothing is None
    assert float(good) > float(bad)


def test_whatever_lora_config_can_say_is_trained_and_opened_again(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    own = {"bias": "lora_only", "rank_pattern": {"query": 2}, "exclude_modules": "layer.0.attention.self.value"}
    named = {"target_modules": "query,value", "modules_to_save": "pooler.dense"}
    results = run(tmp_path / "run", options(encoder, reviews, num_train_epochs=1, **own, **named))
    stored = lora.load(tmp_path / "run" / run_folder.ADAPTER)
    attention = "bert.encoder.layer.{}.attention.self.{}"
    assert {name: update.r for name, update in stored.layers.items()} == {
        attention.format(0, "query"): 2,
        attention.format(1, "query"): 2,
        attention.format(1, "value"): 4,
    }
    biases = {f"{name}.bias" for name in stored.layers}
    heads = {f"{part}.{leaf}" for part in ("classifier", "bert.pooler.dense") for leaf in ("weight", "bias")}
    assert set(stored.tensors) == biases | heads
    opened = predictor.open_run(tmp_path / "run")
    rows = predictor.read_rows(opened.options, str(reviews / "test.tsv"), {})
    assert opened.evaluate(rows)["accuracy"] == pytest.approx(results["value"])


def test_the_best_epoch_is_kept_and_patience_stops(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, num_train_epochs=20, patience=1)
    results = run(tmp_path / "run", chosen)
    evaluations = [row for row in results["history"] if "eval_loss" in row]
    assert len(evaluations) < 20
    best = max(row["eval_accuracy"] for row in evaluations)
    assert best == max(row["eval_accuracy"] for row in evaluations[:-1])  # the last one was no better
    opened = predictor.open_run(tmp_path / "run")
    rows = predictor.read_rows(opened.options, str(reviews / "test.tsv"), {})
    assert opened.evaluate(rows)["accuracy"] == pytest.approx(best) == pytest.approx(results["value"])


@pytest.mark.slow
def test_rows_kept_for_the_end_are_scored_once_with_the_epoch_that_was_kept(
    encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    chosen = options(
        encoder, reviews, eval_data=None, eval_fraction=0.25, test_data=str(reviews / "test.tsv"), num_train_epochs=3
    )
    results = run(tmp_path / "run", replace(chosen, group_by_length=True, device_batch_size=8))
    assert (results["train_rows"], results["eval_rows"], results["test_rows"]) == (144, 48, 48)
    assert results["steps"] == 3 * 9
    opened = predictor.open_run(tmp_path / "run")
    rows = predictor.read_rows(opened.options, str(reviews / "test.tsv"), {})
    assert opened.evaluate(rows) == pytest.approx(results["test"])
    assert all("test" not in row for row in results["history"])
    assert "test" not in run(tmp_path / "other", replace(chosen, test_data=None, num_train_epochs=1))


def test_dropouts_and_the_classifier_alone(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, head_dropout=0.5, attention_dropout=0.25, train_head="classifier", num_train_epochs=1)
    planned = text_classification.plan(chosen, text_classification.read_rows(chosen))
    assert planned.model.dropout.p == 0.5
    assert planned.model.bert.encoder.layer[0].attention.self.dropout.p == 0.25
    assert planned.model.classifier.weight.requires_grad


class OneMoreLayer(torch.nn.Module):
    """A pooler that also has a layer on which nothing depends."""

    def __init__(self, pooler: torch.nn.Module):
        super().__init__()
        self.pooler, self.idle = pooler, torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooler(x)


def test_a_run_says_what_has_lora_and_which_factors_do_not_train(
    encoder: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = encoders.load_encoder

    def with_one_more(*args: Any, **kwargs: Any) -> encoders.Encoder:
        found = load(*args, **kwargs)
        found.model.bert.pooler = OneMoreLayer(found.model.bert.pooler)
        return found

    monkeypatch.setattr(encoders, "load_encoder", with_one_more)
    console = Console(file=io.StringIO(), width=500)
    train(options(encoder, reviews, num_train_epochs=1, max_train_rows=48), tmp_path / "run", console=console)
    said = console.file.getvalue()
    assert "LoRA on 14 layers (" in said
    assert "1 (it is in modules_to_save)" in said
    assert "warning: 2 LoRA factors do not train: bert.pooler.idle.lora_A: it has no gradient" in said


def test_a_regression_begins_at_the_mean_of_its_labels(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, problem="regression", label_column="score")
    planned = text_classification.plan(chosen, text_classification.read_rows(chosen))
    mean = sum(planned.data[0]["label"]) / len(planned.data[0])
    assert planned.model.classifier.bias.item() == pytest.approx(mean)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 11, 12, 17, 35])  # an epoch has 12 steps
def test_an_interrupted_run_resumes_bit_for_bit(
    encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path, step: int
) -> None:
    chosen, folder = options(encoder, reviews, lora_dropout=0.1, save_merged=True), tmp_path / "run"
    with pytest.raises(Interrupted) as interrupted:
        run(folder, chosen, callbacks=[InterruptAt(step)])
    assert interrupted.value.checkpoint == last_whole_checkpoint(folder / run_folder.CHECKPOINTS)
    assert interrupted.value.checkpoint is not None
    assert interrupted.value.checkpoint.name == f"checkpoint-{step + 1}"
    run(folder, chosen, resume=True)
    check_same_outcome(folder, lora_run)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 17])
def test_a_run_that_groups_by_length_resumes_bit_for_bit(encoder: Path, reviews: Path, tmp_path: Path, step: int) -> None:
    chosen = options(encoder, reviews, group_by_length=True, num_train_epochs=2)
    run(tmp_path / "straight", chosen)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(step)])
    run(tmp_path / "run", chosen, resume=True)
    check_same_outcome(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
def test_an_interrupt_in_the_last_step_changes_nothing(encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path) -> None:
    chosen = options(encoder, reviews, lora_dropout=0.1, save_merged=True)
    run(tmp_path / "run", chosen, callbacks=[InterruptAt(47)])
    check_same_outcome(tmp_path / "run", lora_run)


def check_same_outcome(folder: Path, other: Path) -> None:
    results, expected = (json.loads((f / run_folder.METRICS).read_text()) for f in (folder, other))
    for key in ("value", "metrics", "kept_epoch", "steps"):
        assert results[key] == expected[key]
    evaluations = [[(row["step"], row["eval_loss"]) for row in r["history"] if "eval_loss" in row] for r in (results, expected)]
    assert evaluations[0] == evaluations[1]
    weights = [(f / run_folder.ADAPTER / "adapter_model.safetensors").read_bytes() for f in (folder, other)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("best_epoch", [True, False])
@pytest.mark.parametrize("step", [4, 11, 15])
def test_an_interrupt_keeps_the_work_when_checkpoints_come_by_steps(
    encoder: Path, reviews: Path, tmp_path: Path, step: int, best_epoch: bool
) -> None:
    chosen = options(encoder, reviews, best_epoch=best_epoch, save_steps=100, num_train_epochs=2)
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(step)])
    assert interrupted.value.checkpoint is not None
    run(tmp_path / "run", chosen, resume=True)
    run(tmp_path / "straight", chosen)
    check_same_outcome(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 29])
def test_a_run_that_crashes_goes_on_from_the_last_of_its_steps_that_were_saved(
    encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path, step: int
) -> None:
    chosen, folder = options(encoder, reviews, lora_dropout=0.1, save_merged=True, save_steps=5), tmp_path / "run"
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(folder, chosen, callbacks=[CrashAt(step)])
    assert last_whole_checkpoint(folder / run_folder.CHECKPOINTS).name == f"checkpoint-{step // 5 * 5}"
    run(folder, chosen, resume=True)
    check_same_outcome(folder, lora_run)


@pytest.mark.slow
def test_a_resumed_run_is_as_patient_as_it_was(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, num_train_epochs=12, patience=2, learning_rate=1e-9)
    run(tmp_path / "straight", chosen)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(27)])
    run(tmp_path / "run", chosen, resume=True)
    check_same_outcome(tmp_path / "run", tmp_path / "straight")


def test_a_loss_that_is_no_number_ends_the_run_without_a_result(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, problem="regression", label_column="score", learning_rate=1e30)
    with pytest.raises(RunError, match="lower the learning rate"):
        run(tmp_path / "run", chosen)
    assert not (tmp_path / "run" / run_folder.METRICS).exists()


def test_data_that_changed_its_classes_is_not_resumed(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.tsv"
    data.write_text((reviews / "train.tsv").read_text())
    chosen = options(encoder, reviews, data=str(data))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(3)])
    data.write_text(data.read_text().replace("praise", "applause"))
    with pytest.raises(DataError, match="'praise', which is none of 'applause', 'blame'"):
        run(tmp_path / "run", chosen, resume=True)
    with pytest.raises(RunError, match="other classes than the run"):
        run(tmp_path / "run", options(encoder, reviews, data=str(data), eval_data=str(data)), resume=True)


def test_a_head_that_the_checkpoint_brings_along_is_kept_only_for_the_same_labels(
    encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    run(tmp_path / "run", options(encoder, reviews, method="full", learning_rate=1e-3, num_train_epochs=1))
    tuned = str(tmp_path / "run" / run_folder.MODEL)
    stored = AutoModelForSequenceClassification.from_pretrained(tuned).classifier.weight
    for labels, kept in ((["blame", "praise"], True), (["praise", "blame"], False), (["no", "yes"], False)):
        assert torch.equal(encoders.load_encoder(tuned, labels).model.classifier.weight, stored) == kept


def test_pairs_are_trained_on_and_asked_for(encoder: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = ["a\tb\tsame"]
    for _ in range(64):
        first, second = rng.randrange(2), rng.randrange(2)
        lines.append(f"{sentence(rng, first)}\t{sentence(rng, second)}\t{'yes' if first == second else 'no'}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    columns = {"text_column": "a", "text_pair_column": "b", "label_column": "same"}
    run(tmp_path / "run", TrainOptions(model=str(encoder), data=str(tmp_path / "pairs.tsv"), num_train_epochs=1, **columns))
    opened = predictor.open_run(tmp_path / "run")
    assert opened.predict(["fine"], ["good"])[0][0] in ("yes", "no")
    with pytest.raises(DataError, match="takes pairs"):
        opened.predict(["fine"])
    assert 0 <= opened.evaluate(predictor.read_rows(opened.options, str(tmp_path / "pairs.tsv"), {}))["accuracy"] <= 1


def test_single_texts_are_not_mistaken_for_pairs(lora_run: Path) -> None:
    opened = predictor.open_run(lora_run)
    with pytest.raises(DataError, match="takes single texts"):
        opened.predict(["fine"], ["good"])
    with pytest.raises(DataError, match="no text"):
        opened.predict([])


@pytest.mark.parametrize(("length", "message"), [(161, "at most 160 tokens"), (2, "no text would be left")])
def test_a_length_that_the_model_cannot_take_is_refused(
    encoder: Path, reviews: Path, tmp_path: Path, length: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", options(encoder, reviews, max_length=length))


@pytest.mark.parametrize("file", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over(encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path, file: str) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(lora_run / run_folder.CHECKPOINTS, checkpoints)
    (checkpoints / "checkpoint-7.bak").mkdir()
    newest = last_whole_checkpoint(checkpoints)
    assert newest is not None
    older = checkpoints / "checkpoint-1"
    shutil.copytree(newest, older)
    (newest / file).write_bytes((newest / file).read_bytes()[:-30])
    passed = last_whole_checkpoint(checkpoints)
    assert passed is not None
    assert passed != newest


def test_a_checkpoint_cut_short_is_passed_over(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(folder, options(encoder, reviews), callbacks=[InterruptAt(15)])
    whole = last_whole_checkpoint(folder / run_folder.CHECKPOINTS)
    assert whole is not None
    cut = folder / run_folder.CHECKPOINTS / "checkpoint-99"
    cut.mkdir()
    (cut / "trainer_state.json").write_text((whole / "trainer_state.json").read_text()[:-40])
    assert last_whole_checkpoint(folder / run_folder.CHECKPOINTS) == whole


def test_a_second_interrupt_ends_at_once_and_leaves_no_half_written_folder(
    encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path / "run", options(encoder, reviews), callbacks=[InterruptAt(0), InterruptAt(0)])
    assert interrupted.value.checkpoint is None
    assert not (tmp_path / "run").exists()


def test_the_signal_handlers_are_given_back(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path / "run", options(encoder, reviews, num_train_epochs=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("part", ["", run_folder.ADAPTER])
def test_merging_a_run_into_the_files_of_its_base_gives_the_classifier_that_it_trained(
    part: str, encoder: Path, tmp_path: Path, lora_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(encoder), str(lora_run / part), "-o", str(tmp_path / "out"), "--check"]) == 0
    assert "The result is a BertForSequenceClassification" in capsys.readouterr().out
    trained = predictor.open_run(lora_run)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert merged.config.id2label == {0: "blame", 1: "praise"}
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, padding=True, return_tensors="pt")
    assert close(merged(**batch).logits.detach(), trained.logits(TEXTS), factor=64)
    loaded = encoders.load_encoder(str(tmp_path / "out"), ["blame", "praise"])
    assert not loaded.drawn


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    digest = hashlib.sha256
    return {
        path.relative_to(folder).as_posix(): digest(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class FailAt(TrainerCallback):
    """Lets the disk fail at the beginning of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise OSError(5, "Input/output error")


def test_a_finished_run_comes_back_when_the_one_that_replaces_it_fails_at_its_beginning(
    encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path
) -> None:
    shutil.copytree(lora_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(OSError, match="Input/output"):
        run(tmp_path / "run", options(encoder, reviews, num_train_epochs=1), overwrite=True, callbacks=[FailAt(1)])
    assert contents(tmp_path / "run") == before


def test_a_finished_run_waits_until_the_one_that_replaces_it_is_whole(
    encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(lora_run, folder)
    before = contents(folder)
    chosen = options(encoder, reviews, num_train_epochs=2)
    with pytest.raises(Interrupted) as stopped:
        run(folder, chosen, overwrite=True, callbacks=[InterruptAt(14)])
    assert stopped.value.checkpoint is not None
    assert contents(folder / ".replaced") == before
    run(folder, chosen, resume=True)
    assert not (folder / ".replaced").exists()
    assert json.loads((folder / run_folder.METRICS).read_text())["steps"] == 24


@pytest.mark.parametrize("place", ["thesis.tex", "adapter/thesis.tex", "checkpoints/data.csv", "merged/notes.md"])
def test_a_run_with_somebodys_file_in_it_is_not_replaced(
    place: str, encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path
) -> None:
    shutil.copytree(lora_run, tmp_path / "run")
    (tmp_path / "run" / place).write_text("precious")
    with pytest.raises(RunError, match=f"holds what no run wrote .{place}"):
        run(tmp_path / "run", options(encoder, reviews), overwrite=True)
    (tmp_path / "run" / place).unlink()
    (tmp_path / "run" / ".loralib.json").unlink()
    with pytest.raises(RunError, match="has no mark"):
        run(tmp_path / "run", options(encoder, reviews), overwrite=True)


def test_a_folder_in_use_is_left_alone_unless_overwrite(encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path) -> None:
    before = (lora_run / run_folder.METRICS).read_bytes()
    with pytest.raises(RunError, match="add --resume to go on with it, or --overwrite"):
        run(lora_run, options(encoder, reviews))
    with pytest.raises(RunError, match="finished"):
        run(lora_run, options(encoder, reviews), resume=True)
    with pytest.raises(RunError, match="no run to resume"):
        run(tmp_path / "new", options(encoder, reviews), resume=True)
    assert (lora_run / run_folder.METRICS).read_bytes() == before
    run(tmp_path / "run", options(encoder, reviews, num_train_epochs=1, method="full"))
    run(tmp_path / "run", options(encoder, reviews, num_train_epochs=1), overwrite=True)
    assert not (tmp_path / "run" / run_folder.MODEL).exists()


def test_a_damaged_or_foreign_adapter_is_refused_by_name(encoder: Path, reviews: Path, tmp_path: Path, lora_run: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(lora_run, broken)
    file = broken / run_folder.ADAPTER / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        predictor.open_run(broken)
    shutil.copytree(lora_run / run_folder.ADAPTER, broken / run_folder.ADAPTER, dirs_exist_ok=True)
    wide = lora.load(broken / run_folder.ADAPTER)
    name, update = next(iter(wide.layers.items()))
    stretched = lora.LoRAUpdate(torch.ones(4, 99), update.B, update.lora_alpha)
    lora.save(lora.Adapter(wide.config, {**wide.layers, name: stretched}, wide.tensors), broken / run_folder.ADAPTER)
    with pytest.raises(AttachError, match=r"\(4, 99\)"):
        predictor.open_run(broken)
    shutil.rmtree(broken / run_folder.ADAPTER)
    with pytest.raises(RunError, match="not finished"):
        predictor.open_run(broken)
