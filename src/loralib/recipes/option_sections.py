"""The options of a run, by section: each field is an option of the command line and a key of the YAML file.

A new option is one field in its section: its default, what its value is called in the help, a help text, and what its values
must be. With which others it has no effect is said in `options`. Nothing heavy is imported here, so that `loralib train
--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..choices import QuantizedBase
from ..config import LoRAConfig
from . import lora_options
from .declaring import BETWEEN_0_AND_1, FRACTION, NOT_NEGATIVE, POSITIVE, SEED, Rule, one_of, option
from .task import Method, Problem

Head = Literal["all", "classifier"]
Dtype = Literal["fp32", "bf16", "fp16"]
DpoLoss = Literal["sigmoid", "hinge", "ipo"]
TEMPLATES = ("tokenizer", "none", "chatml", "plain")  # values of chat_template that name no file
Layout = Literal["messages", "conversations", "instruction", "prompt", "text"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is fine-tuned, and how it is loaded."""

    title: ClassVar[str] = "model"

    model: str | None = option(None, "NAME", "model to fine-tune: a name on the Hugging Face hub, a folder, or a GGUF file")
    dtype: Dtype | None = option(None, "", "language models: data type of the weights (default: fp32)", one_of(Dtype))
    quantize: QuantizedBase | None = option(
        None, "", "keep the base's linear layers in 4 or 8 bits while LoRA is trained on them", one_of(QuantizedBase)
    )
    chat_template: str | None = option(
        None, "NAME", "chat, preference: a .jinja file, chatml or plain, instead of the tokenizer's own template"
    )
    trust_remote_code: bool = option(False, "", "run Python code that comes with the model (never read from a file)")
    head_dropout: float | None = option(None, "P", "dropout before the classifier (default: from the model's config)", FRACTION)
    attention_dropout: float | None = option(
        None, "P", "dropout on attention weights; 0 is much faster on a CPU (default: from the model's config)", FRACTION
    )
    base_dropout: float | None = option(
        None, "P", "generation: all dropouts of the model (default: from the model's config)", FRACTION
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is learned, and from which rows."""

    title: ClassVar[str] = "data"

    data: str | None = option(None, "FILE", "training data: a .tsv, .csv or .jsonl file (or .gz), or a data set on the hub")
    task: str | None = option(
        None, "NAME", "instead of --data: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli (GLUE); e2e, webnlg, dart"
    )
    data_dir: str | None = option(None, "DIR", "folder with the files of --task, such as SST-2/train.tsv (default: the hub)")
    data_config: str | None = option(None, "NAME", "configuration of a data set on the hub")
    train_split: str = option("train", "NAME", "training split of a data set on the hub")
    problem: Problem | None = option(
        None, "", "what to learn from --data (default: what its columns say, or classification)", one_of(Problem)
    )
    text_column: str = option("text", "NAME", "column with the text")
    text_pair_column: str | None = option(None, "NAME", "column with the second text, for tasks on pairs")
    label_column: str = option("label", "NAME", "column with the label")
    context_column: str = option("context", "NAME", "generation: field with the input in a .jsonl file")
    completion_column: str = option("completion", "NAME", "generation: field with the target text, or a list of texts")
    layout: Layout | None = option(None, "", "chat: columns of the rows (default: what the first row has)", one_of(Layout))
    packing: bool = option(False, "", "chat: put several rows into one of --max-length tokens, kept apart")
    max_train_rows: int | None = option(None, "N", "train on a random sample of N rows (default: all)", POSITIVE)
    max_length: int | None = option(
        None, "N", "truncate each row to N tokens (default: 128; generation: 512; chat, preference: 1024)", POSITIVE
    )


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which weights are trained."""

    title: ClassVar[str] = "LoRA and other methods"

    method: Method = option(
        "lora",
        "",
        "what to train: LoRA, the last layers, all weights, the biases (BitFit), or a prefix",
        one_of(Method),
    )
    lora: LoRAConfig = field(default=lora_options.USUAL, metadata={"inner": lora_options.HELP})
    layers: list[str] | str | None = option(
        None, "ROLES", "layers to adapt, by role: query,key,value,output,mlp (default: query,value)"
    )
    init_adapter: str | None = option(
        None, "PATH", "start from these LoRA weights: a run, an adapter folder, or a checkpoint of loralib 0.1"
    )
    train_head: Head = option("all", "", "all methods but full: train the whole head, or only its last layer", one_of(Head))
    prefix_length: int | None = option(None, "N", "method prefix: its length in tokens (default: 10)", POSITIVE)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How the weights are trained."""

    title: ClassVar[str] = "training"

    learning_rate: float | Literal["auto"] | None = option(
        None,
        "RATE",
        "peak learning rate; auto: by the model's size (default: 5e-4; generation: 2e-4; chat: auto)",
        Rule(lambda value: value == "auto" or POSITIVE.holds(value), "must be positive, or auto"),
    )
    num_train_epochs: float = option(3.0, "N", "passes over the training data", POSITIVE)
    batch_size: int = option(32, "N", "rows per optimizer step, on all devices together; 16 for chat", POSITIVE)
    device_batch_size: int | None = option(
        None, "N", "most rows that a device computes at once; gradients of the rest of a step are accumulated", POSITIVE
    )
    gradient_accumulation_steps: int | None = option(
        None, "N", "number of parts in which a device computes its share of a step (default: 1)", POSITIVE
    )
    weight_decay: float = option(0.01, "X", "weight decay of AdamW, not on biases and norms", NOT_NEGATIVE)
    adam_epsilon: float = option(1e-8, "X", "epsilon of AdamW", BETWEEN_0_AND_1)
    max_grad_norm: float = option(1.0, "X", "clip gradients to this norm; 0 turns clipping off", NOT_NEGATIVE)
    beta: float = option(0.1, "X", "preference: how much the model is held to what it was", POSITIVE)
    dpo_loss: DpoLoss = option("sigmoid", "", "preference: loss of the rewards' difference", one_of(DpoLoss))
    label_smoothing_factor: float = option(0.0, "P", "generation: fraction of a target spread over the vocabulary", FRACTION)
    warmup_ratio: float = option(0.06, "P", "fraction of the steps in which the learning rate rises", FRACTION)
    warmup_steps: int | None = option(None, "N", "number of those steps, instead of a fraction", NOT_NEGATIVE)
    optim: str | None = option(None, "NAME", "optimizer, as transformers calls it (default: adamw_torch)")
    lr_scheduler_type: str = option("linear", "NAME", "schedule of the learning rate, as transformers calls it")
    gradient_checkpointing: bool = option(False, "", "compute activations twice instead of keeping them: less memory, slower")
    group_by_length: bool = option(
        False, "", "batch texts of similar length: less padding, faster (default: true with --data, false with --task)"
    )
    bf16: bool = option(False, "", "train in bfloat16 mixed precision")
    fp16: bool = option(False, "", "train in float16 mixed precision with loss scaling; needs a GPU")
    onednn: bool | Literal["auto"] = option(
        "auto", "", "CPU: multiply by frozen weights with oneDNN; auto: if it is found faster"
    )
    seed: int = option(0, "N", "random seed of initialization, sampling, order and dropout", SEED)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """On which rows a run is evaluated, and which epoch is kept."""

    title: ClassVar[str] = "evaluation"

    eval_data: str | None = option(None, "FILE", "evaluation data: a local file (default: a part of the training data)")
    eval_split: str | None = option(None, "NAME", "evaluation split of a data set on the hub, in place of --eval-data")
    eval_fraction: float | None = option(
        None,
        "P",
        "fraction of the training rows held out for evaluation (default: 0.1 without evaluation data)",
        BETWEEN_0_AND_1,
    )
    test_data: str | None = option(None, "FILE", "labelled data to score once, at the end, with the epoch that is kept")
    test_split: str | None = option(None, "NAME", "test split of a data set on the hub, in place of --test-data")
    max_eval_rows: int | None = option(None, "N", "evaluate on a random sample of N rows (default: all)", POSITIVE)
    max_test_rows: int | None = option(
        None, "N", "score a random sample of N test rows, 0 for none (default: all)", NOT_NEGATIVE
    )
    samples: int = option(3, "N", "chat, preference: show the answers to N held-out prompts at every evaluation", NOT_NEGATIVE)
    per_device_eval_batch_size: int = option(64, "N", "rows per device and step of an evaluation", POSITIVE)
    eval_steps: int | None = option(None, "N", "evaluate every N steps (default: every epoch)", POSITIVE)
    best_epoch: bool = option(True, "", "keep the epoch with the best metric; false keeps the last")
    metric_for_best_model: str | None = option(
        None, "NAME", "metric of the best epoch (default: the task's; accuracy, pearson or perplexity with --data)"
    )
    patience: int | None = option(None, "N", "stop after N epochs without a better metric", POSITIVE)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    title: ClassVar[str] = "output"

    output: str | None = option(None, "DIR", "run folder to write (default: runs/<data>-<method>)")
    save_steps: int | None = option(None, "N", "save a checkpoint every N steps as well as after each epoch", POSITIVE)
    report_to: str = option("none", "NAME", "also log to this tracker, as transformers calls it: wandb, mlflow, ...")
    save_merged: bool = option(False, "", "also write the merged model to <output>/merged, for plain transformers")
