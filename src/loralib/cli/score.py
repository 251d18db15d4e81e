"""`loralib score`: score generated text against references, next to the LoRA paper's figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from ..recipes.nlg.metrics.paper import FIGURES, MODELS, TASKS
from ..storage.json_text import as_json
from .parsing import OneSentenceParser

if TYPE_CHECKING:
    from rich.table import Table

    from ..recipes.nlg.metrics.files import Rows

LABELS = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "ter": "TER",
    "chrf": "chrF",
}
DIGITS = {"nist": 4, "cider": 4, "ter": 4}
WITHOUT_METEOR = (
    "METEOR is left out: it needs java and meteor-1.5.jar (--meteor-jar, METEOR_JAR, or pip install pycocoevalcap)."
)


def run(words: Sequence[str]) -> int:
    """Score; returns the exit code."""
    parsed = parser().parse_args(words)
    if parsed.references and parsed.data_dir:
        raise ConfigError("--references and --data-dir both say what to compare with; give one of them.")

    from rich.console import Console

    from ..recipes.nlg import scoring
    from ..recipes.nlg.metrics.by_sacrebleu import perl_line
    from ..recipes.nlg.metrics.files import read_predictions
    from ..train.rich_text import plain, say

    results, notes = [], []
    for file in _files(parsed.predictions):
        found = read_predictions(file)
        references, texts = _references(parsed, found), found.column("prediction") or ()
        rows = (parsed.task, texts, references.column("references") or (), references.column("category"))
        with Console(stderr=True).status(plain(f"Scoring {len(texts):,} predictions of {file} …")):
            metrics = scoring.score(*rows, parsed.meteor_jar, parsed.without)
            wanted = parsed.task in ("webnlg", "dart") and "bleu" not in parsed.without
            bleus = scoring.multi_bleus(*rows) if wanted else {}
        what = {"task": parsed.task, "predictions": found.source, "references": references.source, "rows": len(texts)}
        results.append({**what, "metrics": metrics})
        notes += [f"{_label(name)} of {file}, as multi-bleu.perl: {perl_line(bleu)}" for name, bleu in bleus.items()]
    result = _together(results, parsed.predictions)
    if parsed.output:
        _write(parsed.output, result)
    if parsed.json:
        print(as_json(result))
        return 0
    console = Console()
    console.print(_table(result))
    left_out = "meteor" in parsed.without or any(name.startswith("meteor") for name in result["metrics"])
    notes += [] if left_out else [WITHOUT_METEOR]
    notes += [f"Wrote {parsed.output}."] if parsed.output else []
    for note in notes:
        say(console, note)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib score",
        usage="TASK PREDICTIONS [options]",
        description="Score generated text against references, as the evaluations of E2E, WebNLG and DART do. Without "
        "--references and --data-dir, PREDICTIONS must be a .jsonl file that holds the references.",
        examples=(
            "loralib score e2e runs/e2e-lora",
            "loralib score any outputs.txt --references references.txt",
            "loralib score webnlg outputs.txt --data-dir webnlg --without ter",
        ),
    )
    parser.add_argument("task", metavar="TASK", choices=TASKS, help=f"task whose metrics to compute: {', '.join(TASKS)}")
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help=".txt, .tsv, .csv or .jsonl file (or .gz), or folder of a run, or of seeds, that generated the test set",
    )
    parser.add_argument(
        "--references",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="text files with one reference per line, or one .csv (mr, ref), .txt (input||text) or .jsonl file",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the task's own test data")
    parser.add_argument(
        "--by-order", action="store_true", help="pair predictions and references by position, even if both name their inputs"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=LABELS,
        metavar="METRIC",
        help=f"leave out a metric: {', '.join(LABELS)} (ter is the slowest)",
    )
    parser.add_argument(
        "--meteor-jar", type=Path, metavar="FILE", help="meteor-1.5.jar (default: METEOR_JAR, or pycocoevalcap)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the metrics to FILE, as JSON")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    return parser


def _files(path: Path) -> list[Path]:
    """The file itself, or what a run, or each seed of a folder of seeds, generated for the test set."""
    from ..recipes import run_folder

    if not path.is_dir():
        return [path]
    inside = [run / run_folder.GENERATED / "test.jsonl" for run in run_folder.runs_of(path)]
    for file in inside:
        if not file.is_file():
            raise DataError(f"{file} does not exist; first: loralib generate {path} --split test, or give a file.")
    return inside


def _together(results: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """One result as it is, or the mean of several and the standard deviation of their sample."""
    if len(results) == 1:
        return results[0]
    values = {name: [result["metrics"][name] for result in results] for name in results[0]["metrics"]}
    return {
        **results[0],
        "predictions": f"{folder}, the mean of {len(results)} seeds",
        "metrics": {name: statistics.fmean(of_seeds) for name, of_seeds in values.items()},
        "deviations": {name: statistics.stdev(of_seeds) for name, of_seeds in values.items()},
        "seeds": results,
    }


def _references(parsed: Any, predictions: "Rows") -> "Rows":
    from ..recipes.nlg.metrics.files import matched, of_task, read_references

    if parsed.references:
        return matched(predictions, [read_references(parsed.references)], parsed.by_order)
    if parsed.data_dir:
        return matched(predictions, of_task(parsed.task, parsed.data_dir), parsed.by_order)
    if predictions.column("references") is None:
        raise ConfigError(f"{predictions.source} has no references in it; give --references, or --data-dir.")
    return predictions


def _write(path: Path, result: dict[str, Any]) -> None:
    from ..storage.atomic import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (as_json(result, indent=2, ensure_ascii=False) + "\n").encode())


def _table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    from ..train.rich_text import plain

    task, printed = found["task"], FIGURES[found["task"]]
    title = plain(f"{found['rows']:,} predictions of {found['predictions']}")
    table = Table("metric", "value", *([f"paper: LoRA,\n{model}" for model in MODELS] if printed else []), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in found["metrics"].items():
        spread = f" ± {_shown(task, name, found['deviations'][name])}" if "deviations" in found else ""
        table.add_row(_label(name), _shown(task, name, value) + spread, *(printed.get(name, ("", "")) if printed else ()))
    return table


def _label(name: str) -> str:
    metric, part = _split(name)
    return LABELS[metric] + (f" ({part})" if part else "")


def _split(name: str) -> tuple[str, str]:
    metric = next(metric for metric in LABELS if name == metric or name.startswith(metric + "_"))
    return metric, name[len(metric) + 1 :]


def _shown(task: str, name: str, value: float) -> str:
    metric, _ = _split(name)
    digits = 4 if metric == "meteor" and task != "e2e" else DIGITS.get(metric, 2)
    return f"{value:.{digits}f}"
