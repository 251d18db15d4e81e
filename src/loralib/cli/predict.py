"""`loralib predict`: classify new text with a run."""

import argparse
import json
import sys
from collections.abc import Sequence

from ..errors import DataError
from .parsing import add_run


def run(words: Sequence[str]) -> int:
    """Predict; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="loralib predict", description="Classify (or score) new text with the model of a run."
    )
    add_run(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text each (default: a line each from standard input)")
    parser.add_argument(
        "--pair", action="append", metavar="TEXT", help="the second text, once for each text, for tasks on pairs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parsed = parser.parse_args(words)
    texts = parsed.texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise DataError("there is no text to classify; give it as words in quotes, or a line each on standard input.")
    if parsed.pair is not None and len(parsed.pair) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(parsed.pair)} --pair; give one for each.")

    from rich.console import Console  # noqa: PLC0415

    from ..recipes import finished  # noqa: PLC0415

    console = Console()
    for text, (prediction, probability) in zip(texts, finished.open_run(parsed.run).predict(texts, parsed.pair), strict=True):
        if parsed.json:
            print(json.dumps({"text": text, "prediction": prediction, "probability": probability}))
        elif probability is None:
            console.print(f"{prediction:.4f}  {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"{prediction} ({probability:.2f})  {text}", markup=False, highlight=False, soft_wrap=True)
    return 0
