"""The whole command against the script that it replaces, from its start to its saved adapter: `python -m benchmarks.job`.

Two jobs: MiniLM on rows of SST-2, and SmolLM2 on the requests of `make chat`. Each is done by `loralib train`, as it is, and by
PEFT in transformers' Trainer or TRL's (`job_peft_sst2`, `job_peft_chat`), with the same rows, batch size, epochs, rank, rates
and seeds, each time in a process of its own and in turn. The pace is rows trained on a second of the whole command,
evaluations included. The score is the accuracy on the development set, or the perplexity of held-out answers by the saved
adapter.

Of ours it also says how much of the time after the start went to something else than the model's steps and the evaluations: the
steps are timed on the same batches in a bare loop.

    python -m benchmarks.job [sst2|chat] [--seeds N] [--record]     (needs LORALIB_DATA for sst2)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import DataCollatorWithPadding, set_seed

import loralib as lora
from benchmarks import provenance
from benchmarks.e2e import perplexity_of
from loralib import ops
from loralib.cli import guarded
from loralib.recipes import model_sources, run_folder
from loralib.recipes.chat.form import ChatForm
from loralib.recipes.nlg import language_models
from loralib.recipes.nlu import inputs, text_classification
from loralib.recipes.options import TrainOptions
from loralib.train.sampling import LengthGrouped

OURS, PEFT = "loralib", "PEFT"
DESK = Path(__file__).parent.parent / "examples" / "front_desk" / "train.jsonl"
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is trained on what. rows: to train on; validation: those it is evaluated on after each epoch."""

    name: str
    model: str
    rows: int
    validation: int
    epochs: int
    batch_size: int
    eval_batch_size: int
    max_length: int
    learning_rate: float
    r: int
    lora_alpha: int


SST2 = Job("sst2", "minilm", 9000, 872, 2, 16, 64, 128, 1e-3, 8, 16)
CHAT = Job("chat", "smollm2", 300, 30, 1, 4, 8, 128, 1.3e-3, 16, 32)


# --- the data, as a user has them ------------------------------------------------------------------------------------


def write_sst2(job: Job, data: Path, folder: Path) -> tuple[Path, Path]:
    """Tables with the columns `text` and `label`: the first rows of SST-2's files."""
    paths = []
    for name, most in (("train", job.rows), ("dev", job.validation)):
        with (data / "glue" / "SST-2" / f"{name}.tsv").open(encoding="utf-8") as file:
            _, *lines = islice(file, most + 1)
        paths.append(folder / f"{name}.tsv")
        paths[-1].write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    return paths[0], paths[1]


def write_chat(job: Job, folder: Path) -> tuple[Path, Path]:
    """The requests to train on and some to be evaluated on, in files of their own."""
    lines = DESK.read_text(encoding="utf-8").splitlines(keepends=True)
    paths = folder / "train.jsonl", folder / "dev.jsonl"
    paths[0].write_text("".join(lines[: job.rows]), encoding="utf-8")
    paths[1].write_text("".join(lines[-job.validation :]), encoding="utf-8")
    return paths


# --- both contenders -------------------------------------------------------------------------------------------------


def our_options(job: Job, files: tuple[Path, Path], seed: int) -> dict[str, Any]:
    """What `loralib train` is given."""
    own: dict[str, Any] = {"layers": "query,value"} if job.name == "sst2" else {"problem": "chat", "samples": 0}
    return {
        "model": job.model,
        "data": str(files[0]),
        "eval_data": str(files[1]),
        "r": job.r,
        "lora_alpha": job.lora_alpha,
        "learning_rate": job.learning_rate,
        "num_train_epochs": job.epochs,
        "batch_size": job.batch_size,
        "per_device_eval_batch_size": job.eval_batch_size,
        "max_length": job.max_length,
        "best_epoch": False,
        "seed": seed,
        **own,
    }


def ours(job: Job, files: tuple[Path, Path], seed: int, folder: Path) -> tuple[float, Path, float | None]:
    """The seconds of `loralib train`, its adapter, and its accuracy where it has one."""
    words = [word for name, value in our_options(job, files, seed).items() for word in _option(name, value)]
    seconds = run([sys.executable, "-m", "loralib", "train", *words, "--output", str(folder)])
    metrics = run_folder.read_metrics(folder) or {}
    return seconds, folder / run_folder.ADAPTER, metrics["metrics"].get("accuracy")


