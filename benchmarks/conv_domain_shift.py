"""LoRA, full fine-tuning and the last layer after a shift of domain: `python -m benchmarks.conv_domain_shift [SEED ...]`.

The example of that name, which needs LORALIB_DATA and some minutes a seed (by default 0); its plot of the first seed goes to
docs/images.
"""

import shutil
import sys
from pathlib import Path

from examples.conv_domain_shift import compare, options

from benchmarks.provenance import provenance, write_rows
from loralib.cli import guarded

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "conv_domain_shift.png"


def main() -> int:
    origin, rows = provenance(), []
    seeds = sys.argv[1:] or ["0"]
    for seed in seeds:
        given = options(["--seed", seed, "--output", f"runs/conv_domain_shift/{seed}"])
        for run in compare(given):
            curve = [round(value, 4) for value in run.pop("curve")]
            own = {"images": given.images, "epochs": given.epochs, "seed": seed, "before": curve[0], "after": curve[-1]}
            rows.append(run | own | {"seconds": round(run["seconds"]), "curve": " ".join(map(str, curve))})
    FIGURE.parent.mkdir(exist_ok=True)
    shutil.copyfile(f"runs/conv_domain_shift/{seeds[0]}/curve.png", FIGURE)
    print(f"Wrote {write_rows('conv_domain_shift', rows, origin)} and {FIGURE}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
