"""LoRA, the last two blocks and full fine-tuning of a small GPT-2 on E2E NLG, from training to BLEU: `make e2e`.

There is no pretrained GPT-2 where this run_folder, so it trains one: 6 blocks, 192 wide, 3.6 million parameters, a byte-level
vocabulary of 4,096, and one epoch in full on the 25,005 rows of WebNLG's training set and DART's development set in the paper's
format. Part of the latter is about E2E's restaurants, in DART's form and in the words of E2E's own development set: the model
knows what they are, and what is developed on here is a tenth of the inputs of E2E's training set instead. It is adapted on
3,000 other rows of that for two epochs by each method, LoRA as in the paper (rank 4 on query and value) and of rank 16 on all
linear layers, at the learning rate that was best on that tenth (docs/log.md), and writes the texts of the 630 test inputs as
the paper does: ten beams, length penalty 0.9, no 4-gram twice. They are scored against the paper's own test file.

The model is in float32, without dropout of its own.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks import provenance
from loralib.cli import guarded
from loralib.recipes import comparison, figures, report, run_folder
from loralib.recipes.nlg import generator, loss, prompts, scoring, text_generation
from loralib.recipes.nlg.tasks import read_split
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import DECODING, Decoding

RUNS = Path("runs/e2e")
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "e2e.png"
END = "<|endoftext|>"
PRETRAINED = "pretrained"
SCORES = {"bleu": "BLEU", "nist": "NIST", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
PRETRAINING = {"method": "full", "learning_rate": 2e-3, "batch_size": 8, "eval_fraction": 0.02}
OPTIONS = {
    "task": "e2e",
    "eval_fraction": 0.1,
    "max_test_rows": 0,
    "batch_size": 8,
    "r": 4,
    "lora_alpha": 32,
    "label_smoothing_factor": 0.1,
}
OWN = {
    "lora": {"learning_rate": 5e-3},
    "last-layers": {"learning_rate": 6e-3},
    "full": {"learning_rate": 3e-3},
}
ALL_LAYERS = "lora-all"  # LoRA once more, of a higher rank and on all linear layers of the blocks
WIDE = {"r": 16, "layers": "query,key,value,output,mlp", "learning_rate": 2e-3}
ADAPTED = ("lora", ALL_LAYERS, "last-layers", "full")
SHARED = {"base_dropout": 0.0, "group_by_length": True}
DECODING_BATCH = 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """How much of everything. pretraining_rows, test_inputs: None for all."""

    width: int = 192
    depth: int = 6
    heads: int = 3
    vocabulary: int = 4096
    pretraining_rows: int | None = None
    pretraining_epochs: int = 1
    rows: int = 3000
    epochs: int = 2
    dev_rows: int = 500
    test_inputs: int | None = None
    decoding: Decoding = DECODING["paper"]["e2e"]


# --- the model that is adapted ---------------------------------------------------------------------------------------


def pretraining_rows(data: Path) -> list[Row]:
    """The inputs to pretrain on, each with its texts."""
    parts = read_split("webnlg", "train", data), read_split("dart", "dev", data)
    return [{"context": row["context"], "completion": row["references"]} for part in parts for row in part]


def make_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair vocabulary as GPT-2's, learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def write_start(folder: Path, budget: Budget, rows: Sequence[Row]) -> None:
    """Write an untrained model with its vocabulary, learned from `rows`."""
    tokenizer = make_tokenizer(
        dict.fromkeys(text for row in rows for text in (row["context"], *row["completion"])), budget.vocabulary
    )
    transformers.set_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=budget.width,
        n_layer=budget.depth,
        n_head=budget.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(data: Path, folder: Path, budget: Budget, resume: bool) -> Row:
    """Train a model in full on the other tasks; its `metrics.json`."""
    rows, path = pretraining_rows(data), folder / "pretraining.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_start(folder / "start", budget, rows)
    options = TrainOptions(
        model=str(folder / "start"),
        problem="generation",
        data=str(path),
        max_train_rows=budget.pretraining_rows,
        max_eval_rows=budget.dev_rows,
        num_train_epochs=budget.pretraining_epochs,
        **PRETRAINING,
        **SHARED,
    )
    return comparison.train_apart(options, folder / PRETRAINED, resume)


# --- adapted, decoded, scored ----------------------------------------------------------------------------------------


def adaptation(data: Path, folder: Path, budget: Budget) -> Row:
    """The options that all methods share."""
    model = str((folder / PRETRAINED / run_folder.MODEL).resolve())
    most = {"max_train_rows": budget.rows, "max_eval_rows": budget.dev_rows, "num_train_epochs": budget.epochs}
    return {"model": model, "data_dir": str(data), **OPTIONS, **SHARED, **most}


def perplexity(run: generator.Run, options: TrainOptions) -> float:
    """What Trainer measures on the development rows of `options`, of a model that was not trained on them."""
    evaluation = text_generation.as_pairs(text_generation.read_rows(options)[1])
    rows = prompts.encode(run.form, evaluation, options.length, "E2E")
    collate, sums = prompts.collator(run.tokenizer), []
    for start in range(0, len(rows), options.per_device_eval_batch_size):
        batch = collate(rows[start : start + options.per_device_eval_batch_size])
        with torch.inference_mode():
            logits = run.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        sums.append(loss.row_losses(logits, batch["labels"]))
    return loss.of_rows(torch.cat(sums).numpy())["perplexity"]


@contextmanager
def timed(path: Path, resume: bool) -> Iterator[None]:
    """Add the seconds of what is done to those in a file, also when it is interrupted."""
    before, began = seconds(path) if resume and path.exists() else 0.0, time.perf_counter()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before + time.perf_counter() - began:.1f}\n")


def seconds(path: Path) -> float:
    """What `timed` wrote."""
    return float(path.read_text())


def write_texts(run: Path, data: Dataset, how: Decoding, console: Console, resume: bool) -> tuple[list[str], float]:
    """The text of each input by the model of a run, and the seconds that it took; those that are there are read."""
    path, clock = run / run_folder.GENERATED / "test.jsonl", run / run_folder.GENERATED / "seconds"
    if resume and path.is_file():
        return [json.loads(line)["prediction"] for line in path.read_text(encoding="utf-8").splitlines()], seconds(clock)
    with Progress(console=console, transient=True) if console.is_terminal else nullcontext() as progress:
        bar = progress.add_task(f"{run.name}: texts", total=len(data)) if progress else None

        def on_progress(done: int) -> None:
            if progress:
                progress.update(bar, completed=done)

        with timed(clock, resume):
            model = generator.open_run(run)
            how_much = {"batch_size": DECODING_BATCH, "overwrite": not resume, "resume": resume, "on_progress": on_progress}
            texts = model.generate_into(path, data, how, **how_much)
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
        **{name: round(found[name], 4) for name in SCORES},
        "train_seconds": round(metrics["train_seconds"]),
        "decode_seconds": round(taken),
        "threads": metrics["threads"],
    }


def measure(data: Path, folder: Path, budget: Budget, console: Console, resume: bool) -> tuple[list[Row], dict[str, list[str]]]:
    """Everything: a row a method, the pretrained model's first, and the texts of each."""
    found = folder / PRETRAINED / run_folder.METRICS
    known = json.loads(found.read_text()) if found.is_file() else None
    pretraining = pretrain(data, folder, budget, resume)
    resume = resume and pretraining == known  # what was adapted from another model is stale
    shared = adaptation(data, folder, budget)
    adapted: Row = {o.method: o.results[0] for o in comparison.compare(shared, OWN, folder, resume=resume)}
    wide = TrainOptions.of({**shared, **WIDE})
    adapted[ALL_LAYERS] = comparison.train_apart(wide, folder / ALL_LAYERS, resume) | {"method": ALL_LAYERS}
    test = read_split("e2e", "test", data)
    test = test.select(range(min(budget.test_inputs or len(test), len(test))))
    before = perplexity(generator.open_run(folder / PRETRAINED), TrainOptions.of(shared))
    rows, texts = [], {}
    for metrics in (as_unadapted(pretraining, before), *(adapted[name] for name in ADAPTED)):
        name = metrics["method"]
        texts[name], taken = write_texts(folder / name, test, budget.decoding, console, resume)
        rows.append(result(metrics, texts[name], test, taken))
    return rows, texts


