"""A finished run, used: what it says of texts is what its model computes of them, and other inputs are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loralib.errors import DataError
from loralib.recipes import records
from loralib.recipes.nlu import predictor
from loralib.recipes.options import TrainOptions
from recipes.conftest import labelled

TEXTS = ["the lamp was good", "the soup was awful and broken and very dull", "fine", "a film"]


@pytest.fixture(scope="module")
def opened(untrained_run: Path) -> predictor.Run:
    return predictor.open_run(untrained_run)


def outputs(run: predictor.Run, texts: list[str]) -> torch.Tensor:
    """The model's, text by text."""
    with torch.no_grad():
        return torch.cat([run.model(**run.tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("size", [1, 3, 64])
def test_outputs_do_not_depend_on_how_texts_are_put_together(size: int, opened: predictor.Run) -> None:
    run = replace(opened, options=opened.options.updated({"per_device_eval_batch_size": size}))
    assert torch.allclose(run.logits(TEXTS), outputs(run, TEXTS), atol=1e-5)


def test_the_most_likely_class_comes_with_its_probability(opened: predictor.Run) -> None:
    shares = outputs(opened, TEXTS).softmax(-1)
    for (label, probability), share in zip(opened.predict(TEXTS), shares, strict=True):
        assert label == ["blame", "praise"][int(share.argmax())]
        assert probability == pytest.approx(float(share.max()), abs=1e-5)


def test_a_regression_gives_scores_without_probabilities(opened: predictor.Run) -> None:
    run = replace(opened, labels=None)
    scores = outputs(run, TEXTS)[:, 0].tolist()
    assert run.predict(TEXTS) == [(pytest.approx(score, abs=1e-5), None) for score in scores]


def test_the_metrics_are_those_of_the_predictions(opened: predictor.Run) -> None:
    predicted = [str(label) for label, _ in opened.predict(TEXTS)]
    other = {"blame": "praise", "praise": "blame"}
    assert opened.evaluate(labelled("x", TEXTS, predicted))["accuracy"] == 1
    assert opened.evaluate(labelled("x", TEXTS, [other[predicted[0]], *predicted[1:]]))["accuracy"] == 0.75
    with pytest.raises(DataError, match="'boring', which is none of 'blame', 'praise'"):
        opened.evaluate(labelled("x", TEXTS[:1], ["boring"]))


def test_inputs_of_another_kind_are_refused(opened: predictor.Run) -> None:
    paired = replace(opened, options=opened.options.updated({"text_pair_column": "b"}))
    for run, texts, pairs, message in (
        (opened, [], None, "there is no text"),
        (opened, ["a"], ["b"], "takes single texts, no pairs"),
        (paired, ["a"], None, "takes pairs: give each text its second one"),
        (paired, ["a", "b"], ["c"], "2 texts but 1 second texts; give one for each"),
    ):
        with pytest.raises(DataError, match=message):
            run.predict(texts, pairs)
    assert paired.logits(["fine"], ["good"]).shape == (1, 2)


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m", "data": "d.tsv"} | values)


def test_rows_are_read_by_the_columns_of_the_training_unless_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\tother\nfine\tpraise\tx\n")
    path = str(tmp_path / "a.tsv")
    assert predictor.read_rows(options(), path, {})["label"][:] == ["praise"]
    assert predictor.read_rows(options(), path, {"label_column": "other", "text_column": None})["label"][:] == ["x"]
    assert predictor.read_rows(options(label_column="other"), path, {})["label"][:] == ["x"]
    assert records.source(predictor.read_rows(options(), path, {})) == path


def test_rows_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data 'imdb' is not a \.tsv, \.csv, \.jsonl file"):
        predictor.read_rows(options(), "imdb", {})
    (tmp_path / "a.tsv").write_text("a\tb\tlabel\nx\ty\tz\n")
    with pytest.raises(DataError, match="the run takes pairs: name the column of the second text"):
        predictor.read_rows(options(task="mrpc", data=None), str(tmp_path / "a.tsv"), {"text_column": "a"})
    named = {"text_column": "a", "text_pair_column": "b"}
    assert predictor.read_rows(options(task="mrpc", data=None), str(tmp_path / "a.tsv"), named)["pair"][:] == ["y"]
