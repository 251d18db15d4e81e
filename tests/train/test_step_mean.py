"""The loss of a step is the mean over its labels, whatever the head, however many parts the step is computed in."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

import loralib as lora
from loralib.train.sampling import GroupingTrainer
from loralib.train.step_mean import IGNORED, StepMeanTrainer
from loralib.train.trainer import AdapterTrainer

ROWS, LENGTH, CLASSES, STEP = 13, 6, 3, 8  # steps of 8 and 5 rows: in parts of 8, 4 or 2 the last is of 5 or 1
SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 16,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}


def bert(kind: type, labels: int = CLASSES, **config: Any) -> nn.Module:
    return kind(BertConfig(**SMALL, num_labels=labels, **config))


class Plain(nn.Module):
    """A model of no library, whose forward has no `**kwargs`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 8), nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids).mean(1))
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class TakesAnything(Plain):
    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        return super().forward(input_ids, labels)


class Divides(Plain):
    """Divides by `num_items_in_batch` itself, and says so."""

    accepts_loss_kwargs = True

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids).mean(1))
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        return {"loss": nn.functional.cross_entropy(logits, labels, reduction="sum") / count, "logits": logits}


def bart() -> nn.Module:
    kinds = {"layers": 1, "ffn_dim": 8, "attention_heads": 2}
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in kinds.items()}
    return BartForConditionalGeneration(
        BartConfig(**sizes, d_model=8, vocab_size=16, max_position_embeddings=16, dropout=0.0, decoder_start_token_id=2)
    )


NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
LLAMA = {name: value for name, value in SMALL.items() if "dropout" not in name}
MODELS: dict[str, tuple[Any, str]] = {
    "single label": (lambda: bert(BertForSequenceClassification, problem_type="single_label_classification"), "class"),
    "regression": (lambda: bert(BertForSequenceClassification, 1, problem_type="regression"), "number"),
    "regression of several numbers": (lambda: bert(BertForSequenceClassification, problem_type="regression"), "numbers"),
    "multi label": (lambda: bert(BertForSequenceClassification, problem_type="multi_label_classification"), "numbers"),
    "tokens": (lambda: bert(BertForTokenClassification), "tokens"),
    "masked words": (lambda: bert(BertForMaskedLM), "words"),
    "multiple choice": (lambda: bert(BertForMultipleChoice), "choice"),
    "decoder with a head": (lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=CLASSES)), "class"),
    "images": (
        lambda: ViTForImageClassification(
            ViTConfig(**{k: v for k, v in SMALL.items() if "token" not in k}, num_labels=CLASSES, image_size=4, patch_size=2)
        ),
        "images",
    ),
    "language model": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), "words"),
    "language model of an unusual name": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        ),
        "words",
    ),
    "encoder and decoder": (bart, "words"),
    "no library, no keywords": (Plain, "class"),
    "no library, any keywords": (TakesAnything, "class"),
    "no library, divides": (Divides, "class"),
}


def rows(labels: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 16, (ROWS, LENGTH), generator=generator)
    drawn: dict[str, Tensor] = {
        "class": torch.randint(CLASSES, (ROWS,), generator=generator),
        "number": torch.randn(ROWS, generator=generator),
        "numbers": torch.rand(ROWS, CLASSES, generator=generator).round(),
        "tokens": torch.randint(CLASSES, (ROWS, LENGTH), generator=generator),
        "words": ids.clone(),
    }
    if labels == "choice":
        pairs = torch.stack([ids, ids.flip(0)], 1)
        return [{"input_ids": pairs[i], "labels": i % 2} for i in range(ROWS)]
    if labels == "images":
        images = torch.randn(ROWS, 3, 4, 4, generator=generator)
        return [{"pixel_values": images[i], "labels": drawn["class"][i]} for i in range(ROWS)]
    if labels in ("tokens", "words"):  # rows with one label, and rows with all
        for i, row in enumerate(drawn[labels]):
            row[: LENGTH - 1 - i % LENGTH] = IGNORED
    return [{"input_ids": ids[i], "labels": drawn[labels][i]} for i in range(ROWS)]


