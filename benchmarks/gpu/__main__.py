"""Check everything on a GPU, then measure it: `make gpu`.

    python -m benchmarks gpu [--minutes 6] [--out DIR]

The most important parts come first, each is written down when it is done, and none begins once the minutes are over. Exit code
1 when a check failed.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import peers, provenance
from benchmarks.gpu import behaviour, exactness, speed
from benchmarks.gpu.setting import Part, Row, Setting, run

CHECKS: Mapping[str, Part] = {**exactness.CHECKS, **behaviour.CHECKS}


def verdict(rows: Sequence[Row]) -> str:
    """A line a check: how many cases passed, and those that did not."""
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        of = [row for row in rows if row["part"] == part]
        done = [row for row in of if row["passed"] is not None]
        failed = [row for row in done if not row["passed"]]
        left = "; ".join(str(row["note"]) for row in of if row["passed"] is None)
        lines.append(f"  {part:28} {len(done) - len(failed)} of {len(done)} cases" + f"   ({left})" * bool(left))
        for row in failed[:5]:
            what = row.get("note") or f"error {row['error']:.3g}, allowed {row['allowed']:.3g}"
            lines.append(f"    FAILED: {row['case']}: {what}")
        lines += [f"    and {len(failed) - 5} more"] * (len(failed) > 5)
    return "\n".join(lines)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=6.0, metavar="N", help="begin nothing after so long (default: 6)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: benchmarks/results; tiny: nowhere)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small: whether the script itself works")
    parser.add_argument("--checks", action="store_true", help="only the checks")
    parser.add_argument("--speed", action="store_true", help="only the measurements")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    given = parsed(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "This torch sees no CUDA device; run it where one is, or try the script with --device cpu --tiny.", file=sys.stderr
        )
        return 2
    if given.device == "cpu" and "TRITON_INTERPRET" not in os.environ:  # which is read when triton is imported, as it has been
        again = [sys.executable, "-m", "benchmarks.gpu", *(sys.argv[1:] if words is None else words)]
        return subprocess.run(again, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode
    began = time.monotonic()
    setting = Setting(given.device, given.tiny, began + 60 * given.minutes)
    origin = provenance.provenance(given.device)
    folder = given.out or (None if given.tiny else provenance.RESULTS)

    def say(part: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {part}", flush=True)

    # peft 0.21 on transformers 5.23
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if not peers.peft:
        print("PEFT cannot be imported here and is left out.")
    torch.manual_seed(0)
    checks: list[Row] = []
    for rows in run(CHECKS, setting, say) if not given.speed else ():
        checks += rows
        if folder:
            provenance.write_rows("gpu_checks", checks, origin, folder)
    measured: dict[str, list[Row]] = {}
    for rows in run(speed.PARTS, setting, say) if not given.checks else ():
        measured[rows[0]["part"]] = rows
        if folder:
            provenance.write_rows(f"gpu_{rows[0]['part'].replace(' ', '_')}", rows, origin, folder)
    print(f"\n{origin['device']}, torch {origin['torch']}, {time.monotonic() - began:.0f} s\n")
    print(verdict(checks), end="\n\n")
    for rows in measured.values():
        print(speed.table(rows), end="\n\n")
    every = [row for rows in measured.values() for row in rows]
    for goal in speed.goals(every, checks):
        print(goal)
    return int(any(row["passed"] is False for row in [*checks, *every]))


if __name__ == "__main__":
    sys.exit(main())
