"""A tiny encoder on disk with its tokenizer, and a tiny data set that it can learn."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import loralib as lora
from loralib.recipes import records, run_folder
from loralib.recipes.nlu import encoders, text_classification
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train

PRAISE = ["good", "fine", "great", "lovely", "bright"]
BLAME = ["bad", "poor", "awful", "broken", "dull"]
FILLER = ["the", "a", "lamp", "film", "soup", "was", "is", "very", "and", "again"]


def options(encoder: Path, reviews: Path, **values: Any) -> TrainOptions:
    """The options of a short run on the reviews."""
    common: dict[str, Any] = {
        "model": str(encoder),
        "data": str(reviews / "train.tsv"),
        "eval_data": str(reviews / "test.tsv"),
        "batch_size": 16,
        "learning_rate": 1e-2,
        "num_train_epochs": 4,
    }
    if values.get("method", "lora") == "lora":
        common |= {"r": 4, "target_modules": "all-linear"}
    return TrainOptions.of(common | values)


def run(folder: Path, chosen: TrainOptions, **how: Any) -> dict[str, Any]:
    """Train, and show nothing."""
    return train(chosen, folder, console=Console(file=io.StringIO()), **how)


def labelled(source: str, texts: Sequence[str], labels: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
    """Labelled rows as the readers give them."""
    columns = {"text": texts, "label": labels} | ({"pair": pairs} if pairs else {})
    return records.dataset(
        source, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], "rows"
    )


def same(a: Any, b: Any) -> bool:
    """Whether two data have the same source and rows."""
    return records.source(a) == records.source(b) and a.to_list() == b.to_list()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT and a tokenizer that knows the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PRAISE, *BLAME, *FILLER]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=160,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def sentence(rng: random.Random, label: int) -> str:
    words = rng.choices(FILLER, k=5) + rng.choices([BLAME, PRAISE][label], k=2)
    rng.shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv (192 rows) and test.tsv (48 rows): text, label (praise or blame), score."""
    folder, rng = tmp_path_factory.mktemp("reviews"), random.Random(0)
    for name, count in (("train", 192), ("test", 48)):
        rows = [(sentence(rng, i % 2), ["blame", "praise"][i % 2], f"{i % 2 + rng.random() / 4:.3f}") for i in range(count)]
        lines = ["text\tlabel\tscore", *("\t".join(row) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def untrained_run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as a finished one leaves it, whose adapter was not trained."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    chosen = TrainOptions.of({"model": str(encoder), "data": str(reviews / "train.tsv"), "r": 2})
    torch.manual_seed(0)
    loaded = encoders.load_encoder(str(encoder), ["blame", "praise"])
    text_classification.prepare(loaded, chosen)
    run_folder.write_options(folder, chosen, ["blame", "praise"])
    lora.save(lora.extract(loaded.model), folder / run_folder.ADAPTER)
    run_folder.write_metrics(folder, {})
    return folder
