"""Options of `loralib train`, as one frozen value: those of the command line, and the keys of its YAML file.

LoRA's own are nested in `lora`, a `LoRAConfig`; on the command line and in presets they stand flat among the others. An option
that means what a field of transformers' `TrainingArguments` means has its name. Nothing heavy is imported here, so that
`loralib train --help` answers at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from ..architectures import ROLES
from ..config import LoRAConfig
from ..errors import ConfigError, RunError
from . import lora_options
from .nlu.glue import TASKS as GLUE
from .records import is_local_file
from .task import TASKS, Method, Problem, Task, kind_of

Head = Literal["all", "classifier"]

HELD_OUT = 0.1
PERMISSION = "trust_remote_code"

_PATHS = ("model", "data", "eval_data", "test_data", "data_dir", "init_adapter")
_NEED_LORA = (*lora_options.NAMES, "layers", "init_adapter", "save_merged")
IDLE: Mapping[Method, tuple[str, ...]] = {  # by method: options that have no effect with it
    "lora": (),
    "last-layers": _NEED_LORA,
    "full": (*_NEED_LORA, "onednn", "train_head"),  # which freezes nothing
}
_NEED_HUB = ("data_config", "train_split")
_HUB_SPLITS = ("eval_split", "test_split")
_COLUMNS = ("text_column", "text_pair_column", "label_column", "context_column", "completion_column")
_NEED_DATA = (*_NEED_HUB, *_HUB_SPLITS, "eval_data", "test_data", *_COLUMNS, "problem")

_CHOICES = {"method": get_args(Method), "problem": get_args(Problem), "train_head": get_args(Head)}
_POSITIVE = (
    *("learning_rate", "num_train_epochs", "batch_size", "device_batch_size", "gradient_accumulation_steps", "patience"),
    *("per_device_eval_batch_size", "max_length", "max_train_rows", "max_eval_rows", "save_steps"),
)
_NOT_NEGATIVE = ("max_grad_norm", "max_test_rows", "warmup_steps", "weight_decay")
_SHARES = ("head_dropout", "attention_dropout", "base_dropout", "label_smoothing_factor", "warmup_ratio")
_RULES: Sequence[tuple[Sequence[str], Callable[[Any], bool], str]] = (  # what holds for options, and the sentence for it
    (_POSITIVE, lambda value: 0 < value < math.inf, "must be positive"),
    (_NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "must not be negative"),
    (_SHARES, lambda value: 0 <= value < 1, "must be in [0, 1)"),
    (("eval_fraction", "adam_epsilon"), lambda value: 0 < value < 1, "must be between 0 and 1"),
    (("seed",), lambda value: 0 <= value < 2**32, "must be in [0, 2**32)"),
)


def _group(title: str) -> Callable[[Any, str], Any]:
    """A field with a default and a help text, shown in the group `title` of the command's help."""
    return lambda default, help: field(default=default, metadata={"help": help, "group": title})


