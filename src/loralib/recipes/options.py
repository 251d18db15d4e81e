"""What `loralib train` can be told, as one frozen value: the options of the command line and the keys of its YAML file.

Nothing heavy is imported here, so that `loralib train --help` answers at once.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import ALL_LINEAR, check_alpha, check_dropout, check_rank
from ..errors import ConfigError, RunError
from .glue import TASKS
from .readers import is_local_file

Method = Literal["lora", "last-layers", "full"]
Problem = Literal["classification", "regression"]

_PATHS = ("model", "data", "eval_data", "data_dir")
NEED_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "save_merged")
NEED_FROZEN = ("onednn",)
_NEED_DATA = (
    "data_config",
    "train_split",
    "eval_data",
    "eval_split",
    "eval_fraction",
    "text_column",
    "text_pair_column",
    "label_column",
    "problem",
)
_NEED_HUB = ("data_config", "train_split")

DEFAULT_LEARNING_RATE = {"lora": 5e-4, "last-layers": 1e-2, "full": 5e-5}


def _group(title: str) -> Callable[[Any, str], Any]:
    """A field with a default and a help text, shown in the group `title` of the command's help."""
    return lambda default, help: field(default=default, metadata={"help": help, "group": title})


_run, _data, _method, _training = map(_group, ("run", "data", "method", "training"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """A text classification or regression run. Raises `ConfigError` or `RunError` for values that cannot work."""

    model: str | None = _run(None, "Hugging Face encoder: a name on the hub or a local folder")
    output: str | None = _run(None, "run folder to write (default: runs/<data>-<method>)")

    task: str | None = _data(None, "a GLUE task by name: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli")
    data_dir: str | None = _data(None, "folder with GLUE's own TSV folders, such as SST-2 (default: the hub)")
    data: str | None = _data(None, "training data: a local .tsv, .csv or .jsonl file (or .gz), or a data set on the hub")
    data_config: str | None = _data(None, "configuration of a hub data set")
    train_split: str = _data("train", "training split of a hub data set")
    eval_data: str | None = _data(None, "evaluation data: a local file (default: a part of the training data)")
    eval_split: str | None = _data(None, "evaluation split of a hub data set (default: a part of the training data)")
    eval_fraction: float = _data(0.1, "share of the training data held out when there is no evaluation data")
    text_column: str = _data("text", "column of the text")
    text_pair_column: str | None = _data(None, "column of the second text, for tasks on pairs")
    label_column: str = _data("label", "column of the label")
    problem: Problem = _data("classification", "what the labels are: classes, or numbers to regress on")
    max_train_rows: int | None = _data(None, "use a seeded sample of so many training rows")
    max_eval_rows: int | None = _data(None, "use a seeded sample of so many evaluation rows")
    max_length: int = _data(128, "longest input in tokens; longer texts are cut")

    method: Method = _method("lora", "what is trained: LoRA and the head, the head alone, or everything")
    r: int = _method(8, "LoRA rank")
    lora_alpha: float = _method(16.0, "LoRA scaling numerator: the update is scaled by lora_alpha / r")
    lora_dropout: float = _method(0.0, "dropout on the input of the LoRA update")
    target_modules: list[str] | str | None = _method(
        None, "layers to adapt: names (query,value), a regular expression, or all-linear (default: attention query and value)"
    )
    use_rslora: bool = _method(False, "scale the update by lora_alpha / sqrt(r)")

    learning_rate: float | None = _training(None, "peak learning rate (default: 5e-4 lora, 1e-2 last-layers, 5e-5 full)")
    epochs: float = _training(3.0, "passes over the training data")
    batch_size: int = _training(32, "rows a step, on all devices together")
    gradient_accumulation: int = _training(1, "parts in which a device computes its share of a step")
    eval_batch_size: int = _training(64, "rows a step in evaluation, a device")
    weight_decay: float = _training(0.01, "AdamW's weight decay (not on biases and norms)")
    warmup_ratio: float = _training(0.06, "share of the steps in which the learning rate rises")
    best_epoch: bool = _training(True, "keep the epoch with the best metric (false: the last)")
    metric: str | None = _training(None, "metric that chooses the best epoch (default: the task's; accuracy; pearson)")
    patience: int | None = _training(None, "stop after so many epochs without a better metric")
    save_steps: int | None = _run(None, "write a checkpoint every so many steps (default: every epoch)")
    bf16: bool = _training(False, "train in bfloat16 autocast")
    onednn: bool = _training(
        False, "on a CPU: frozen products by oneDNN's kernel, which on some processors takes half the time"
    )
    seed: int = _run(0, "seed of initialisation, sampling, order and dropout")
    save_merged: bool = _run(False, "also write the merged model, for plain transformers, to <output>/merged")

    def __post_init__(self) -> None:
        if not self.model:
            raise RunError("No model was named; give --model, a name on the Hugging Face hub or a local folder.")
        if bool(self.task) == bool(self.data):
            raise RunError("Give either --task, a GLUE task by name, or --data, a file or a data set on the hub.")
        check_rank(self.r), check_alpha(self.lora_alpha), check_dropout(self.lora_dropout)
        for name in ("learning_rate", "epochs", "batch_size", "gradient_accumulation", "eval_batch_size", "max_length"):
            self._check(name, lambda value: 0 < value < math.inf, "must be positive")
        for name in ("max_train_rows", "max_eval_rows", "patience", "save_steps"):
            self._check(name, lambda value: value > 0, "must be positive")
        self._check("eval_fraction", lambda value: 0 < value < 1, "must be between 0 and 1")
        self._check("warmup_ratio", lambda value: 0 <= value < 1, "must be in [0, 1)")
        self._check("weight_decay", lambda value: 0 <= value < math.inf, "must not be negative")
        self._check("seed", lambda value: 0 <= value < 2**32, "must be in [0, 2**32)")
        self._check("method", lambda value: value in get_args(Method), f"must be one of {', '.join(get_args(Method))}")
        self._check("problem", lambda value: value in get_args(Problem), f"must be one of {', '.join(get_args(Problem))}")
        self._check("target_modules", bool, "must name layers")
        self._refuse_what_cannot_act()

    def _check(self, name: str, holds: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name}={value!r}: {rule}.")

    def _refuse_what_cannot_act(self) -> None:
        """`ConfigError` for an option that the other options leave without effect."""
        if self.method == "full":
            self._refuse(NEED_FROZEN, "has no effect with method=full, which freezes nothing")
        if self.bf16:
            self._refuse(NEED_FROZEN, "has no effect with bf16: it concerns float32 products")
        if self.method != "lora":
            self._refuse(NEED_LORA, f"has no effect with method={self.method}; it belongs to method=lora")
        if self.task:
            self._refuse(_NEED_DATA, f"has no effect with task={self.task}, which says where its texts and labels are")
        else:
            self._refuse(("data_dir",), "has no effect without task; with data, give the file itself")
        if self.data and is_local_file(self.data):
            self._refuse(_NEED_HUB, f"has no effect with the local file {self.data}; it belongs to hub data sets")
        if self.eval_data:
            self._refuse(("eval_split", "eval_fraction"), "has no effect beside eval_data; give one of them")
        if self.eval_split:
            self._refuse(("eval_fraction",), "has no effect beside eval_split; give one of them")
        if not self.best_epoch:
            self._refuse(("patience",), "needs best_epoch: stopping early keeps the best epoch")
        if self.best_epoch:
            self._refuse(("save_steps",), "needs best_epoch=false: the best epoch is chosen among checkpoints at epochs' ends")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        for option in fields(self):
            if option.name in names and getattr(self, option.name) != option.default:
                raise ConfigError(f"{option.name}={getattr(self, option.name)!r} {why}.")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the method's default."""
        return DEFAULT_LEARNING_RATE[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def targets(self) -> list[str] | str | None:
        """The target modules; words joined by commas are names."""
        given = self.target_modules
        if isinstance(given, str) and given != ALL_LINEAR and re.fullmatch(r"[\w.-]+(\s*,\s*[\w.-]+)*,?\s*", given):
            return [name.strip() for name in given.split(",") if name.strip()]
        return given

    def with_absolute_paths(self) -> "TrainOptions":
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
        return bool(TASKS[self.task].pair if self.task and self.task in TASKS else self.text_pair_column)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values, ready for YAML."""
        return {option.name: getattr(self, option.name) for option in fields(self)}
