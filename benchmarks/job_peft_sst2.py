"""The script that `loralib train` is measured against on SST-2: PEFT in transformers' Trainer, as their manuals write it.

python -m benchmarks.job_peft_sst2 OPTIONS.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)


def accuracy(output: EvalPrediction) -> dict[str, float]:
    """The share of rows whose class was predicted."""
    return {"accuracy": float((np.argmax(output.predictions, -1) == output.label_ids).mean())}


def main(path: str) -> None:
    """Train, evaluate after each epoch, and save the adapter and the last accuracy."""
    given = json.loads(Path(path).read_text())
    set_seed(given["arguments"]["seed"])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(given["model"], num_labels=2),
        LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"], **given["lora"]),
    )
    data = load_dataset("csv", data_files=given["files"], sep="\t", cache_dir=given["cache"])
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=given["max_length"]), batched=True)
    trainer = Trainer(
        model,
        TrainingArguments(**given["arguments"]),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    model.save_pretrained(given["output"])
    found = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    Path(given["output"], "score.json").write_text(json.dumps(found[-1]))


if __name__ == "__main__":
    main(sys.argv[1])