_run, _data, _method, _training = map(_group, ("run", "data", "method", "training"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """A run: classifying, scoring or generating text. Raises `ConfigError` or `RunError` for values that cannot work."""

    model: str | None = _run(
        None, "Hugging Face encoder, or causal language model to generate text: a name on the hub or a local folder"
    )
    output: str | None = _run(None, "run folder to write (default: runs/<data>-<method>)")

    task: str | None = _data(
        None, "a task by name: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli of GLUE; e2e, webnlg, dart to generate text"
    )
    data_dir: str | None = _data(None, "folder with the task's own files, such as SST-2/train.tsv (default: the hub)")
    data: str | None = _data(None, "training data: a local .tsv, .csv or .jsonl file (or .gz), or a data set on the hub")
    data_config: str | None = _data(None, "configuration of a hub data set")
    train_split: str = _data("train", "training split of a hub data set")
    eval_data: str | None = _data(None, "evaluation data: a local file (default: a part of the training data)")
    eval_split: str | None = _data(None, "evaluation split of a hub data set (default: a part of the training data)")
    eval_fraction: float | None = _data(
        None,
        "share of the training rows held out to evaluate on (default: 0.1 when there is no evaluation data); "
        "the development set of a GLUE task is then scored once, at the end",
    )
    test_data: str | None = _data(None, "labelled data to score once, at the end, with the epoch that was kept: a local file")
    test_split: str | None = _data(None, "the same: a test split of a hub data set")
    text_column: str = _data("text", "column of the text")
    text_pair_column: str | None = _data(None, "column of the second text, for tasks on pairs")
    label_column: str = _data("label", "column of the label")
    context_column: str = _data("context", "generation: field of the input in a .jsonl file")
    completion_column: str = _data("completion", "generation: field of the text, or of a list of texts")
    problem: Problem | None = _data(
        None, "what is learned: classes, numbers to regress on, or the text that follows an input (default: classification)"
    )
    max_train_rows: int | None = _data(None, "use a seeded sample of so many training rows")
    max_eval_rows: int | None = _data(None, "use a seeded sample of so many evaluation rows")
    max_test_rows: int | None = _data(None, "use a seeded sample of so many test rows (0: none)")
    max_length: int | None = _data(None, "longest row in tokens; longer ones are cut (default: 128; 512 for generation)")

    method: Method = _method(
        "lora", "what is trained: LoRA and the head, the head alone (generation: the last two blocks), or everything"
    )
    lora: LoRAConfig = field(default=lora_options.USUAL, metadata={"help": lora_options.HELP, "group": "method"})
    layers: list[str] | str | None = _method(
        None, "layers to adapt, by what they do: query,key,value,output,mlp, by any name (default: query,value)"
    )
    init_adapter: str | None = _method(
        None, "start from these LoRA factors: the folder of a run or of an adapter, or a file of loralib 0.1"
    )
    train_head: Head = _method(
        "all", "what of the head is trained: all of it, or the classifier alone, its last layer (methods lora and last-layers)"
    )
    head_dropout: float | None = _method(None, "dropout before the classifier (default: as the model's config says)")
    attention_dropout: float | None = _method(
        None, "dropout on attention weights (default: as the model's config says; 0 is much faster on a CPU)"
    )

    base_dropout: float | None = _method(None, "generation: all dropouts of the model itself (default: as its config says)")

    learning_rate: float | None = _training(
        None, "peak learning rate (default: 5e-4 lora, 1e-2 last-layers, 5e-5 full; generation: 2e-4, 1e-4, 5e-5)"
    )
    num_train_epochs: float = _training(3.0, "passes over the training data")
    batch_size: int = _training(32, "rows a step, on all devices together")
    device_batch_size: int | None = _training(
        None, "most rows that a device computes at once; what is left of its share of a step is accumulated"
    )
    gradient_accumulation_steps: int | None = _training(
        None, "parts in which a device computes its share of a step (default: 1)"
    )
    per_device_eval_batch_size: int = _training(64, "rows a step in evaluation, a device")
    weight_decay: float = _training(0.01, "AdamW's weight decay (not on biases and norms)")
    adam_epsilon: float = _training(1e-8, "AdamW's epsilon")
    max_grad_norm: float = _training(1.0, "longest gradient; longer ones are scaled down (0: none is)")
    label_smoothing_factor: float = _training(0.0, "generation: share of a token's target that is spread over the vocabulary")
    warmup_ratio: float = _training(0.06, "share of the steps in which the learning rate rises")
    warmup_steps: int | None = _training(None, "number of those steps, instead of a share")
    best_epoch: bool = _training(True, "keep the epoch with the best metric (false: the last)")
    metric_for_best_model: str | None = _training(
        None, "metric that chooses the best epoch (default: the task's; accuracy; pearson; perplexity)"
    )
    patience: int | None = _training(None, "stop after so many epochs without a better metric")
    save_steps: int | None = _run(None, "write a checkpoint every so many steps (default: every epoch)")
    group_by_length: bool = _training(False, "put texts of similar length into a batch: less padding, more speed")
    bf16: bool = _training(False, "train in bfloat16 autocast")
    fp16: bool = _training(False, "train in float16 autocast, with loss scaling (needs a GPU)")
    onednn: bool = _training(
        False, "on a CPU: frozen products by oneDNN's kernel, which on some processors takes half the time"
    )
    trust_remote_code: bool = _run(
        False,
        "run the Python code that comes with the model, where it needs some (never read from a file, nor kept with the run)",
    )
    seed: int = _run(0, "seed of initialisation, sampling, order and dropout")
    save_merged: bool = _run(False, "also write the merged model, for plain transformers, to <output>/merged")

    def __post_init__(self) -> None:
        if not self.model:
            raise RunError("No model was named; give --model, a name on the Hugging Face hub or a local folder.")
        if bool(self.task) == bool(self.data):
            raise RunError("Give either --task, a GLUE task by name, or --data, a file or a data set on the hub.")
        object.__setattr__(self, "lora", lora_options.read(lora_options.plain(self.lora)))
        for names, holds, rule in _RULES:
            for name in names:
                if (value := getattr(self, name)) is not None and not holds(value):
                    raise ConfigError(f"{name}={value!r}: {rule}.")
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in known:
                raise ConfigError(f"{name}={value!r}: must be one of {', '.join(known)}.")
        if unknown := [role for role in self.roles if role not in ROLES]:
            raise ConfigError(f"layers={self.layers!r}: {unknown[0]!r} is none of {', '.join(ROLES)}.")
        self._refuse_what_cannot_act()

    def _refuse_what_cannot_act(self) -> None:
        """`ConfigError` for an option that the other options leave without effect."""
        local = bool(self.data and is_local_file(self.data))
        best = "needs best_epoch=false: the best epoch is chosen among checkpoints at epochs' ends"
        rules: list[tuple[bool, Sequence[str], str]] = [
            (True, IDLE[self.method], f"has no effect with method={self.method}"),
            (self.bf16 or self.fp16, ("onednn",), "has no effect with bf16 or fp16: it concerns float32 products"),
            (self.bf16, ("fp16",), "contradicts bf16; give one of them"),
            (bool(self.task), _NEED_DATA, f"has no effect with task={self.task}, which says where its texts and labels are"),
            (bool(self.lora.target_modules), ("layers",), "has no effect with target_modules; give one of them"),
            (not self.lora.target_modules, ("enable_lora", "slice_widths"), "has no effect without target_modules"),
            (not self.task, ("data_dir",), "has no effect without task; with data, give the file itself"),
            *(
                (name not in self.task_kind.options, (name,), other.belongs)
                for other in TASKS.values()
                for name in other.options
            ),
            (
                not self.task_kind.from_hub and not self.task,
                (*_NEED_HUB, *_HUB_SPLITS),
                "has no effect: data to generate from are local .jsonl files",
            ),
            (local, _NEED_HUB, f"has no effect with the local file {self.data}; it belongs to hub data sets"),
            (bool(self.eval_data), ("eval_split", "eval_fraction"), "has no effect with eval_data; give one of them"),
            (bool(self.eval_split), ("eval_fraction",), "has no effect with eval_split; give one of them"),
            (bool(self.test_data), ("test_split",), "has no effect with test_data; give one of them"),
            (not self._has_test_rows, ("max_test_rows",), "has no effect without test rows: test_data, test_split"),
            (self.warmup_steps is not None, ("warmup_ratio",), "has no effect with warmup_steps; give one of them"),
            (
                bool(self.device_batch_size),
                ("gradient_accumulation_steps",),
                "has no effect with device_batch_size; give one of them",
            ),
            (not self.best_epoch, ("patience",), "needs best_epoch: stopping early keeps the best epoch"),
            (self.best_epoch, ("save_steps",), best),
        ]
        usual = {option.name: option.default for option in fields(self)} | lora_options.plain(lora_options.USUAL)
        changed = {name: value for name, value in self.flat().items() if value != usual[name]}
        for applies, names, why in rules:
            for name, value in changed.items():
                if applies and name in names:
                    raise ConfigError(f"{name}={value!r} {why}.")
        if self.metric not in (known := self.task_kind.metrics):
            raise ConfigError(f"metric_for_best_model={self.metric!r}: must be one of {', '.join(known)} for this problem.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From values by name, LoRA's own among the others, or in a mapping by the name "lora"."""
        own = {**(values.get("lora") or {}), **{name: value for name, value in values.items() if name in lora_options.NAMES}}
        return cls(
            lora=lora_options.read(own),
            **{name: value for name, value in values.items() if name not in (*lora_options.NAMES, "lora")},
        )

    def updated(self, values: Mapping[str, Any]) -> Self:
        """The same options but for these values, by name as in `of`."""
        return self.of({**self.flat(), **values})

    def flat(self) -> dict[str, Any]:
        """All options by name, LoRA's own among the others."""
        own = {name: value for name, value in self.to_dict().items() if name != "lora"}
        return own | {PERMISSION: self.trust_remote_code} | lora_options.plain(self.lora)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values, ready for YAML; LoRA's own in a mapping of their own. A permission to run code is not
        among them: it is given to one command and not to a file."""
        own = {option.name: getattr(self, option.name) for option in fields(self) if option.name != PERMISSION}
        return own | {"lora": lora_options.plain(self.lora)}

    @property
    def tests(self) -> bool:
        """Whether rows are kept to be scored once, at the end."""
        return self._has_test_rows and self.max_test_rows != 0

    @property
    def _has_test_rows(self) -> bool:
        return bool(self.test_data or self.test_split or (self.task and self.eval_fraction))

    @property
    def kind(self) -> Problem:
        """What is learned, by the task or as `problem` says."""
        return kind_of(self.task, self.problem)

    @property
    def task_kind(self) -> Task:
        """What holds for runs of this kind."""
        return TASKS[self.kind]

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return self.max_length or self.task_kind.max_length

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the method's default."""
        return self.task_kind.learning_rates[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def metric(self) -> str:
        """The metric that chooses the best epoch and stands in the table."""
        return self.metric_for_best_model or self.task_kind.named.get(self.task or "", self.task_kind.metrics[0])

    @property
    def roles(self) -> list[str]:
        """The roles of the layers to adapt where `target_modules` names none: query and value, as in the paper."""
        return lora_options.words(self.layers) if isinstance(self.layers, str) else list(self.layers or ("query", "value"))

    def with_absolute_paths(self) -> Self:
        """The same options with local paths that work from any folder."""
        local: dict[str, Any] = {}
        for name in _PATHS:
            value = getattr(self, name)
            if value and Path(value).exists():
                local[name] = str(Path(value).resolve())
        return replace(self, **local)

    @property
    def data_name(self) -> str:
        """What the data is called in a title: the task, or the file or data set without folders and endings."""
        return self.task or (self.data or "").rstrip("/").rpartition("/")[2].split(".")[0]

    @property
    def takes_pairs(self) -> bool:
        """Whether an input is two texts."""
        return bool(GLUE[self.task].pair if self.task and self.task in GLUE else self.text_pair_column)
