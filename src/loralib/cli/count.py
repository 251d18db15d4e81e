"""`loralib count`: how many parameters LoRA would train, exactly, with what the paper prints, and what training keeps in memory
by LoRA, of the last layers and in full. Loads no weights."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..architectures import PUBLISHED, ROLES, short_name
from ..errors import ConfigError
from ..recipes import presets
from ..recipes.nlg.tasks import TASKS as GENERATION_TASKS
from ..recipes.nlu.glue import TASKS
from ..storage.json_text import as_json
from .offline import offline_if_unreachable
from .parsing import OneSentenceParser, add_trust

if TYPE_CHECKING:
    from rich.table import Table

PRINTED = {  # by model: what Tables 2 and 3 of the paper print for LoRA, and a note about it
    "roberta-base": ("0.3M", "r = 8 on query and value"),
    "roberta-large": ("0.8M", "r = 8 on query and value"),
    "deberta-v2-xxlarge": ("4.7M", "r = 16 on query and value, although Table 10 prints r = 8"),
    "gpt2-medium": ("0.35M", "r = 4 on query and value, which is 0.39M"),
    "gpt2-large": ("0.77M", "r = 4 on query and value, which is 0.74M"),
    "gpt3": ("4.7M", "r = 1 on query and value; for r = 4 section 4.2 prints a checkpoint of 35 MB"),
}
BYTES = 4
DTYPES = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw_8bit", "sgd")


def run(words: Sequence[str]) -> int:
    """Count; returns the exit code."""
    parsed = parser().parse_args(words)
    given = {name: getattr(parsed, name) for name in ("r", "layers", "target_modules") if getattr(parsed, name) is not None}

    if parsed.preset:
        given = presets.resolve(parsed.preset, parsed.task or presets.usual_task(parsed.model), parsed.model).updated(given)
    with offline_if_unreachable(None if short_name(parsed.model) in PUBLISHED else parsed.model):
        counts = _count(parsed, given)
    if parsed.json:
        print(as_json(counts))
    else:
        _show(counts)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib count",
        usage="--model NAME [options]",
        description="Count the parameters that LoRA would train on a model, factors and head, exactly, and what training keeps "
        "in memory by LoRA, of the last layers and in full. Loads no weights.",
        examples=(
            "loralib count --model roberta-base --r 8",
            "loralib count --model gpt2-medium --r 4 --layers query,value,mlp",
            "loralib count --model roberta-large --task mnli --preset paper",
            "loralib count --model gpt3 --r 4 --dtype fp16",
        ),
    )
    made.add_argument("--model", required=True, metavar="NAME", help="model: a name on the Hugging Face hub, or a local folder")
    made.add_argument("--r", type=int, metavar="N", help="LoRA rank (default: 8, 4 for GPT-2, or as in the preset)")
    roles = ",".join(ROLES)
    made.add_argument("--layers", metavar="ROLES", help=f"layers to adapt, by role: {roles} (default: query,value)")
    made.add_argument(
        "--target-modules", metavar="NAMES", help="layers to adapt, by name: query,value, a regular expression, or all-linear"
    )
    made.add_argument("--preset", choices=("paper", "scripts"), help="take rank and layers from the recipe of the LoRA paper")
    tasks = [*TASKS, *GENERATION_TASKS]
    help_ = f"task: {', '.join(tasks)} (default: two labels)"
    made.add_argument("--task", choices=tasks, metavar="NAME", help=help_)
    help_ = "dtype of the model's weights (default: fp32)"
    made.add_argument("--dtype", choices=DTYPES, default="fp32", help=help_)
    help_ = "optimizer whose state is kept (default: adamw; sgd has no momentum)"
    made.add_argument("--optim", choices=OPTIMIZERS, default="adamw", help=help_)
    made.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_trust(made)
    return made


def _count(parsed: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    from ..recipes.cost import costs
    from ..train.measure import share

    model, task = parsed.model, parsed.task
    how = {"dtype": parsed.dtype, "optimizer": parsed.optim}
    found = costs(
        model,
        _labels(task),
        lambda causal: _options(model, task, causal, given),
        trust_remote_code=parsed.trust_remote_code,
        **how,
    )
    lora = found["lora"]
    counts = lora.parameters
    printed, note = PRINTED.get(short_name(model), (None, None))
    return {
        "model": model,
        "r": lora.options.lora.r,
        "layers": len(lora.bound),
        "left_out": lora.bound.left_out,
        "lora": counts["lora"],
        "head": counts["trained"] - counts["lora"],
        "trained": counts["trained"],
        "base": counts["total"],
        "share": share(counts),
        "adapter_bytes": BYTES * counts["trained"],
        "paper": printed,
        "paper_note": note,
        "memory": how | {name: asdict(cost.memory) | {"total": cost.memory.total} for name, cost in found.items()},
    }


def _options(model: str, task: str | None, causal: bool, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the runs that are counted; `ConfigError` for a task that the model cannot have."""
    if causal and task in TASKS:
        raise ConfigError(
            f"--task {task}: {model} generates text; leave --task out, or give one of {', '.join(GENERATION_TASKS)}."
        )
    if not causal and task in GENERATION_TASKS:
        raise ConfigError(f"--task {task}: {model} generates no text; leave --task out, or give one of {', '.join(TASKS)}.")
    usual: dict[str, Any] = {"r": 4, "task": "e2e"} if causal else {"r": 8, "task": task or "sst2"}
    return usual | given | {"model": model}


def _labels(task: str | None) -> list[str] | None:
    if task is None or task not in TASKS:
        return ["0", "1"]
    labels = TASKS[task].labels
    return list(labels) if labels else None


def _show(counts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..recipes.report import human_bytes
    from ..surgery.bound import by_reason
    from ..train.rich_text import plain, say

    title = f"{counts['model']}, LoRA of rank {counts['r']} on {counts['layers']} layers"
    table = Table("", "parameters", title=plain(title))
    table.columns[1].justify = "right"
    table.add_row("LoRA factors", f"{counts['lora']:,}")
    table.add_row("head", f"{counts['head']:,}")
    table.add_row("trained in all", f"{counts['trained']:,}")
    table.add_row("the model", f"{counts['base']:,}")
    table.add_row("share", f"{counts['share']:.3%}")
    table.add_row("on disk (float32)", human_bytes(counts["adapter_bytes"]))
    console = Console()
    console.print(table)
    console.print(_memory_table(counts["memory"]))
    if counts["left_out"]:
        say(console, f"Without LoRA: {by_reason(counts['left_out'])}.")
    if counts["paper"]:
        say(console, f"The paper prints {counts['paper']} for LoRA ({counts['paper_note']}).")


def _memory_table(memory: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    from ..recipes.report import human_bytes

    columns = ["weights", "gradients", "optimizer", "total", "saved"]
    table = Table(
        "", *columns, title=f"Kept between steps in {memory['dtype']} with {memory['optimizer']}, without activations"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for method, kept in memory.items():
        if isinstance(kept, Mapping):
            table.add_row(method, *(human_bytes(kept[name]) for name in columns))
    return table