def trained(
    folder: Path, make: Any, data: list[dict[str, Any]], parts: int, kind: Any = GroupingTrainer, **arguments: Any
) -> Any:
    """The log of a training in so many parts a step, on all processes, and the weights that it ended with."""
    torch.manual_seed(0)
    model, held_out = make(), arguments.pop("eval_dataset", None)
    given = {
        "learning_rate": 0.05,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "num_train_epochs": 2,
        "optim": "sgd",
        **arguments,
    }
    how = TrainingArguments(
        str(folder),
        per_device_train_batch_size=STEP // parts,
        gradient_accumulation_steps=parts // int(os.environ.get("WORLD_SIZE", "1")),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **(given | arguments),
    )
    trainer = kind(model=model, args=how, train_dataset=data, eval_dataset=held_out, data_collator=default_data_collator)
    trainer.train()
    log = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]
    if held_out is not None:
        log.append((trainer.evaluate()["eval_loss"], 0.0))
    return torch.tensor(log), torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def agree(found: Any, expected: Any) -> None:
    assert len(found[0]) >= 4
    torch.testing.assert_close(found[0], expected[0], rtol=2e-3, atol=2e-4)  # Trainer rounds what it logs
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


FAST = ("single label", "no library, no keywords")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS])
def test_loss_gradient_and_weights_do_not_depend_on_the_number_of_parts(name: str, tmp_path: Path) -> None:
    make, labels = MODELS[name]
    data = rows(labels)
    whole = trained(tmp_path, make, data, 1)
    for parts in (2, 4):
        agree(trained(tmp_path, make, data, parts), whole)


def configured() -> nn.Module:
    model = Plain()
    model.config = SimpleNamespace(problem_type=None)  # Trainer looks here before it smooths
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [MODELS["single label"][0], configured, MODELS["language model"][0]])
def test_nor_with_smoothed_labels(make: Any, tmp_path: Path) -> None:
    data = rows("words" if make is MODELS["language model"][0] else "class")
    whole = trained(tmp_path, make, data, 1, label_smoothing_factor=0.2)
    assert not torch.allclose(whole[0], trained(tmp_path, make, data, 1)[0], rtol=1e-2)
    agree(trained(tmp_path, make, data, 4, label_smoothing_factor=0.2), whole)


def test_nor_for_an_adapter(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = bert(BertForSequenceClassification, problem_type="single_label_classification")
        lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
        lora.mark_only_lora_as_trainable(model)
        return model

    whole = trained(tmp_path, make, rows("class"), 1, AdapterTrainer)
    agree(trained(tmp_path, make, rows("class"), 4, AdapterTrainer), whole)


class Doubles(Trainer):
    """A Trainer with a loss of its own, by Trainer's rules."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


class InFront(Doubles, StepMeanTrainer):
    pass


class Behind(StepMeanTrainer, Doubles):
    pass


@pytest.mark.parametrize("kind", [InFront, Behind])
def test_a_loss_of_a_class_of_its_own_gets_what_trainer_gives_it(kind: Any, tmp_path: Path) -> None:
    found, plain, once = (trained(tmp_path, Divides, rows("class"), 4, of) for of in (kind, Doubles, Trainer))
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(found[0][0, 0], 2 * once[0][0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_part_without_any_label_counts_nothing(tmp_path: Path) -> None:
    make, data = MODELS["tokens"][0], rows("tokens")
    for row in data[::2]:
        row["labels"] = torch.full_like(row["labels"], IGNORED)
    whole = trained(tmp_path, make, data, 1)
    agree(trained(tmp_path, make, data, 8), whole)


@pytest.mark.parametrize("training", [True, False])
def test_replicas_of_unequal_size_count_by_their_labels(training: bool, tmp_path: Path) -> None:
    data, model = rows("class")[:5], Plain()

    class Replicated(nn.Module):
        """What DataParallel gives on two devices: the mean loss of each."""

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            parts = zip(input_ids.chunk(2), labels.chunk(2), strict=True)
            return {"loss": torch.stack([model(*part)["loss"] for part in parts])}

    trainer = StepMeanTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    batch = default_data_collator(data)
    items = torch.tensor(5.0) if training else None
    found = trainer.compute_loss(Replicated().train(training), batch, num_items_in_batch=items).mean()
    torch.testing.assert_close(found, model(**batch)["loss"])


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_step_mean import MODELS, STEP, rows, trained
make, labels = MODELS[sys.argv[2]]
data = rows(labels) + rows(labels)[:3]
found = trained(Path(sys.argv[3]), make, data, int(sys.argv[4]), eval_dataset=data)
torch.save(found, Path(sys.argv[3], "found-" + str(torch.distributed.get_rank()) + ".pt"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("single label", 2), ("tokens", 4)])
def test_nor_on_the_number_of_processes(name: str, parts: int, tmp_path: Path) -> None:
    """Two processes compute half of the parts each."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    make, labels = MODELS[name]
    data = rows(labels) + rows(labels)[:3]
    whole = trained(tmp_path, make, data, 1, eval_dataset=data)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, str(script), str(Path(__file__).parent), name, str(tmp_path), str(parts)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    for rank in (0, 1):
        agree(torch.load(tmp_path / f"found-{rank}.pt"), whole)
