"""`loralib count`: how many parameters LoRA would train, exactly, with what the paper prints. Loads no weights."""

from collections.abc import Sequence
from typing import Any

from ..architectures import PUBLISHED, ROLES, short_name
from ..errors import ConfigError
from ..recipes import presets
from ..recipes.nlg.tasks import TASKS as GENERATION_TASKS
from ..recipes.nlu.glue import TASKS
from ..recipes.options import TrainOptions
from ..storage.json_text import as_json
from .offline import offline_if_unreachable
from .parsing import OneSentenceParser, add_trust

PRINTED = {  # by model: what Tables 2 and 3 of the paper print for LoRA, and a note about it
    "roberta-base": ("0.3M", "r = 8 on query and value"),
    "roberta-large": ("0.8M", "r = 8 on query and value"),
    "deberta-v2-xxlarge": ("4.7M", "r = 16 on query and value, although Table 10 prints r = 8"),
    "gpt2-medium": ("0.35M", "r = 4 on query and value, which is 0.39M"),
    "gpt2-large": ("0.77M", "r = 4 on query and value, which is 0.74M"),
}
BYTES = 4


def run(words: Sequence[str]) -> int:
    """Count; returns the exit code."""
    parsed = parser().parse_args(words)
    given = {name: getattr(parsed, name) for name in ("r", "layers", "target_modules") if getattr(parsed, name) is not None}

    if parsed.preset:
        given = presets.resolve(parsed.preset, parsed.task or presets.usual_task(parsed.model), parsed.model).updated(given)
    with offline_if_unreachable(None if short_name(parsed.model) in PUBLISHED else parsed.model):
        counts = _count(parsed.model, parsed.task, given, parsed.trust_remote_code)
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
        description="Count the parameters that LoRA would train on a model, factors and head, exactly. Loads no weights.",
        examples=(
            "loralib count --model roberta-base --r 8",
            "loralib count --model gpt2-medium --r 4 --layers query,value,mlp",
            "loralib count --model roberta-large --task mnli --preset paper",
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
    made.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_trust(made)
    return made


def _count(model: str, task: str | None, given: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    from ..recipes import lora_setup, paper_models
    from ..train.measure import count_parameters, share

    shape = paper_models.build(model, _labels(task), trust_remote_code)
    if shape.is_causal and task in TASKS:
        raise ConfigError(
            f"--task {task}: {model} generates text; leave --task out, or give one of {', '.join(GENERATION_TASKS)}."
        )
    if not shape.is_causal and task in GENERATION_TASKS:
        raise ConfigError(f"--task {task}: {model} generates no text; leave --task out, or give one of {', '.join(TASKS)}.")
    usual: dict[str, Any] = {"r": 4, "task": "e2e"} if shape.is_causal else {"r": 8, "task": task or "sst2"}
    options = TrainOptions.of(usual | given | {"model": model})
    adapted = lora_setup.inject(shape.model, options, shape.head)
    found = count_parameters(shape.model)
    printed, note = PRINTED.get(short_name(model), (None, None))
    return {
        "model": model,
        "r": options.lora.r,
        "layers": len(adapted),
        "left_out": adapted.left_out,
        "lora": found["lora"],
        "head": found["trained"] - found["lora"],
        "trained": found["trained"],
        "base": found["total"],
        "share": share(found),
        "adapter_bytes": BYTES * found["trained"],
        "paper": printed,
        "paper_note": note,
    }


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
    if counts["left_out"]:
        say(console, f"Without LoRA: {by_reason(counts['left_out'])}.")
    if counts["paper"]:
        say(console, f"The paper prints {counts['paper']} for LoRA ({counts['paper_note']}).")
