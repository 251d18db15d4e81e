"""The cells of a study, trained: each by its method, with the options that all share and its own; and whether the model is one
for these methods, found before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..train.prefix import check_takes_prefix
from . import grid, paper_models
from .biases import train_biases
from .options import TrainOptions
from .studies import Cell
from .study_report import Line
from .task import Method


def train_study(
    cells: Sequence[Cell],
    shared: Mapping[str, Any],
    own: Mapping[Method, Mapping[str, Any]],
    folder: Path,
    seeds: Sequence[int],
    train: grid.Train,
    on_progress: Callable[[int, int, Path], None] = lambda number, count, run: None,
) -> list[Line]:
    """Train all cells with all seeds, into FOLDER/CELL/seed-N, and return what came out.

    shared: options for all, as `TrainOptions`; those that do not act with a cell's method are left out. own: by method, what it
    has of its own, such as a learning rate; a cell's own options come after. train, on_progress: as `grid.train_grid` has them.
    """
    planned = {}
    for cell in cells:
        method: Method = cell.options.get("method", "lora")
        planned[cell.name] = grid.of_method(shared, method, {**own.get(method, {}), **cell.options})
    outcomes = grid.train_grid(planned, folder, seeds, train, on_progress)
    return [Line(cell, outcome) for cell, outcome in zip(cells, outcomes, strict=True)]


def check_methods(options: TrainOptions, methods: Sequence[Method]) -> None:
    """`ConfigError` where the model of a run, built without its weights, has no biases for BitFit or takes no prefix."""
    if not {"bitfit", "prefix"} & set(methods):
        return
    causal = options.kind not in ("classification", "regression")
    shape = paper_models.build(options.model or "", ["0", "1"], options.trust_remote_code, causal=causal)
    if "prefix" in methods:
        check_takes_prefix(shape.model)
    if "bitfit" in methods:
        train_biases(shape.model, shape.head)
