"""Kinds of task as data: what a run of each kind has unless its options say otherwise, and the module that carries it out.

A further kind is one `Task` in `TASKS`, and one module with the functions of `plan.Implementation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from .nlg.tasks import TASKS as DATA_TO_TEXT
from .nlu.glue import TASKS as GLUE

Method = Literal["lora", "last-layers", "full", "bitfit", "prefix"]
METHODS: tuple[Method, ...] = get_args(Method)
COMPARED: tuple[Method, ...] = ("lora", "last-layers", "full")  # unless others are asked for
ADAPTERS: tuple[Method, ...] = ("lora", "prefix")  # whose runs leave the base model as it is, and save what they add to it
Problem = Literal["classification", "regression", "generation", "chat", "preference"]

LOWER_IS_BETTER = ("perplexity", "nll", "loss")


@dataclass(frozen=True)
class Task:
    """One kind of task.

    named: tasks of this kind that have a name, each with its metric. metrics: what a model is judged by; the first chooses the
    best epoch on other data. learning_rates: by method; a method without one is not for this kind, and `because` may say why.
    options: those that only this kind has; belongs: what a message says of them elsewhere. usage: what its runs do, and the
    commands that use them.
    from_hub: whether its data may be a data set on the hub. unit: what a metric of 1 is in the paper's tables. module: where it
    is carried out. following: what is done next with a run on a task. usual: options that are not those of other kinds when
    they are not given. evaluates_first: whether there is an evaluation before the first step. package: an optional one
    that it needs.
    """

    named: Mapping[str, str]
    metrics: tuple[str, ...]
    max_length: int
    learning_rates: Mapping[Method, float]
    options: tuple[str, ...]
    belongs: str
    usage: str
    from_hub: bool
    unit: int
    module: str
    following: str = ""
    usual: Mapping[str, Any] = field(default_factory=dict)
    evaluates_first: bool = False
    package: str = ""
    because: str = ""


_OF_RIVALS: Mapping[Method, float] = {
    "bitfit": 1e-3,  # of its authors (github.com/benzakenelad/BitFit)
    "prefix": 1e-2,  # of PEFT for classification, without Li and Liang's network in front of the prefix, whose rate is 5e-5
}
CLASSIFICATION = Task(
    named={name: task.metric for name, task in GLUE.items() if task.labels},
    metrics=("accuracy", "f1", "matthews"),
    max_length=128,
    learning_rates={"lora": 5e-4, "last-layers": 1e-2, "full": 5e-5, **_OF_RIVALS},
    options=("text_column", "text_pair_column", "label_column", "train_head", "head_dropout", "attention_dropout"),
    belongs="has no effect on generating text",
    usage="generates no text; use loralib predict or loralib evaluate",
    from_hub=True,
    unit=100,
    module="nlu.text_classification",
)
REGRESSION = replace(
    CLASSIFICATION, named={name: task.metric for name, task in GLUE.items() if not task.labels}, metrics=("pearson", "spearman")
)
_OF_LANGUAGE_MODELS = ("base_dropout", "label_smoothing_factor", "chat_template", "dtype")
GENERATION = Task(
    named=dict.fromkeys(DATA_TO_TEXT, "perplexity"),
    metrics=("perplexity", "nll"),
    max_length=512,
    learning_rates={"lora": 2e-4, "last-layers": 1e-4, "full": 5e-5, **_OF_RIVALS},
    options=("context_column", "completion_column", *_OF_LANGUAGE_MODELS),
    belongs="belongs to generating text: to task=e2e, or to problem=generation or chat",
    usage="generates text; use loralib generate and loralib score",
    from_hub=False,
    unit=1,
    module="nlg.text_generation",
    following="loralib generate {run} --split test, and loralib score {task} {run}",
)
CHAT = Task(
    named={},
    metrics=("perplexity", "nll"),
    max_length=1024,
    learning_rates={"lora": 2e-4, "last-layers": 2e-5, "full": 2e-5},  # where the model does not say what suits it
    options=("layout", "packing", "samples", *_OF_LANGUAGE_MODELS),
    belongs="belongs to problem=chat",
    usage="answers messages; use loralib chat or loralib generate",
    from_hub=True,
    unit=1,
    module="chat.fine_tuning",
    evaluates_first=True,
    usual={
        "r": 16,
        "lora_alpha": 32.0,
        "target_modules": "all-linear",
        "learning_rate": "auto",
        "batch_size": 16,
        "per_device_eval_batch_size": 8,
        "group_by_length": True,
    },
)
PREFERENCE = Task(
    named={},
    metrics=("reward_accuracy", "reward_margin"),
    max_length=1024,
    learning_rates={"lora": 5e-6},  # of LoRA in TRL's trl/scripts/dpo.py: ten times that of full fine-tuning
    options=("beta", "dpo_loss", "samples", "chat_template", "dtype"),
    belongs="belongs to problem=preference",
    usage="learned preferences between answers; use loralib chat or loralib generate",
    from_hub=True,
    unit=100,
    module="chat.preference",
    package="trl",
    because=" alone, whose base model is the reference; any other would need a second model in memory",
    evaluates_first=True,
    usual={
        "r": 16,
        "lora_alpha": 32.0,
        "target_modules": "all-linear",
        "batch_size": 16,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 1,
        "group_by_length": True,
    },
)
TASKS: Mapping[Problem, Task] = MappingProxyType(
    {
        "classification": CLASSIFICATION,
        "regression": REGRESSION,
        "generation": GENERATION,
        "chat": CHAT,
        "preference": PREFERENCE,
    }
)


def kind_of(name: str | None, problem: Problem | None) -> Problem:
    """The kind of the task `name`; for other data what `problem` says, or classification."""
    return next((kind for kind, task in TASKS.items() if name in task.named), problem or "classification")


def goodness(metric: str, value: float) -> float:
    """The metric's value with the sign that makes more of it better."""
    return -value if metric in LOWER_IS_BETTER else value
