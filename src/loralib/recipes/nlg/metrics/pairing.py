"""Which references belong to which predictions: row by row, and where both say their inputs, by those.

Predictions and references that stand in files of their own fit only by their order, which nothing can check. Where both name
their inputs, in the same form, they are paired by them, whatever their order.
"""

from collections.abc import Sequence
from pathlib import Path

from ....errors import DataError
from ...records import source
from ..examples import Example, grouped
from ..tasks import TASKS, read_split
from .files import Predictions, ReferenceRows, read_references

OFFICIAL_E2E = "testset_w_refs.csv"


def of_task(task: str, data_dir: Path) -> list[ReferenceRows]:
    """The references of a task's test set in or below a folder: as it stands, and with equal inputs made one.

    For E2E the published file is preferred, since the outputs of other systems are scored with it. Raises `DataError` for a
    task that has no test set of its own, or a folder without it.
    """
    if task not in TASKS:
        raise DataError(f"the task {task!r} has no test set of its own, so --data-dir cannot say it; give --references.")
    official = [path for path in (data_dir / "e2e" / OFFICIAL_E2E, data_dir / OFFICIAL_E2E) if path.is_file()]
    if task == "e2e" and official:
        return [read_references(official[:1])]
    data = read_split(task, "test", data_dir)
    rows: list[Example] = data.to_list()
    return [_of_rows(source(data), found) for found in (rows, grouped(rows))]


def _of_rows(source: str, rows: Sequence[Example]) -> ReferenceRows:
    categories = [row["category"] for row in rows]
    texts, contexts = [row["references"] for row in rows], [row["context"] for row in rows]
    return ReferenceRows(source, texts, categories if any(categories) else None, contexts)


def matched(predictions: Predictions, offered: Sequence[ReferenceRows]) -> ReferenceRows:
    """The first of the references offered that has as many rows as there are predictions, in the order of the predictions.

    Raises `DataError` when none has, or when the inputs say that a prediction answers another row's.
    """
    rows = len(predictions.texts)
    for references in offered:
        if len(references.texts) == rows:
            return _ordered(predictions, references)
    counts = " or ".join(f"{n:,}" for n in dict.fromkeys(len(references.texts) for references in offered))
    raise DataError(
        f"{predictions.source} has {rows:,} predictions, but {offered[0].source} has references for {counts} inputs; "
        "give one prediction an input."
    )


def _ordered(predictions: Predictions, references: ReferenceRows) -> ReferenceRows:
    asked, known = predictions.contexts, references.contexts
    if asked is None or known is None or asked == known or not set(asked) & set(known):
        return references
    places = {context: i for i, context in enumerate(known)}
    if len(places) < len(known) or sorted(asked) != sorted(known):
        first = next(i for i, (a, b) in enumerate(zip(asked, known, strict=True)) if a != b)
        raise DataError(
            f"{predictions.source}, row {first + 1}, answers {asked[first]!r:.80}, but the references are those of "
            f"{known[first]!r:.80} ({references.source}); bring the predictions into their order."
        )
    order = [places[context] for context in asked]
    categories = references.categories and [references.categories[i] for i in order]
    return ReferenceRows(references.source, [references.texts[i] for i in order], categories, asked)
