"""The options of a run stand in sections, and a file of an earlier order is read as ever."""

from dataclasses import fields
from typing import Literal, get_origin, get_type_hints

import yaml

from loralib.recipes.declaring import sections
from loralib.recipes.options import TrainOptions
from loralib.recipes.resolved import resolved

EARLIER = """\
model: m
output: runs/a
data: d.tsv
train_split: train
eval_data: e.tsv
text_column: text
label_column: label
context_column: context
completion_column: completion
problem: classification
max_length: 128
method: lora
lora: {r: 4, lora_alpha: 16.0, lora_dropout: 0.0, exclude_modules: [], modules_to_save: [], bias: none, rank_pattern: {},
  alpha_pattern: {}, use_rslora: false, fan_in_fan_out: false, enable_lora: {}, slice_widths: {}}
layers: query
train_head: all
learning_rate: 0.001
num_train_epochs: 3.0
batch_size: 32
gradient_accumulation_steps: 1
per_device_eval_batch_size: 64
weight_decay: 0.01
adam_epsilon: 1.0e-08
max_grad_norm: 1.0
label_smoothing_factor: 0.0
warmup_ratio: 0.06
best_epoch: true
metric_for_best_model: accuracy
patience: 2
group_by_length: false
bf16: true
fp16: false
onednn: false
seed: 3
save_merged: true
"""


def test_every_option_of_a_run_is_in_one_section() -> None:
    declared = {title: [field.name for field in found] for title, found in sections(TrainOptions).items()}
    assert list(declared) == ["model", "data", "LoRA and other methods", "training", "evaluation", "output"]
    assert [name for found in declared.values() for name in found] == [field.name for field in fields(TrainOptions)]


def test_options_with_a_choice_have_a_rule_for_it() -> None:
    kinds = get_type_hints(TrainOptions)
    chosen = [field for field in fields(TrainOptions) if get_origin(kinds[field.name]) is Literal]
    assert {field.name for field in chosen} == {"method", "train_head", "dpo_loss"}
    assert all(not field.metadata["rule"].holds("other") and field.metadata["rule"].holds(field.default) for field in chosen)


def test_the_file_of_a_run_that_an_earlier_version_wrote_is_read() -> None:
    stored = yaml.safe_load(EARLIER)
    found = resolved(TrainOptions.of(stored))
    found["lora"] = {name: found["lora"][name] for name in stored["lora"]}
    assert {name: found[name] for name in stored} == stored
    usual = {option.name: option.default for option in fields(TrainOptions)}
    assert all(value == usual[name] for name, value in found.items() if name not in stored)
