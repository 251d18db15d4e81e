"""Options of `loralib train`, as one frozen value: those of the command line, and the keys of its YAML file.

`option_sections` declares them; here is which go together, and what follows from them.

LoRA's own are nested in `lora`, a `LoRAConfig`; on the command line and in presets they stand flat among the others. An option
that means what a field of transformers' `TrainingArguments` means has its name. Nothing heavy is imported here, so that
`loralib train --help` answers at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from ..architectures import ROLES
from ..errors import ConfigError, RunError
from . import lora_options
from .nlu.glue import TASKS as GLUE
from .option_sections import (
    TEMPLATES,
    DataOptions,
    EvaluationOptions,
    MethodOptions,
    ModelOptions,
    OutputOptions,
    TrainingOptions,
)
from .records import is_local_file
from .task import TASKS, Method, Problem, Task, kind_of

HELD_OUT = 0.1
PERMISSION = "trust_remote_code"

_PATHS = ("model", "data", "eval_data", "test_data", "data_dir", "init_adapter", "chat_template")
_WORDS: Mapping[str, Sequence[str]] = {"chat_template": TEMPLATES}  # values that name no path, whatever is on the disk
PREFIX_LENGTH = 10  # Li and Liang's for data to text
_NEED_LORA = (*lora_options.NAMES, "layers", "init_adapter", "save_merged", "quantize")
IDLE: Mapping[Method, tuple[str, ...]] = {  # by method: options that have no effect with it
    "lora": ("prefix_length",),
    "last-layers": (*_NEED_LORA, "prefix_length"),
    "full": (*_NEED_LORA, "onednn", "train_head", "prefix_length"),  # which freezes nothing
    "bitfit": (*_NEED_LORA, "prefix_length"),
    "prefix": _NEED_LORA,
}
_NEED_HUB = ("data_config", "train_split")
_HUB_SPLITS = ("eval_split", "test_split")
_COLUMNS = ("text_column", "text_pair_column", "label_column", "context_column", "completion_column")
_NEED_DATA = (*_NEED_HUB, *_HUB_SPLITS, "eval_data", "test_data", *_COLUMNS, "problem")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OutputOptions, EvaluationOptions, TrainingOptions, MethodOptions, DataOptions, ModelOptions):
    """A run: classifying, scoring or generating text. Raises `ConfigError` or `RunError` for values that cannot work.

    The fields of the last base class come first.
    """

    def __post_init__(self) -> None:
        if not self.model:
            raise RunError("No model was named; give --model, a name on the Hugging Face hub or a local folder.")
        if bool(self.task) == bool(self.data):
            raise RunError("Give either --task, a GLUE task by name, or --data, a file or a data set on the hub.")
        object.__setattr__(self, "lora", lora_options.read(lora_options.plain(self.lora)))
        for option in fields(self):
            value, rule = getattr(self, option.name), option.metadata.get("rule")
            if rule and value is not None and not rule.holds(value):
                raise ConfigError(f"{option.name}={value!r}: {rule.words}.")
        if unknown := [role for role in self.roles if role not in ROLES]:
            raise ConfigError(f"layers={self.layers!r}: {unknown[0]!r} is none of {', '.join(ROLES)}.")
        if self.method not in (methods := self.task_kind.learning_rates):
            raise ConfigError(
                f"method={self.method!r}: problem={self.kind} has method={', '.join(methods)}{self.task_kind.because}."
            )
        self._refuse_what_cannot_act()

    def _refuse_what_cannot_act(self) -> None:
        """`ConfigError` for an option that the other options leave without effect."""
        local = bool(self.data and is_local_file(self.data))
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
            (
                self.packing,
                ("group_by_length",),
                "has no effect with packing, which makes rows of one length; give one of them",
            ),
            (
                self.kind == "preference",
                ("lora_dropout",),
                "has no effect with problem=preference: answers are compared with a reference that drops nothing",
            ),
            (
                self.method == "prefix",
                ("gradient_checkpointing",),
                "cannot be used with method=prefix, whose keys and values are in a cache that checkpointing does without",
            ),
            (not self.best_epoch, ("patience",), "needs best_epoch: stopping early keeps the best epoch"),
        ]
        usual = {option.name: option.default for option in fields(self)} | lora_options.plain(lora_options.USUAL)
        changed = {name: value for name, value in self.flat().items() if value != usual[name] and value is not False}
        for applies, names, why in rules:
            for name, value in changed.items():
                if applies and name in names:
                    raise ConfigError(f"{name}={value!r} {why}.")
        if self.learning_rate == "auto" and self.kind not in ("generation", "chat"):
            raise ConfigError("learning_rate='auto': is a rule for texts that a language model learns; give a number.")
        if self.learning_rate == "auto" and self.method in ("bitfit", "prefix"):
            raise ConfigError(f"learning_rate='auto': has no rule for method={self.method}; give a number.")
        if self.metric not in (known := self.task_kind.metrics):
            raise ConfigError(f"metric_for_best_model={self.metric!r}: must be one of {', '.join(known)} for this problem.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From values by name, LoRA's own among the others, or in a mapping by the name "lora"; what is usual for the kind of
        task stands for those that are not given."""
        flat = {**{name: value for name, value in values.items() if name != "lora"}, **(values.get("lora") or {})}
        flat = {**_usual(flat), **flat}
        own = {name: value for name, value in flat.items() if name in lora_options.NAMES}
        return cls(lora=lora_options.read(own), **{name: value for name, value in flat.items() if name not in own})

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

    def settled_as(self, run: Self) -> Self:
        """The same options, with what they leave to the model or to the processor as it was settled in a run."""
        left = {name: getattr(self, name) is None for name in ("chat_template", "layout")}
        left |= {name: getattr(self, name) == "auto" for name in ("learning_rate", "onednn")}
        return replace(self, **{name: getattr(run, name) for name, is_left in left.items() if is_left})

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
        """The learning rate, or the method's default; where it is to be found by the model, that until it is."""
        known = self.learning_rate not in (None, "auto")
        return float(self.learning_rate or 0) if known else self.task_kind.learning_rates[self.method]

    @property
    def prefix(self) -> int:
        """How many tokens long the prefix is; 0 for methods without one."""
        return (self.prefix_length or PREFIX_LENGTH) if self.method == "prefix" else 0

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
            if value and value not in _WORDS.get(name, ()) and Path(value).exists():
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


def _usual(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is usual for the kind of task, but for options that others which are given leave without effect."""
    kind = TASKS.get(kind_of(given.get("task"), given.get("problem")))
    usual = {"group_by_length": bool(given.get("data")), **(kind.usual if kind else {})}
    if given.get("layers"):
        usual.pop("target_modules", None)
    if given.get("packing"):
        usual.pop("group_by_length", None)
    if given.get("method", "lora") != "lora":
        usual = {name: value for name, value in usual.items() if name not in lora_options.NAMES}
    return usual
