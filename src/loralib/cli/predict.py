"""`loralib predict`: classify new text with a run, or a GLUE task's test set for its server."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError
from ..printing import printable
from ..storage.json_text import as_json
from .offline import offline_if_unreachable
from .parsing import OneSentenceParser, add_run, add_trust, to_path
from .terminal import say

if TYPE_CHECKING:
    from ..recipes.nlu.predictor import Run


def run(words: Sequence[str]) -> int:
    """Predict; returns the exit code."""
    parsed = parser().parse_intermixed_args(words)
    if parsed.split:
        if parsed.texts or parsed.pair or parsed.json:
            raise ConfigError("--split predicts a test set into files; leave out texts, --pair and --json.")
        return _submit(parsed.run, parsed.data_dir, parsed.output, parsed.trust_remote_code)
    if parsed.data_dir or parsed.output:
        raise ConfigError("--data-dir and --output belong to --split test; add it, or leave them out.")
    texts = [_utf8(text) for text in parsed.texts] or _lines()
    pairs = None if parsed.pair is None else [_utf8(text) for text in parsed.pair]
    if not texts:
        raise DataError("there is no text to classify; give it as words in quotes, or a line each on standard input.")

    opened = _open(parsed.run, parsed.trust_remote_code)
    for text, (prediction, probability) in zip(texts, opened.predict(texts, pairs), strict=True):
        if parsed.json:
            print(as_json({"text": text, "prediction": prediction, "probability": probability}))
        else:
            outcome = f"{prediction:.4f}" if probability is None else f"{printable(str(prediction))} ({probability:.2f})"
            say(f"{outcome}  {printable(text)}")
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib predict",
        usage="RUN [TEXT ...] [options]",
        description="Classify (or score) new text with the model of a run.",
        examples=(
            'loralib predict runs/mine "It did what it said."',
            "loralib predict runs/mine --json < texts.txt",
            "loralib predict runs/mrpc-lora --split test -o submission",
        ),
    )
    add_run(made)
    made.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: the lines of standard input)")
    made.add_argument("--pair", action="append", metavar="TEXT", help="second text, once for each text (tasks on pairs)")
    made.add_argument("--json", action="store_true", help="print one JSON object per line")
    made.add_argument("--split", choices=["test"], help="instead of texts, the test set of the run's GLUE task, for its server")
    made.add_argument("--data-dir", type=to_path, metavar="DIR", help="with --split: folder of GLUE (default: as in training)")
    made.add_argument(
        "-o", "--output", type=to_path, metavar="DIR", help="with --split: folder to write (default: RUN/submission)"
    )
    add_trust(made)
    return made


def _open(folder: Path, trust_remote_code: bool) -> "Run":
    from ..recipes import run_folder

    with offline_if_unreachable(run_folder.read_options(folder)[0].model):
        from ..recipes.nlu import predictor

        return predictor.open_run(folder, trust_remote_code)


def _submit(run: Path, data_dir: Path | None, output: Path | None, trust_remote_code: bool) -> int:
    """Predict the test sets of the run's task, and write the files that GLUE's server takes."""
    from ..recipes import run_folder
    from ..recipes.nlu import submission
    from ..recipes.nlu.glue import read_glue_inputs
    from ..recipes.nlu.inputs import texts
    from ..recipes.records import source

    options, _ = run_folder.read_options(run)
    if not options.task:
        raise ConfigError(
            f"the run in {run} was trained on {options.data}, not on a GLUE task, and has no test set to predict."
        )
    where, folder = data_dir or options.data_dir, output or run / run_folder.SUBMISSION
    splits = submission.splits_of(options.task)
    if where and not (Path(where) / "diagnostic" / "diagnostic.tsv").is_file():
        splits.pop("AX", None)
    with offline_if_unreachable(options.model, None if where else options.task):
        inputs = {name: read_glue_inputs(options.task, split, where) for name, split in splits.items()}
        opened = _open(run, trust_remote_code)
    for name, rows in inputs.items():
        predictions = [prediction for prediction, _ in opened.predict(*texts(rows))]
        wrote = submission.write(folder, name, predictions)
        say(printable(f"Wrote {wrote}: {len(rows):,} rows of {source(rows)}."))
    return 0


def _lines() -> list[str]:
    if sys.stdin.isatty():
        print("Reading texts from the terminal, one a line; Ctrl-D ends.", file=sys.stderr)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    return [_utf8(line.rstrip("\r\n")) for line in sys.stdin]


def _utf8(text: str) -> str:
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"the text {text[:40]!r} is not UTF-8; convert it first.") from None
