"""What a Trainer writes is the adapter, whole, and reads as such; and disks that are full."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors import SafetensorError

import loralib as lora
from hf import HEADS, logits, tiny
from loralib.train import AdapterTrainer
from loralib.train.trainer import write_errors_named
from models import injected, same_bits

# --- checkpoints ----------------------------------------------------------------------------------------------------


class OfItsOwn(transformers.Trainer):
    """A Trainer with a loss, and with things to write, of its own, as TRL's are."""

    def __init__(self, *args: Any, weight: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight = weight

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self.weight * super().compute_loss(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / "card.md").write_text("A card.")


class Ahead(AdapterTrainer, OfItsOwn):
    """Ours in front."""


def bert() -> Any:
    model = injected(tiny("Bert"), target_modules=["query", "value"], modules_to_save=HEADS["Bert"])
    lora.mark_only_lora_as_trainable(model)
    return model


def rows() -> list[dict[str, Any]]:
    return [{"input_ids": [2 + i % 5, 3, 4 + i % 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(12)]


def trainer(kind: type[AdapterTrainer], folder: Path, model: Any = None, **values: Any) -> AdapterTrainer:
    how = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.1, "logging_steps": 1}
    arguments = transformers.TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **how | values)
    return kind(model=model or bert(), args=arguments, train_dataset=rows(), eval_dataset=rows())


def same(a: lora.Adapter, b: lora.Adapter) -> bool:
    pairs = [(t, b.layers[n].tensors()[key]) for n, update in a.layers.items() for key, t in update.tensors().items()]
    pairs += [(t, b.tensors[n]) for n, t in a.tensors.items()]
    return (a.layers.keys(), a.tensors.keys()) == (b.layers.keys(), b.tensors.keys()) and all(same_bits(*p) for p in pairs)


@pytest.mark.parametrize("kind", [AdapterTrainer, Ahead])
def test_a_checkpoint_holds_the_adapter_and_training_goes_on_from_it_to_the_same_bits(kind, tmp_path):
    whole = trainer(kind, tmp_path / "whole")
    whole.train()
    base = sum(p.numel() for p in tiny("Bert").parameters()) * 4
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < base / 3
    assert not list(checkpoint.glob("model*"))
    assert (checkpoint / "card.md").exists() == (kind is Ahead)
    resumed = trainer(kind, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(resumed.adapter(), whole.adapter())
    assert not same(lora.load(checkpoint), whole.adapter())


@pytest.mark.parametrize("kind", [AdapterTrainer, Ahead])
def test_what_save_model_writes_makes_a_fresh_base_what_was_trained(kind, tmp_path):
    trained = trainer(kind, tmp_path)
    trained.train()
    trained.save_model(str(tmp_path / "final"))
    fresh = tiny("Bert")
    lora.attach(fresh, lora.load(tmp_path / "final"))
    trained.model.eval()
    assert same_bits(logits(fresh), logits(trained.model))


def test_the_best_checkpoint_comes_back_at_the_end(tmp_path):
    ended = trainer(
        AdapterTrainer,
        tmp_path,
        save_steps=1,
        eval_steps=1,
        eval_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=3.0,
    )
    ended.train()
    losses = {row["step"]: row["eval_loss"] for row in ended.state.log_history if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert same(ended.adapter(), lora.load(tmp_path / f"checkpoint-{best}"))


def test_metadata_are_written_and_a_model_without_an_update_is_refused_at_once(tmp_path):
    said = trainer(AdapterTrainer, tmp_path)
    said.metadata["base_model_name_or_path"] = "tiny"
    said.save_model(str(tmp_path))
    assert lora.load(tmp_path).metadata["base_model_name_or_path"] == "tiny"
    with pytest.raises(lora.LayerError, match="no layer with a LoRA update; inject a LoRAConfig"):
        trainer(AdapterTrainer, tmp_path, tiny("Bert"))


def test_it_is_found_in_the_package_and_nothing_else_is():
    from loralib import train

    assert train.AdapterTrainer is AdapterTrainer
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        train.Nothing  # noqa: B018


# --- disks that are full --------------------------------------------------------------------------------------------

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 256192 vs 256084"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("basic_ios::clear: iostream error"),
]
OTHER = [
    OSError(errno.ENOENT, "No such file or directory"),
    OSError(errno.ENOSPC, "No space left on device", "/already/named"),
    SafetensorError("Error while deserializing header: header too large"),
    RuntimeError("shapes cannot be multiplied"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_told_with_the_folder_whichever_library_met_it(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk space") as told, write_errors_named(tmp_path):
        raise error
    assert told.value.filename == str(tmp_path)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_pass_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as passed, write_errors_named(tmp_path):
        raise error
    assert passed.value is error


def test_the_report_of_threads_is_given_back(tmp_path: Path) -> None:
    before = threading.excepthook
    with write_errors_named(tmp_path):
        assert threading.excepthook is not before
    assert threading.excepthook is before
