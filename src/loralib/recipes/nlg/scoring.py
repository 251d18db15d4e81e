"""The score of generated text on a task: which metrics, over which words, in which units.

- `e2e`: as E2E's own scripts: BLEU and NIST of mteval-v13a; METEOR, ROUGE-L and CIDEr over words without punctuation. BLEU,
  METEOR and ROUGE-L are in hundredths, NIST and CIDEr as they are.
- `webnlg`, `dart`: as WebNLG's scripts, over tokenised text in lower case (for WebNLG without accents), which is made of text
  that is not: BLEU of multi-bleu in hundredths; METEOR, and TER as the LoRA paper takes it, as shares of 1. No more than the
  first six references of a row are taken, as the paper does. WebNLG's are for all rows, and the seen and the unseen apart.
  Blank references, which only files of lines have, count as those scripts count them.
- `any`: sacrebleu's BLEU (case counts) and chrF, and ROUGE-L, in hundredths; METEOR and sacrebleu's TER as shares of 1.

These are the units in which the paper prints them. METEOR is there only where its program is (`metrics.meteor`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from sacrebleu.metrics.bleu import BLEUScore

from ...errors import ConfigError, DataError
from .metrics.by_sacrebleu import cased_bleu, chrf, corpus_ter, mteval, multi_bleu, row_ters
from .metrics.meteor import find_jar, meteor
from .metrics.of_e2e import cider, nist, rouge_l
from .metrics.paper import FIGURES, TASKS
from .metrics.rows import References, check, given
from .metrics.tokens import tokenised, treebank_words

CATEGORIES = ("unseen", "seen")
MOST_REFERENCES = 6
METRICS: Mapping[str, Mapping[str, Callable[[Sequence[str], References], float]]] = {
    "e2e": {"bleu": mteval, "nist": nist, "rouge_l": rouge_l, "cider": cider},
    "any": {"bleu": cased_bleu, "chrf": chrf, "rouge_l": rouge_l, "ter": corpus_ter},
}

T = TypeVar("T")
Categories = Sequence[str | None] | None


def score(
    task: str,
    predictions: Sequence[str],
    references: References,
    categories: Categories = None,
    meteor_jar: Path | None = None,
    without: Collection[str] = (),
) -> dict[str, float]:
    """The metrics of a task by name: of one prediction for each row of references, blank ones being none.

    categories: "seen" or "unseen" for each row, which WebNLG's metrics end in (`bleu_seen`, `bleu_unseen`, `bleu_all`).
    without: metrics to leave out, such as "ter", which takes longest. meteor_jar: METEOR's program, if not where
    `metrics.meteor` looks for it; METEOR is left out when it is nowhere. Raises `ConfigError` for an unknown task or a program
    that is missing, and `DataError` for rows that do not fit.

    >>> round(score("any", ["The Mill is a pub."], [["The Mill is a pub.", "A pub is The Mill."]])["bleu"], 2)
    100.0
    """
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is none of {', '.join(TASKS)}; choose one.")
    check(predictions, references)
    jar = None if "meteor" in without else find_jar(meteor_jar)
    if task in METRICS:
        chosen = {name: metric for name, metric in METRICS[task].items() if name not in without}
        found = {name: metric(predictions, references) for name, metric in chosen.items()}
        if jar and task == "e2e":
            found["meteor"] = 100 * meteor(*_each(_without_punctuation, predictions, references), jar)
        elif jar:
            found["meteor"] = meteor(predictions, references, jar)
    else:
        found = _in_parts(task, predictions, references, categories, jar, without)
    return {name: found[name] for name in (*FIGURES[task], *found) if name in found}


def _in_parts(
    task: str,
    predictions: Sequence[str],
    references: References,
    categories: Categories,
    jar: Path | None,
    without: Collection[str],
) -> dict[str, float]:
    texts, targets = prepared(task, predictions, references)
    parts = _parts(task, len(texts), categories)
    ters = None if "ter" in without else row_ters(texts, targets)  # slow, and a row's is the same in every part
    found: dict[str, float] = {}
    for part, rows in parts.items():
        those = _of(rows, texts), _of(rows, targets)
        found |= {f"bleu{part}": multi_bleu(*those).score} if "bleu" not in without else {}
        found |= {f"ter{part}": fmean(_of(rows, ters))} if ters is not None else {}
        found |= {f"meteor{part}": meteor(*those, jar)} if jar else {}
    return found


def multi_bleus(
    task: str, predictions: Sequence[str], references: References, categories: Categories = None
) -> dict[str, BLEUScore]:
    """multi-bleu.perl's score for WebNLG or DART, by the names that `score` gives BLEU; errors as there."""
    texts, targets = prepared(task, predictions, references)
    parts = _parts(task, len(texts), categories)
    return {f"bleu{part}": multi_bleu(_of(rows, texts), _of(rows, targets)) for part, rows in parts.items()}


def prepared(task: str, predictions: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    """Predictions and references as WebNLG's scripts want them: tokenised, and no more than six references in a row.

    >>> prepared("webnlg", ["It is in Málaga."], [["In Málaga."]])
    (['it is in malaga .'], [['in malaga .']])
    """
    check(predictions, references)
    taken = [row if len(row) <= MOST_REFERENCES else given(row)[:MOST_REFERENCES] for row in references]
    return _each(lambda text: tokenised(text, plain=task == "webnlg"), predictions, taken)


def _without_punctuation(text: str) -> str:
    return " ".join(treebank_words(text))


def _each(
    change: Callable[[str], str], predictions: Sequence[str], references: References
) -> tuple[list[str], list[list[str]]]:
    return [change(text) for text in predictions], [[change(text) for text in row] for row in references]


def _parts(task: str, rows: int, categories: Categories) -> dict[str, Sequence[int]]:
    """The rows of each part, by what the names of its metrics end in."""
    if task != "webnlg":
        return {"": range(rows)}
    if categories is None:
        return {"_all": range(rows)}
    if len(categories) != rows:
        raise DataError(f"there are {len(categories):,} categories and {rows:,} predictions; give one category an input.")
    for number, category in enumerate(categories, 1):
        if category not in (*CATEGORIES, None):
            raise DataError(f"row {number} is of the category {category!r:.40}; expected {' or '.join(CATEGORIES)}, or none.")
    parts = {f"_{name}": [i for i, category in enumerate(categories) if category == name] for name in CATEGORIES}
    return {name: found for name, found in parts.items() if found} | {"_all": range(rows)}


def _of(rows: Sequence[int], values: Sequence[T]) -> list[T]:
    return [values[i] for i in rows]
