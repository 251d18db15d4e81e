"""What `loralib count` says that training keeps in memory, against the tensors that are there after two steps.

MiniLM, which classifies, and SmolLM2, which writes text, both from their packages, by each method and with two optimizers, each
in a process of its own, whose peak is recorded as well: it also holds activations, the libraries and what loading took.

    python -m benchmarks.memory
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, write_rows
from loralib.cli import guarded
from loralib.recipes import cost
from loralib.recipes.nlg import language_models, text_generation
from loralib.recipes.nlu import encoders, text_classification
from loralib.recipes.report import human_bytes
from loralib.recipes.task import Method
from loralib.train.measure import peak_memory
from loralib.train.memory import live

MODELS = ("minilm", "smollm2")
MEASURED = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
BATCH = (4, 64)
LABELS = ["0", "1"]
Row = dict[str, Any]


def options(causal: bool) -> Row:
    """LoRA as `loralib train` puts it on for a chat model, and for classification."""
    return (
        {"model": "", "task": "e2e", "r": 16, "target_modules": "all-linear"}
        if causal
        else {"model": "", "task": "sst2", "r": 8}
    )


def measured(name: str, method: Method, optimizer: str) -> Row:
    """Two steps of training, and what is kept after them."""
    counted = cost.costs(name, LABELS, lambda causal: options(causal) | {"model": name}, optimizer=optimizer)[method]
    torch.manual_seed(0)
    if counted.options.kind == "generation":
        model, _ = language_models.load_language_model(name)
        text_generation.prepare(model, counted.options)
    else:
        encoder = encoders.load_encoder(name, LABELS)
        text_classification.prepare(encoder, counted.options)
        model = encoder.model
    stepping = MEASURED[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    for _ in range(2):
        stepping.zero_grad()
        ids = torch.randint(model.config.vocab_size, BATCH)
        labels = ids if counted.options.kind == "generation" else ids[:, 0] % len(LABELS)
        model(input_ids=ids, labels=labels).loss.backward()
        stepping.step()
    there, said = live(model, stepping), counted.memory
    parts = {part: getattr(there, part) for part in ("trained", "weights", "gradients", "optimizer", "saved", "total")}
    state = {"model": name, "method": method, "optimizer_name": optimizer}
    return {**state, **parts, "counted": said.total, "as_counted": there == said, "process_peak": peak_memory()}


def rows(models: tuple[str, ...] = MODELS) -> Iterator[Row]:
    """A row for each model, optimizer and method."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in models:
            for optimizer in MEASURED:
                for method in cost.COUNTED:
                    yield pool.submit(measured, name, method, optimizer).result()


def table(found: list[Row]) -> Table:
    """A line a row."""
    columns = ("weights", "gradients", "optimizer", "total", "counted", "saved", "process_peak")
    shown = Table("model", "method", "by", *columns, title="kept after two steps, against what was counted")
    for row in found:
        cells = [human_bytes(row[column]) for column in columns]
        shown.add_row(row["model"], row["method"], row["optimizer_name"], *cells, style=None if row["as_counted"] else "red")
    return shown


def main() -> int:
    origin = provenance("cpu")
    found = list(rows())
    Console().print(table(found))
    write_rows("memory", found, origin)
    return 0 if all(row["as_counted"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