def _option(name: str, value: Any) -> list[str]:
    return ["--" + name.replace("_", "-"), str(value).lower() if isinstance(value, bool) else str(value)]


def theirs(job: Job, files: tuple[Path, Path], seed: int, folder: Path) -> tuple[float, Path, float | None]:
    """The same of the script with PEFT."""
    source = model_sources.locate(job.model)
    arguments = {
        "output_dir": str(folder / "checkpoints"),
        "learning_rate": job.learning_rate,
        "num_train_epochs": job.epochs,
        "per_device_train_batch_size": job.batch_size,
        "per_device_eval_batch_size": job.eval_batch_size,
        "warmup_steps": 0.06,
        "weight_decay": 0.01,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": True,
    }
    given = {
        "model": source.path,
        "gguf": source.gguf,
        "files": {"train": str(files[0]), "validation": str(files[1])},
        "max_length": job.max_length,
        "lora": {"r": job.r, "lora_alpha": job.lora_alpha},
        "arguments": arguments,
        "output": str(folder / "adapter"),
        "cache": str(folder / "cache"),
    }
    folder.mkdir(parents=True)
    options = folder / "options.json"
    options.write_text(json.dumps(given))
    seconds = run([sys.executable, "-m", f"benchmarks.job_peft_{job.name}", str(options)])
    score = folder / "adapter" / "score.json"
    return seconds, folder / "adapter", json.loads(score.read_text()) if score.is_file() else None


