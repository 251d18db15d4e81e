"""Run a benchmark: `python -m benchmarks NAME [--quick] [--device cpu|cuda] [--threads N] [--record] [--reference]`.

With `--before WHEEL` an earlier version of this library is one more contender; `compare-before --before WHEEL` runs all
benchmarks with ours and the earlier version only, and lists what is worse than before.
"""

import argparse
import ast
import os
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from rich.console import Console

from benchmarks import peers, provenance, report
from benchmarks.goals import Benchmark
from benchmarks.harness import Effort, Options, Row

NAMES = (
    "linear",
    "merged_linear",
    "embedding",
    "conv",
    "whole_model",
    "llm",
    "experts",
    "compiled",
    "latency",
    "merge",
    "attach",
    "import_time",
    "fidelity",
    "generate",
    "tiny",
    "combine",
    "analysis",
)
COMPARE = "compare-before"


def description(name: str) -> str:
    """The first line of a benchmark's docstring."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(text))).partition("\n")[0]


def listing() -> str:
    """All benchmarks, a line each."""
    comparing = f"  {COMPARE:14} All of them: the time of ours over that of --before, and where ours is slower."
    return "\n".join(["Benchmarks:", *(f"  {name:14} {description(name)}" for name in NAMES), comparing])


def plot_title(name: str, row: Row) -> str:
    """What a benchmark measures, without the numbers of its goals, and where the figures of a row come from."""
    known = {"threads": "{} threads", "load": "load {} at the start"}
    machine = ", ".join([row["device"], *(text.format(row[name]) for name, text in known.items() if row.get(name) is not None)])
    what = re.sub(r"^G[^:]+: ", "", description(name))
    return f"{what[0].upper()}{what[1:]}\n{machine}; torch {row['torch']}, loralib {row['commit']}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, epilog=listing())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", metavar="NAME", help='which benchmark, or "all"')
    parser.add_argument("--quick", action="store_true", help="a few cases and rounds, in less than a minute: for a first look")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="of torch on the CPU (default: all)")
    parser.add_argument("--record", action="store_true", help="write results/NAME.csv and results/NAME.png")
    parser.add_argument("--reference", action="store_true", help="also measure ours with the reference arithmetic")
    parser.add_argument(
        "--before", type=earlier_version, metavar="WHEEL", help="an earlier version of ours, which is measured as well"
    )
    given = parser.parse_args()
    if given.name == COMPARE and (given.record or not given.before):
        parser.error(f"{COMPARE} needs --before WHEEL, and records nothing")
    if given.name not in (*NAMES, "all", COMPARE):
        print(f"{given.name!r} is not a benchmark." if given.name else "Which benchmark?", listing(), sep="\n", file=sys.stderr)
        sys.exit(2)
    return given


def earlier_version(place: str) -> ModuleType:
    """The loralib of a wheel, or of the folder that holds it."""
    try:
        return peers.loralib_before(Path(place).resolve())
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def measured(benchmark: Benchmark, given: argparse.Namespace, console: Console) -> list[Row]:
    """The rows of all cases."""
    cases, others = (benchmark.quick if given.quick else benchmark.cases), given.name != COMPARE
    effort = Effort(rounds=3 if others else 9, seconds=15 / len(cases)) if given.quick else Effort()
    options = Options(given.device, effort, given.reference, given.before, others)
    rows: list[Row] = []
    for i, case in enumerate(cases, 1):
        with console.status(f"{i} of {len(cases)}: {case.group}, {case.label}"):
            torch.manual_seed(0)
            rows += benchmark.measure(case, options)
    return rows


def run(name: str, given: argparse.Namespace, load: float, console: Console) -> None:
    """Measure, show and, where that is wanted, write down. load: how busy the machine was before the first benchmark."""
    benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    origin = provenance.provenance(given.device) | {"load": f"{load:.1f}"}
    rows = measured(benchmark, given, console)
    title = plot_title(name, {**origin, "threads": given.threads})
    console.print(report.table(benchmark, rows, title))
    for goal in benchmark.goals(rows):
        console.print(str(goal), style={True: "green", False: "red", None: ""}[goal.met], highlight=False)
    if given.record:
        plot = provenance.RESULTS / f"{name}.png"
        report.plot(benchmark, rows, plot, title)
        console.print(f"Wrote {provenance.write_rows(name, report.rounded(rows), origin)} and {plot}.", highlight=False)


def compare(given: argparse.Namespace, console: Console) -> None:
    """Print the time and the peak memory of ours over those of the earlier version, a line a case; then what is worse."""
    worse: list[str] = []
    for name in NAMES:
        benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
        if benchmark.figure != "ratio":
            continue
        console.print(name, style="bold")
        for line, more in report.comparisons(measured(benchmark, given, console)).items():
            console.print(f"  {line}", style="red" if more else "", highlight=False, markup=False, soft_wrap=True)
            worse += [f"{name}: {line}"] * more
    verdict = (
        "Worse than before by more than the noise:"
        if worse
        else "Nothing measured is worse than before by more than the noise."
    )
    console.print("\n  ".join([verdict, *worse]), highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    # peft 0.21 on transformers 5.23
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    given, console = arguments(), Console()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    if load > 1 and given.device == "cpu" and given.threads > 1:
        console.print(f"The machine is busy (load {load:.1f}), so threads wait for each other: better --threads 1, or later.")
    if given.name == COMPARE:
        compare(given, console)
        return
    for name in NAMES if given.name == "all" else (given.name,):
        run(name, given, load, console)


if __name__ == "__main__":
    main()
