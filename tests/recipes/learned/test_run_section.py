"""The section on a run: curves of what was logged, samples and configuration, whatever a file holds."""

from pathlib import Path
from typing import Any

import pytest

from loralib.recipes.learned.page import rendered
from loralib.recipes.learned.run_section import run_section
from loralib.recipes.learned.subjects import Run, Subject
from loralib.recipes.options import TrainOptions
from pages import Page
from reported import random_adapter

HISTORY = [
    {"epoch": 0.5, "loss": 0.7},
    {"epoch": 1.0, "eval_loss": 0.6, "eval_accuracy": 0.5},
    {"epoch": 2.0, "eval_loss": 0.4, "eval_accuracy": 0.8},
]
SAMPLES = [
    {"step": 0, "answers": [{"prompt": "Hi", "answer": "<b>no</b>", "reference": "yes"}]},
    {"step": 9, "answers": [{"prompt": "Hi", "answer": "yes", "reference": "yes"}]},
]


def subject(metrics: Any, samples: Any = ()) -> Subject:
    options = TrainOptions.of({"model": "org/model", "data": "rows.tsv", "seed": 7})
    run = Run(Path("run"), options, metrics, samples, "model: <i>\n")
    return Subject("mine", Path("run"), random_adapter(2, 0), run)


def test_curves_samples_and_configuration() -> None:
    section = run_section(subject({"metric": "accuracy", "value": 0.8, "history": HISTORY}, SAMPLES))
    assert section is not None
    assert section.lead == "lora of org/model on rows, seed 7, accuracy 0.8000."
    losses, scores = section.galleries[0].pictures
    assert losses.caption == "Loss by epoch; the last evaluation loss is 0.400."
    assert [label for _, label in losses.legend] == ["training loss", "evaluation loss"]
    assert scores.caption == "accuracy by epoch, on the evaluation rows: from 0.500 to 0.800."
    samples, configuration = section.texts
    assert samples.text.splitlines() == ["prompt    Hi", "expected  yes", "before    <b>no</b>", "after     yes"]
    assert configuration.text == "model: <i>\n"
    page = rendered("t", [], [section])
    assert Page(page).problems == []
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize("samples", [[{"answers": 3}], [{"answers": [1]}], [{}], [{"answers": []}]])
def test_what_is_not_there_is_left_out(samples: Any) -> None:
    section = run_section(subject({}, samples))
    assert section is not None
    assert list(section.galleries) == []
    assert section.texts[-1].title == "Configuration"


def test_an_adapter_without_a_run_has_no_section() -> None:
    assert run_section(Subject("mine", Path("a"), random_adapter(2, 0))) is None