def as_unadapted(metrics: Row, value: float) -> Row:
    """The pretrained model's, which was trained on nothing of E2E; the seconds are those of its pretraining."""
    counts = {**metrics["parameters"], "trained": 0}
    nothing = {"learning_rate": None, "train_rows": 0, "kept_epoch": 0}
    return {**metrics, **nothing, "method": PRETRAINED, "parameters": counts, "value": value}


# --- for people ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """A line a method."""
    last = rows[-1]
    title = f"E2E NLG's {last['test_inputs']} test inputs, a GPT-2 of {last['total'] / 1e6:.1f} million parameters"
    notes = (
        f"{last['train_rows']:,} rows of E2E (pretrained: none, and the time of its pretraining); perplexity on held-out inputs"
    )
    shown = Table(title=title, caption=notes)
    for i, heading in enumerate(["method", "trained", "share", "perplexity", *SCORES.values(), "training", "decoding"]):
        shown.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        scores = [f"{row[name]:.2f}" for name in SCORES]
        times = [f"{row['train_seconds']} s", f"{row['decode_seconds']} s"]
        cells = [f"{row['trained']:,}", report.human_share(row["share"]), f"{row['perplexity']:.2f}"]
        shown.add_row(row["method"], *cells, *scores, *times)
    return shown


