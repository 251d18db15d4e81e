"""The script that `loralib train` is measured against on conversations: PEFT in TRL's SFTTrainer, as their manuals write it.

python -m benchmarks.job_peft_chat OPTIONS.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer


def prompt_and_completion(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation of one turn as TRL takes it to learn the answer alone."""
    return {"prompt": row["messages"][:1], "completion": row["messages"][1:]}


def main(path: str) -> None:
    """Train, evaluate after each epoch, and save the adapter."""
    given = json.loads(Path(path).read_text())
    set_seed(given["arguments"]["seed"])
    file = {"gguf_file": given["gguf"]} if given["gguf"] else {}
    data = load_dataset("json", data_files=given["files"], cache_dir=given["cache"])
    data = data.map(prompt_and_completion, remove_columns=["messages"])
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(given["model"], dtype="float32", **file),
        SFTConfig(max_length=given["max_length"], gradient_checkpointing=False, bf16=False, **given["arguments"]),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=AutoTokenizer.from_pretrained(given["model"], **file),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **given["lora"]),
    )
    trainer.train()
    trainer.save_model(given["output"])


if __name__ == "__main__":
    main(sys.argv[1])
