"""`loralib evaluate`: score a run on labelled text."""

from collections.abc import Sequence

from ..storage.json_text import as_json
from .offline import hub_names, offline_if_unreachable
from .parsing import OneSentenceParser, add_run, add_trust


def run(words: Sequence[str]) -> int:
    """Evaluate; returns the exit code."""
    parsed = parser().parse_args(words)

    from rich.console import Console
    from rich.table import Table

    from ..recipes import run_folder
    from ..recipes.records import source
    from ..train.rich_text import plain

    with offline_if_unreachable(*hub_names(run_folder.read_options(parsed.run)[0])):
        from ..recipes.nlu import predictor

        options, _ = predictor.Run.options_of(parsed.run)
        data = predictor.read_rows(options, parsed.data, vars(parsed))
        metrics = predictor.open_run(parsed.run, parsed.trust_remote_code).evaluate(data)
    if parsed.json:
        print(as_json({"data": parsed.data, "rows": len(data), **metrics}))
        return 0
    table = Table("metric", "value", title=plain(f"{len(data):,} rows of {source(data)}"))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib evaluate",
        usage="RUN --data FILE [options]",
        description="Score the model of a run on labelled text.",
        examples=("loralib evaluate runs/mine --data more.tsv", "loralib evaluate runs/mnli-lora --data dev_mismatched --json"),
    )
    add_run(made)
    made.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a .tsv, .csv or .jsonl file (or .gz); for a GLUE task also dev, or dev_mismatched of MNLI",
    )
    made.add_argument("--text-column", metavar="NAME", help="column with the text (default: as in training)")
    made.add_argument("--text-pair-column", metavar="NAME", help="column with the second text (default: as in training)")
    made.add_argument("--label-column", metavar="NAME", help="column with the label (default: as in training)")
    made.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_trust(made)
    return made