def plot(rows: Sequence[Row], path: Path) -> None:
    """The scores by method, a panel a metric."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    labels = [f"{row['method']}\n{row['trained']:,} trained" for row in rows]
    colours = figures.METHOD_COLOURS | {ALL_LAYERS: figures.SKY}
    for axes, (name, heading) in zip(figure.subplots(1, len(SCORES), sharey=True), SCORES.items(), strict=True):
        values = [row[name] for row in rows]
        bars = axes.barh(range(len(rows)), values, 0.7, color=[colours.get(row["method"], figures.GREY) for row in rows])
        axes.bar_label(bars, fmt="%.2f" if name in ("nist", "cider") else "%.1f", padding=3, fontsize=9)
        axes.set_yticks(range(len(rows)), labels, fontsize=9)
        axes.set_title(heading, fontsize=10)
        axes.margins(x=0.28)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    last = rows[-1]
    figure.suptitle(
        f"E2E NLG, {last['test_inputs']} test inputs, ten beams: a GPT-2 of {last['total'] / 1e6:.1f} M parameters, adapted on "
        f"{last['train_rows']:,} rows",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write(figure, path)


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
    parser.add_argument("--resume", action="store_true", help="keep the finished parts of an interrupted benchmark")
    parsed = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds e2e/, webnlg/ and dart/", file=sys.stderr)
        return 2
    origin, console = provenance.provenance(), Console()
    transformers.utils.logging.disable_progress_bar()
    try:
        rows, texts = measure(Path(data), RUNS, Budget(), console, parsed.resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; finished parts are kept. Go on with python -m benchmarks.e2e --resume.") from None
    console.print(table(rows))
    plot(rows, FIGURE)
    samples = write_samples(provenance.RESULTS / "e2e_samples.md", read_split("e2e", "test", data), texts)
    wrote = provenance.write_rows("e2e", rows, origin)
    console.print(f"Wrote {wrote}, {samples} and {FIGURE}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
