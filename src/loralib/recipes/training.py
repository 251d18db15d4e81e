"""From the options of a run to the Hugging Face Trainer that carries it out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from .. import ops
from ..errors import ConfigError
from ..train.callbacks import SaveEvery
from ..train.devices import device_count
from ..train.fit import fit
from ..train.prefix import PrefixTrainer
from ..train.sampling import GroupingTrainer
from ..train.trainer import GroupingAdapterTrainer
from . import model_sources, run_folder
from .options import TrainOptions
from .plan import Plan
from .task import LOWER_IS_BETTER, Method

TRAINERS: Mapping[Method, type[Trainer]] = {"lora": GroupingAdapterTrainer, "prefix": PrefixTrainer}  # others: GroupingTrainer

# options that Trainer takes as they are
SAME = (
    "num_train_epochs",
    "per_device_eval_batch_size",
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "lr_scheduler_type",
    "report_to",
    "seed",
)


def share_of_batch(options: TrainOptions, devices: int) -> tuple[int, int]:
    """How many rows a device computes at once, and in how many such parts it computes its share of a step, so that a step
    of all `devices` is `batch_size` rows; `ConfigError` when they cannot share it evenly.

    >>> share_of_batch(TrainOptions(model="m", task="mnli", batch_size=128, device_batch_size=16), devices=2)
    (16, 4)
    """
    share, left = divmod(options.batch_size, devices)
    parts = options.gradient_accumulation_steps or 1
    if options.device_batch_size and not left:
        fewest = -(-share // options.device_batch_size)
        parts = next(n for n in range(fewest, share + 1) if share % n == 0)
    if left or share % parts:
        raise ConfigError(
            f"batch_size={options.batch_size} cannot be split evenly (devices: {devices}, gradient_accumulation_steps: "
            f"{parts}); make it a multiple of {devices * parts}."
        )
    return share // parts, parts


def argument_values(options: TrainOptions, folder: Path, rows: int, devices: int) -> dict[str, Any]:
    """Trainer's arguments for `rows` of training data, wherever it will run; `ConfigError` as `share_of_batch`."""
    share, parts = share_of_batch(options, devices)
    every: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if options.eval_steps:
        every |= {"eval_strategy": "steps", "eval_steps": options.eval_steps}
        if options.best_epoch:
            every |= {"save_strategy": "steps", "save_steps": options.eval_steps}
    if options.optim:
        every["optim"] = options.optim
    if options.gradient_checkpointing:
        known = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # the name since transformers 5.20
        every["activation_checkpointing" if known else "gradient_checkpointing"] = True
    return dict(
        output_dir=str(folder / run_folder.CHECKPOINTS),
        per_device_train_batch_size=share,
        gradient_accumulation_steps=parts,
        learning_rate=options.peak_learning_rate,
        warmup_steps=options.warmup_ratio if options.warmup_steps is None else options.warmup_steps,  # below 1: a share
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        save_total_limit=2,  # the best and the last; with 1, Trainer deletes the last when training ends
        load_best_model_at_end=options.best_epoch,
        metric_for_best_model=options.metric,
        greater_is_better=options.metric not in LOWER_IS_BETTER,
        restore_callback_states_from_checkpoint=True,  # how patient it has been
        logging_steps=max(1, min(10, rows // options.batch_size // 4)),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        **{name: getattr(options, name) for name in SAME},
        **every,
    )


def arguments(
    options: TrainOptions, folder: Path, rows: int, make: Callable[..., TrainingArguments] = TrainingArguments
) -> TrainingArguments:
    """The same, on the devices that are here; `ConfigError` also for what they cannot do. make: makes them of the values."""
    accelerated = torch.accelerator.is_available()
    if options.onednn is True and (accelerated or not ops.onednn.available()):
        raise ConfigError("onednn=True: must run on a CPU, with a build of torch that has oneDNN; leave the option out.")
    if options.fp16 and not accelerated:
        raise ConfigError("fp16=True: needs a GPU, and there is none; use --bf16 true, or say --fp16 false.")
    values = argument_values(options, folder, rows, device_count())
    try:
        found = make(**values, use_cpu=not accelerated, dataloader_pin_memory=torch.cuda.is_available())
        Trainer.get_optimizer_cls_and_kwargs(found)
        for tracker in get_reporting_integration_callbacks(found.report_to):
            tracker()
    except (ValueError, ImportError, RuntimeError) as error:  # names of optimizers, schedules and trackers
        raise ConfigError(f"transformers does not take these options: {' '.join(str(error).split())[:300]}") from None
    return found


def with_kernel(options: TrainOptions, model: nn.Module) -> tuple[TrainOptions, list[str]]:
    """The options with `onednn` as found by timing, where it is "auto", and a line that says what was found.

    All processes take what the first one finds.
    """
    if options.onednn != "auto":
        return options, []
    taken, notes = False, []
    if not (options.method == "full" or options.bf16 or options.fp16 or torch.accelerator.is_available()):
        found = [ops.measured.gain(model)]
        broadcast_object_list(found)
        if gain := found[0]:
            taken = gain >= ops.measured.FASTER
            notes = [
                f"oneDNN computes the frozen products, {gain:.2f} times as fast as torch's default here"
                if taken
                else f"torch's default products are used: oneDNN's are {gain:.2f} times as fast here, too little to choose them"
            ]
        elif not ops.onednn.available():
            notes = ["this build of torch has no oneDNN: its default products are used"]
    return options.updated({"onednn": taken}), notes


def run_trainer(options: TrainOptions, folder: Path, plan: Plan, callbacks: Sequence[TrainerCallback], **how: Any) -> Trainer:
    """Train as planned; `how` and what is raised as in `fit`."""
    chosen: list[TrainerCallback] = [EarlyStoppingCallback(options.patience)] if options.patience else []
    chosen += [SaveEvery(options.save_steps)] if options.save_steps else []
    args = arguments(options, folder, len(plan.data[0]), plan.arguments or TrainingArguments)
    args.eval_on_start = options.task_kind.evaluates_first and how.get("checkpoint") is None
    trainer = {
        **plan.trainer,
        "model": plan.model,
        "args": args,
        "train_dataset": plan.datasets[0],
        "eval_dataset": plan.datasets[1],
        "callbacks": [*chosen, *callbacks],
    }
    kind = plan.kind or TRAINERS.get(options.method, GroupingTrainer)
    if options.method == "lora":
        name = model_sources.locate(options.model or "").name
        trainer["metadata"] = {"base_model_name_or_path": name, "task_type": plan.task_type}
    with ops.use("onednn") if options.onednn is True else nullcontext():
        return fit(kind, trainer, metric=options.metric, log=folder / run_folder.LOGS, **how)


def score(trainer: Trainer, metrics: Sequence[str], rows: Any) -> dict[str, float]:
    """The metrics of the model as trained, on rows that training did not see."""
    found = trainer.predict(rows).metrics or {}
    return {name: found[f"test_{name}"] for name in metrics}