def run(command: Sequence[str]) -> float:
    """The seconds of a command; `RuntimeError` with the end of what it printed when it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return time.perf_counter() - began


def perplexity(job: Job, adapter: Path, validation: Path) -> float:
    """That of the answers in a file of conversations, by the base model with an adapter."""
    model, tokenizer = language_models.load_language_model(job.model)
    lora.attach(model.eval(), lora.load(adapter))
    lines = validation.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(message["content"] for message in json.loads(line)["messages"]) for line in lines]
    return perplexity_of(model, ChatForm(tokenizer), pairs, job.max_length, job.eval_batch_size)


# --- what is not the model's -----------------------------------------------------------------------------------------


def bare_seconds(job: Job, files: tuple[Path, Path], seed: int, onednn: bool) -> float:
    """The seconds of the steps of ours on its own batches: forward pass, backward pass, clipping and AdamW, nothing else."""
    options = TrainOptions.of(our_options(job, files, seed))
    set_seed(seed)
    planned = text_classification.plan(options, inputs.read_data(options))
    model, rows = planned.model.train(), planned.datasets[0]
    collate = DataCollatorWithPadding(planned.tokenizer)
    sampler = LengthGrouped([len(row["input_ids"]) for row in rows], job.batch_size, seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, taken = torch.optim.AdamW(trained, lr=1e-4), 0.0
    with ops.use("onednn" if onednn else "autograd"):
        for epoch in range(job.epochs):
            sampler.set_epoch(epoch)
            order = list(sampler)
            for start in range(0, len(order), job.batch_size):
                batch = collate([rows[i] for i in order[start : start + job.batch_size]])
                began = time.perf_counter()
                model(**batch).loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                taken += time.perf_counter() - began
    return taken


def around(job: Job, files: tuple[Path, Path], seed: int, run: Path) -> Row:
    """How long a run of ours trained, and the share of it that was neither a step nor an evaluation."""
    metrics = run_folder.read_metrics(run) or {}
    evaluated = sum(row.get("eval_runtime", 0.0) for row in metrics["history"])
    onednn = run_folder.read_options(run)[0].onednn is True
    steps, whole = bare_seconds(job, files, seed, onednn), metrics["train_seconds"]
    found = {"train_seconds": whole, "eval_seconds": evaluated, "bare_seconds": steps, "onednn": onednn}
    return found | {"around": (whole - evaluated - steps) / whole}


# --- measured --------------------------------------------------------------------------------------------------------


def measure(job: Job, data: Path | None, folder: Path, seeds: int, console: Console) -> list[Row]:
    """A row a contender and seed; the contenders alternate, and take turns in being first."""
    files = write_sst2(job, data or Path(), folder) if job.name == "sst2" else write_chat(job, folder)
    trained, rows = len(files[0].read_text(encoding="utf-8").splitlines()) - (job.name == "sst2"), []
    for seed in range(seeds):
        contenders = [(OURS, ours), (PEFT, theirs)]
        for name, do in contenders if seed % 2 == 0 else reversed(contenders):
            where = folder / f"{name}-{seed}"
            seconds, adapter, accuracy = do(job, files, seed, where)
            score = perplexity(job, adapter, files[1]) if accuracy is None else accuracy
            pace = trained * job.epochs / seconds
            row: Row = {"job": job.name, "contender": name, "seed": seed, "train_rows": trained, "epochs": job.epochs}
            row |= {"seconds": round(seconds, 1), "rows_per_second": round(pace, 2), "score": round(score, 4)}
            rows.append(row)
            console.print(f"{job.name}, {name}, seed {seed}: {seconds:.0f} s, {score:.4f}", highlight=False)
    if job.name == "sst2":
        rows[0] |= {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in around(job, files, 0, folder / f"{OURS}-0").items()
        }
    return rows


def table(rows: Sequence[Row]) -> Table:
    """A line a job and contender: medians over the seeds."""
    shown = Table(title="From the start of the command to the saved adapter, medians over the seeds")
    for i, heading in enumerate(["job", "contender", "seconds", "rows a second", "score", "pace over PEFT's"]):
        shown.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for job in dict.fromkeys(row["job"] for row in rows):
        for name in (PEFT, OURS):
            of = [row for row in rows if (row["job"], row["contender"]) == (job, name)]
            middle = {key: statistics.median(row[key] for row in of) for key in ("seconds", "rows_per_second")}
            score = statistics.fmean(row["score"] for row in of)
            cells = [f"{middle['seconds']:.1f}", f"{middle['rows_per_second']:.1f}", f"{score:.4f}"]
            shown.add_row(job, name, *cells, f"{pace(rows, job):.2f}" if name == OURS else "1")
    return shown


def pace(rows: Sequence[Row], job: str) -> float:
    """The median over the seeds of our pace over PEFT's."""
    of = {(row["contender"], row["seed"]): row["rows_per_second"] for row in rows if row["job"] == job}
    return statistics.median(of[OURS, seed] / of[PEFT, seed] for name, seed in of if name == OURS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", choices=("sst2", "chat"), help="one of the jobs (default: both)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each contender (default: 2)")
    parser.add_argument("--rows", type=int, help="rows of SST-2 (default: 9000)")
    parser.add_argument("--record", action="store_true", help="write results/job.csv")
    given = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    sst2 = replace(SST2, rows=given.rows or SST2.rows)
    jobs = [job for job in (sst2, CHAT) if given.job in (None, job.name)]
    if sst2 in jobs and not data:
        print("set LORALIB_DATA to the folder that holds glue/SST-2, or ask for the job chat alone", file=sys.stderr)
        return 2
    origin, console = provenance.provenance("cpu") | {"load_before": f"{os.getloadavg()[0]:.1f}"}, Console()
    rows: list[Row] = []
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(job, Path(data) if data else None, Path(folder), given.seeds, console)
    console.print(table(rows))
    if share := rows[0].get("around"):
        console.print(f"of loralib train's time on sst2, {share:.1%} was neither a step nor an evaluation", highlight=False)
    if given.record:
        console.print(f"Wrote {record(rows, origin)}.", highlight=False)
    return 0


def record(rows: Sequence[Row], origin: Mapping[str, str]) -> Path:
    """Write the rows to job.csv, where those of another job stay."""
    path = provenance.RESULTS / "job.csv"
    found = provenance.read_rows(path) if path.is_file() else []
    others = [row for row in found if row["job"] not in {row["job"] for row in rows}]
    return provenance.write_rows("job", [*others, *({**row, **origin} for row in rows)], {})


if __name__ == "__main__":
    sys.exit(guarded(main))
