"""The demo `make chat` with two seeds, and what its difference between LoRA and full fine-tuning is worth.

A seed decides LoRA's start, the order of the rows and which of them are held out for the perplexity. The difference of two
methods is paired: that of the shares of exact answers to each request, over the seeds, then the mean over the requests with its
95 % interval, mean ± 1.96 · deviation / √requests. With `--examples` the unadapted model answers once more, with an example of
each intent before every request, which takes about as long as all other answers together.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from examples import chat
from examples.chat import BEFORE, METHODS, Budget, Outcome, Row
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.provenance import RESULTS, provenance, write_rows
from loralib.cli import guarded
from loralib.recipes import figures

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "chat.png"
RUNS = Path("runs/chat-seeds")
SHOWN = "few-shot"
SEEDS = 2
PAIRS = (("lora", "full"), ("lora", BEFORE), ("full", BEFORE), ("lora", SHOWN))
COLOURS = figures.METHOD_COLOURS | {BEFORE: figures.GREY, SHOWN: figures.PURPLE}


def an_example_of_each_intent() -> list[Row]:
    """The first conversation of each intent in the training data, one after the other."""
    data, found = chat.read_requests(chat.DESK / "train.jsonl"), dict[str, list[Row]]()
    for request, (answer,) in zip(data["context"][:], data["references"][:], strict=True):
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        found.setdefault((chat.parsed(answer) or {})["intent"], messages)
    return [message for messages in found.values() for message in messages]


def measure(
    folder: Path, budget: Budget, seeds: int, console: Console, resume: bool, examples: bool = False
) -> tuple[Dataset, dict[str, list[Outcome]]]:
    """The requests, and by method what came of each seed. The unadapted model has none."""
    data, outcomes = chat.read_requests(chat.DESK / "test.jsonl", budget.requests), dict[str, list[Outcome]]()
    unadapted = {BEFORE: list[Row]()} | ({SHOWN: an_example_of_each_intent()} if examples else {})
    for name, shown in unadapted.items():
        texts = chat.answer(folder / f"{name}.jsonl", data, budget, console, None, resume, shown)
        outcomes[name] = [Outcome(None, texts, chat.scores(texts, data))]
    for seed in range(seeds):
        of_seed = folder / f"seed-{seed}"
        for method, metrics in chat.train(of_seed, replace(budget, seed=seed), resume).items():
            run = of_seed / method
            texts = chat.answer(chat.answers_of(run), data, budget, console, run, resume)
            outcomes.setdefault(method, []).append(Outcome(metrics, texts, chat.scores(texts, data)))
    return data, outcomes


def row(method: str, outcome: Outcome, data: Dataset) -> dict[str, Any]:
    """A row of the results."""
    run, kinds = outcome.metrics or {}, data["category"][:]
    parts = {kind: [s for s, of in zip(outcome.scores, kinds, strict=True) if of == kind] for kind in ("known", "new")}
    mean = chat.means(outcome.scores)
    return {
        "method": method,
        "seed": run.get("seed"),
        "trained": run["parameters"]["trained"] if run else 0,
        "total": run["parameters"]["total"] if run else None,
        "learning_rate": run.get("learning_rate"),
        "train_rows": run.get("train_rows", 0),
        "steps": run.get("steps", 0),
        "requests": len(data),
        **{name: round(value, 4) for name, value in mean.items()},
        **{f"exact_{kind}": round(chat.means(scores)["exact"], 4) for kind, scores in parts.items() if scores},
        "perplexity": round(run["value"], 4) if run else None,
        "train_seconds": round(run["train_seconds"]) if run else None,
        "peak_memory_bytes": run.get("peak_memory_bytes"),
        "saved_bytes": run.get("saved_bytes"),
        "threads": run.get("threads"),
    }


def difference(first: Sequence[Outcome], second: Sequence[Outcome]) -> tuple[float, float]:
    """The mean over the requests of the difference in exact answers, and half of its 95 % interval."""
    of_each = [
        statistics.fmean(outcome.scores[i].exact for outcome in first)
        - statistics.fmean(outcome.scores[i].exact for outcome in second)
        for i in range(len(first[0].scores))
    ]
    return statistics.fmean(of_each), 1.96 * statistics.stdev(of_each) / math.sqrt(len(of_each))


def pair_rows(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """A row for each pair of methods that is compared."""
    rows = []
    for first, second in ((one, other) for one, other in PAIRS if {one, other} <= outcomes.keys()):
        mean, half = difference(outcomes[first], outcomes[second])
        ends = {"low": round(mean - half, 4), "high": round(mean + half, 4)}
        rows.append({"first": first, "second": second, "difference": round(mean, 4), **ends})
    return rows


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The scores by model, means over the seeds."""
    groups = {"exact_known": "exact\nknown phrasings", "exact_new": "exact\nnew phrasings", "values": "values", "valid": "JSON"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    methods = [name for name in (BEFORE, SHOWN, *METHODS) if any(row["method"] == name for row in rows)]
    for i, method in enumerate(methods):
        heights = [100 * statistics.fmean(row[name] for row in rows if row["method"] == method) for name in groups]
        places = [group + (i - (len(methods) - 1) / 2) * 0.2 for group in range(len(groups))]
        bars = axes.bar(places, heights, 0.2, label=method, color=COLOURS[method])
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups.values()))
    axes.set(ylabel="% of the requests (of the values)", ylim=(0, 108))
    axes.set_title("SmolLM2-135M answers requests in JSON, with values that were not trained on", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep the finished parts of an interrupted benchmark")
    parser.add_argument("--examples", action="store_true", help="also the unadapted model with examples in the prompt")
    parsed = parser.parse_args()
    origin, console = provenance("cpu") | {"load_before": f"{os.getloadavg()[0]:.1f}"}, Console()
    data, outcomes = measure(RUNS, Budget(), SEEDS, console, parsed.resume, parsed.examples)
    rows = [row(method, outcome, data) for method, of_method in outcomes.items() for outcome in of_method]
    console.print(chat.table({name: of_method[0] for name, of_method in outcomes.items()}, data))
    plot(rows, FIGURE)
    wrote = [write_rows("chat", rows, origin), write_rows("chat_paired", pair_rows(outcomes), origin)]
    console.print(f"Wrote {wrote[0]}, {wrote[1].relative_to(RESULTS)} and {FIGURE}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
