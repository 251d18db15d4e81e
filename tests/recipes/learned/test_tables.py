"""Tables: the library's numbers, in an order that people expect, as CSV that is read back."""

import csv
import io
import math

import pytest

from loralib.recipes.learned import tables
from loralib.recipes.learned.tables import Table
from reported import NAMES, along, analysed, random_adapter


def column(table: Table, name: str) -> list[object]:
    return [row[list(table.columns).index(name)] for row in table.rows]


def test_layers_of_a_role_stand_together_layer_10_after_layer_1() -> None:
    found = tables.spectra(analysed(random_adapter(2, 0)))
    blocks = ("0", "1", "10")
    assert column(found, "layer") == [f"encoder.layer.{i}.attention.{kind}" for kind in ("query", "value") for i in blocks]
    assert column(found, "role") == ["query"] * 3 + ["value"] * 3


def test_spectra_and_overlap_say_planted_numbers() -> None:
    measured = analysed(along(0, 1, strength=(3.0, 4.0)), along(0, strength=(2.0,)))
    spectra = tables.spectra(measured)
    assert column(spectra, "‖ΔW‖") == pytest.approx([5.0, 2.0])
    assert column(spectra, "σ₁") == pytest.approx([4.0, 2.0])
    assert column(spectra, "90 % in") == [2, 1]
    overlap = tables.overlap(measured)
    assert column(overlap, "first") == ["two"]  # of the lower rank
    assert column(overlap, "cosine") == pytest.approx([0.6])


def test_all_pairs_have_a_row_with_means() -> None:
    found = tables.pairs(analysed(along(0, 1), along(0, 2), along(3, 4)))
    assert column(found, "φ(1, 1)") == pytest.approx([1.0, 0.0, 0.0])
    assert column(found, "φ of all") == pytest.approx([0.5, 0.0, 0.0])
    assert column(found, "chance of all") == pytest.approx([0.25] * 3)


def test_every_row_has_a_cell_for_each_column_and_csv_is_read_back() -> None:
    measured = analysed(random_adapter(2, 0), random_adapter(3, 1))
    made = tables.tables(measured)
    assert [table.name for table in made] == ["adapters", "pairs", "spectra", "similarity", "overlap"]
    for table in [*made, tables.in_short(measured, measured.pairs[0])]:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert len(set(table.columns)) == len(table.columns)
        read = list(csv.reader(io.StringIO(table.as_csv())))
        assert read[0] == list(table.columns)
        assert len(read) == len(table.rows) + 1
    assert len(tables.spectra(measured).rows) == 2 * len(NAMES)


def test_a_zero_update_has_empty_cells() -> None:
    measured = analysed(along(0, strength=(0.0,)), along(1))
    [row, _] = tables.spectra(measured).rows
    assert row[4:] == [0.0, None, None, None, None, None]
    assert tables.similarity(measured).rows == []
    assert tables.in_short(measured, measured.pairs[0]).rows[0][2] is None


def test_what_is_not_finite_is_empty() -> None:
    assert [tables.finite(value) for value in (1.0, math.nan, math.inf)] == [1.0, None, None]
