"""Compare LoRA with training the last layers and with full fine-tuning, on the sentiment of IMDb film reviews.

    python examples/imdb_distilbert.py                                   # DistilBERT and IMDb from the Hugging Face hub
    python examples/imdb_distilbert.py --search 9                        # first search for r, alpha, layers, head and rate
    python examples/imdb_distilbert.py --data DIR --model DIR            # without a network
    make imdb                                                            # the same with MiniLM, from a Python package

Three ways to fine-tune, as in a well-known tutorial: (1) train the last layers of a frozen model (pre-classifier and
classifier); (2) add LoRA to the query and value projections, and train it with the head; (3) train all weights.

All methods train on the same reviews, truncated to 256 tokens, for the same number of epochs. A tenth of the training reviews
is held out to choose the best epoch (and, with --search, LoRA's hyper-parameters). The test reviews are scored once, at the
end. This script builds the command line of `loralib compare` and runs it.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from loralib.cli import guarded, main
from loralib.errors import DataError
from loralib.train import measure

HUB, FILES = "stanfordnlp/imdb", ("train.jsonl.gz", "test.jsonl.gz")
TUTORIAL = {"last-layers": 86.22, "lora": 89.44, "full": 92.39}


def words(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    about = "Compare LoRA with training the last layers and with full fine-tuning on IMDb film reviews, by loralib compare."
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", description=about)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with train.jsonl.gz and test.jsonl.gz (default: the hub's IMDb)"
    )
    parser.add_argument(
        "--model", default="distilbert-base-uncased", metavar="NAME", help="encoder: a name on the hub, or a local folder"
    )
    parser.add_argument("--train-rows", type=int, default=5000, metavar="N", help="number of training reviews (default: 5000)")
    parser.add_argument("--test-rows", type=int, metavar="N", help="number of test reviews (default: all)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="passes over the training reviews (default: 3)")
    parser.add_argument(
        "--learning-rate-last-layers", default="1e-3", metavar="RATE", help="peak rate of the last layers (default: 1e-3)"
    )
    parser.add_argument("--search", type=int, default=0, metavar="N", help="LoRA configurations to try first (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/imdb"), metavar="DIR", help="folder to write (default: runs/imdb)"
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished runs in the output folder, and continue")
    return parser.parse_args(given)


def comparison(given: argparse.Namespace) -> list[str]:
    """The arguments of `loralib compare`. Raises `DataError` if the reviews are missing."""
    data = {"data": HUB, "test-split": "test"}
    if given.data:
        train, test = (given.data / name for name in FILES)
        if not (train.is_file() and test.is_file()):
            raise DataError(f"{given.data} does not hold {' and '.join(FILES)}; give --data, a folder that does.")
        data = {"data": train, "test-data": test}
    flags = ["--resume"] if given.resume else []
    flags += ["--max-test-rows", str(given.test_rows)] if given.test_rows else []
    flags += ["--search", str(given.search)] if given.search else []
    options = {
        "model": given.model,
        **data,
        "max-train-rows": given.train_rows,
        "max-eval-rows": 1000,
        "max-length": 256,
        "num-train-epochs": given.epochs,
        "batch-size": 16,
        "layers": "query,value",
        "r": 8,
        "lora-alpha": 16,
        "learning-rate-lora": 1e-3,
        "learning-rate-last-layers": given.learning_rate_last_layers,
        "learning-rate-full": 5e-5,
        "group-by-length": "true",
        "bf16": str(not measure.emulates_bf16()).lower(),
        "attention-dropout": 0,  # on a CPU it takes half the time of all
        "output": given.output,
    }
    return ["compare", *(str(word) for name, value in options.items() for word in (f"--{name}", value)), *flags]


def run(given: argparse.Namespace) -> int:
    """Run the comparison, and print its accuracies next to the tutorial's."""
    if code := main(comparison(given)):
        return code
    with (given.output / "comparison.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    print(f"Accuracy of {given.model} on the test reviews, with the tutorial's with DistilBERT and more reviews:")
    for method, expected in TUTORIAL.items():
        accuracy, share = float(rows[method]["value"]), int(rows[method]["trained"]) / int(rows[method]["total"])
        print(f"  {method:12} {accuracy:7.2%}   {expected:.2f} % DistilBERT   trained: {share:.3%}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(words())))
