"""The page of a study: its table, its figure and its sentences, and what the LoRA adapters of its runs learned."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from ..errors import LoRAError
from ..formats import load
from ..storage.atomic import write_atomically
from . import run_folder, study_report
from .learned.base import base_weights
from .learned.findings import Findings, findings
from .learned.measured import measure
from .learned.page import Gallery, Picture, Section, rendered
from .learned.sections import sections
from .learned.subjects import Subject, run_of
from .learned.tables import Table
from .studies import PAGE, PLOTS, RUNS, TABLE, Study
from .study_report import Line
from .task import Method

_SEEDS = 2  # of a cell: their adapters are on the page
_FILES = f"The numbers of all runs are in {TABLE} next to this page, the runs with their adapters in {RUNS}/."


def write(
    folder: Path,
    study: Study,
    lines: Sequence[Line],
    title: str,
    model: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the page of a study into `folder`, where its figure is, and return its path.

    model: what the runs call their base model. The adapters of the first two seeds of each cell
    are on the page: compared with each other, and the first with the second of the last cell, or of the last one with the same
    matrices and rule. What cannot be computed of them is said on the page.
    """
    said = [Findings("The study", study_report.findings(study, lines))]
    shown = [_study(lines, title, folder / PLOTS[1])]
    try:
        names = _names([line for line in lines if _has_adapters(line)])
        cells = {line.cell.name: _subjects(line, names.get(line.cell.name), folder / RUNS) for line in lines}
        found = [subject for subjects in cells.values() for subject in subjects]
        curves = [[cells[line.cell.name] for line in curve] for curve in study_report.curves(study, lines).values()]
        pairs = {(a.name, b.name): (a, b) for curve in curves for a, b in _pairs(curve)}
        if found:
            measured = measure(found, base=base_weights(model), both=list(pairs.values()), progress=progress)
            said += findings(measured)
            shown += sections(measured)
    except LoRAError as error:  # the runs took hours, and their table and figure are good without it
        said.append(Findings("Left out", [f"What the adapters learned: {error}"]))
    write_atomically(folder / PAGE, rendered(title, said, shown, _FILES).encode())
    return folder / PAGE


def _study(lines: Sequence[Line], title: str, figure: Path) -> Section:
    first = lines[0]
    columns = (*first.cell.varied, "LoRA parameters", "trained parameters", first.outcome.metric, "± over seeds", "loss")
    rows = [
        [
            *line.cell.varied.values(),
            line.outcome.results[0]["parameters"]["lora"],
            line.outcome.trained,
            line.outcome.mean,
            line.outcome.spread if len(line.outcome.results) > 1 else None,
            line.loss,
        ]
        for line in lines
    ]
    encoded = base64.b64encode(figure.read_bytes()).decode()
    alternative = f"{title}: {first.outcome.metric} and loss of each cell, as in the table"
    picture = Markup('<img class="wide" src="data:image/svg+xml;base64,{}" alt="{}">').format(encoded, alternative)
    table = Table("study", "Means over the seeds", columns, rows).without_empty()
    caption = f"{first.outcome.metric} on the {first.outcome.scored_on} rows, and the loss on the evaluation rows."
    return Section("The study", "", [Gallery("", [Picture(picture, caption)])], [table])


def _has_adapters(line: Line) -> bool:
    method: Method = line.cell.options.get("method", "lora")
    return method == "lora"


def _names(lines: Sequence[Line]) -> dict[str, str]:
    """What the cells are called, by what they differ in."""
    varied = [line.cell.varied for line in lines]
    own = [key for key in (varied[0] if varied else ()) if len({values[key] for values in varied}) > 1]
    return {line.cell.name: replace(line.cell, varied={key: line.cell.varied[key] for key in own}).title for line in lines}


def _subjects(line: Line, name: str | None, runs: Path) -> list[Subject]:
    """The adapters of a cell's first seeds; none of a method without."""
    if name is None:
        return []
    found = []
    for result in line.outcome.results[:_SEEDS]:
        run = runs / line.cell.name / f"seed-{result['seed']}"
        title = ", ".join(filter(None, (name, f"seed {result['seed']}")))
        found.append(Subject(title, run, load(run / run_folder.ADAPTER), run_of(run)))
    return found


def _pairs(curve: Sequence[Sequence[Subject]]) -> Iterator[tuple[Subject, Subject]]:
    """The two seeds of each cell, and the first of each with the second of the last cell, where they share layers."""
    twice = [subjects for subjects in curve if len(subjects) == _SEEDS]
    for one, other in twice:
        yield one, other
        last = twice[-1][1]
        if last is not other and one.adapter.layers.keys() & last.adapter.layers.keys():
            yield one, last
