"""The cells of a study are those of the paper's tables, and differ in what the study varies alone."""

import math
from typing import Any

import pytest

from loralib.errors import ConfigError
from loralib.recipes import studies
from loralib.recipes.options import TrainOptions
from loralib.recipes.studies import Cell, of_matrices, of_ranks, of_rows, read_set

BASE = {"model": "m", "data": "d.tsv"}
OPTIONS = TrainOptions.of(BASE | {"batch_size": 20, "num_train_epochs": 3})


def made(cell: Cell) -> TrainOptions:
    return TrainOptions.of({**BASE, **cell.options})


def test_the_sets_are_those_of_table_5_and_two_more() -> None:
    cells = of_matrices({matrices: i + 1 for i, matrices in enumerate(studies.MATRICES)})
    roles = [made(cell).roles for cell in cells[:-1]]
    assert [len(of_cell) for of_cell in roles] == [1, 1, 1, 1, 2, 2, 4, 1]
    assert roles[-1] == ["mlp"]
    assert made(cells[-1]).lora.target_modules == "all-linear"
    assert [made(cell).lora.r for cell in cells] == list(range(1, 10))
    assert len({cell.name for cell in cells}) == len(cells)
    assert cells[5].title == "query,value r=6"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("q", "query"), ("q, v", "query,value"), ("mlp,o", "mlp,output"), ("all", "all-linear"), ("all-linear", "all-linear")],
)
def test_sets_may_be_written_short(text: str, expected: str) -> None:
    assert read_set(text) == expected


@pytest.mark.parametrize("text", ["x", "", "q,,v", "all,q", "query value"])
def test_what_is_no_set_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--sets .* is none of query, key, value, output, mlp"):
        read_set(text)


def test_ranks_under_both_rules_share_what_is_the_same() -> None:
    cells = of_ranks(["query,value", "mlp"], [1, 4], ["paper", "rslora"])
    found = [(cell.varied["matrices"], cell.varied["rule"], cell.varied["r"], made(cell).lora.use_rslora) for cell in cells]
    assert found[:3] == [
        ("query,value", "both", 1, False),
        ("query,value", "paper", 4, False),
        ("query,value", "rslora", 4, True),
    ]
    assert len(found) == 6
    assert len({cell.name for cell in cells}) == 6
    alphas = {made(cell).lora.lora_alpha for cell in cells}
    assert len(alphas) == 1  # the paper's rule: one for all ranks
    (alone,) = of_ranks(["mlp"], [1], ["rslora"])
    assert (alone.varied["rule"], made(alone).lora.use_rslora) == ("rslora", True)


def test_few_rows_are_trained_on_for_more_epochs() -> None:
    cells = of_rows(["lora", "full"], [100, 1000, 10_000], OPTIONS, available=2500, least_steps=200)
    found = [
        (cell.varied["rows"], cell.varied["method"], made(cell).max_train_rows, made(cell).num_train_epochs) for cell in cells
    ]
    assert found == [
        (100, "lora", 100, 40),
        (100, "full", 100, 40),
        (1000, "lora", 1000, 4),
        (1000, "full", 1000, 4),
        ("all", "lora", None, 3),
        ("all", "full", None, 3),
    ]
    for cell in cells:
        rows = made(cell).max_train_rows or 2500
        assert math.ceil(rows / 20) * made(cell).num_train_epochs >= 200
    plain = of_rows(["lora"], [100], OPTIONS, available=2500, least_steps=0)
    assert {made(cell).num_train_epochs for cell in plain} == {3}


@pytest.mark.parametrize("counts", [[100], [100, 100], [100, 500], []])
def test_numbers_that_are_not_there_are_left_out_and_all_is_last(counts: list[int]) -> None:
    cells = of_rows(["lora"], counts, OPTIONS, available=100)
    assert [cell.varied["rows"] for cell in cells] == ["all"]


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_study_says_which_options_it_chooses(study: Any) -> None:
    known = OPTIONS.flat().keys()
    assert set(studies.CHOSEN[study]) <= known


def test_a_cell_has_a_title_for_sentences() -> None:
    assert Cell("a", {"rows": 1000, "method": "full"}, {}).title == "rows=1,000 full"
    assert Cell("a", {"rows": "all", "method": "full"}, {}).title == "all full"
