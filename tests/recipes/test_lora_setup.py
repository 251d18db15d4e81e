"""A run can start from factors that another run learned, and only from those that fit."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import loralib as lora
from loralib.errors import AttachError, FormatError
from loralib.recipes import run_folder
from loralib.recipes.nlu import encoders, text_classification
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train
from loralib.surgery.load_factors import load_factors
from peers import data


def options(encoder: Path, reviews: Path, **values: Any) -> TrainOptions:
    common: dict[str, Any] = {"model": str(encoder), "data": str(reviews / "train.tsv"), "r": 4, "num_train_epochs": 1}
    return TrainOptions.of(common | values)


def run(folder: Path, chosen: TrainOptions) -> dict[str, Any]:
    return train(chosen, folder, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def first(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "first"
    run(folder, options(encoder, reviews, learning_rate=1e-2))
    return folder


def prepared(encoder: Path, chosen: TrainOptions, labels: list[str] | None) -> encoders.Encoder:
    loaded = encoders.load_encoder(str(encoder), labels)
    text_classification.prepare(loaded, chosen)
    return loaded


@pytest.mark.parametrize("where", ["run", "adapter", "legacy"])
def test_the_factors_are_taken_over_and_the_head_is_not(
    encoder: Path, reviews: Path, first: Path, tmp_path: Path, where: str
) -> None:
    expected = lora.load(first / run_folder.ADAPTER)
    path = {"run": first, "adapter": first / run_folder.ADAPTER, "legacy": tmp_path / "factors.pt"}[where]
    if where == "legacy":
        factors = {f"{n}.lora_{k}": getattr(u, k) for n, u in expected.layers.items() for k in "AB"}
        torch.save(factors | {"classifier.weight": torch.zeros(3, 32)}, path)
    chosen = options(encoder, reviews, init_adapter=str(path))
    model = prepared(encoder, chosen, ["a", "b", "c"]).model
    got = lora.extract(model)
    assert got.layers.keys() == expected.layers.keys()
    for name, update in got.layers.items():
        assert torch.equal(update.A, expected.layers[name].A)
        assert torch.equal(update.B, expected.layers[name].B)
        assert update.B.any()
        assert update.scaling == expected.layers[name].scaling
    assert model.classifier.out_features == 3
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n or "classifier" in n)


def test_training_goes_on_from_there(encoder: Path, reviews: Path, first: Path, tmp_path: Path) -> None:
    chosen = options(encoder, reviews, init_adapter=str(first), learning_rate=1e-9)
    run(tmp_path / "run", chosen)
    start_, end = (lora.load(folder / run_folder.ADAPTER) for folder in (first, tmp_path / "run"))
    for name, update in end.layers.items():
        assert torch.allclose(update.B, start_.layers[name].B, atol=1e-6)
    assert run_folder.read_options(tmp_path / "run")[0].init_adapter == str(first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 2}, "rank 4 in the adapter, 2 in the model|lora_A"),
        ({"lora_alpha": 4.0}, r"scaling 4 in the adapter \(lora_alpha=16\), 1 in this run"),
        ({"layers": "query"}, "value: in the adapter, not in this run"),
        ({"layers": "query,key,value"}, "key: in this run, not in the adapter"),
    ],
)
def test_factors_that_do_not_fit_are_refused_before_anything_is_written(
    encoder: Path, reviews: Path, first: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(AttachError, match=message):
        run(tmp_path / "run", options(encoder, reviews, init_adapter=str(first), **values))
    assert not (tmp_path / "run").exists()


def test_factors_that_do_not_fit_leave_the_model_as_it_was(encoder: Path, reviews: Path, first: Path) -> None:
    model = prepared(encoder, options(encoder, reviews, layers="query,key,value"), ["a", "b"]).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AttachError):
        load_factors(model, first / run_folder.ADAPTER)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", ["nothing", "half", "none"])
def test_what_holds_no_factors_is_refused(encoder: Path, reviews: Path, tmp_path: Path, content: str) -> None:
    path, message = tmp_path / "factors.pt", "does not exist"
    if content == "half":
        torch.save({"query.lora_A": torch.ones(2, 3)}, path)
        message = "half of the factors of 'query'"
    elif content == "none":
        torch.save({"classifier.weight": torch.ones(2, 3)}, path)
        message = "no LoRA factors"
    with pytest.raises(FormatError, match=message):
        prepared(encoder, options(encoder, reviews, init_adapter=str(path)), ["a", "b"])


def test_the_published_mnli_checkpoint_is_a_start_for_a_task_of_two_classes(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    published = next(data("adapters/loralib-roberta-base-mnli").glob("*.bin"))
    config = RobertaConfig(vocab_size=20, max_position_embeddings=20, hidden_size=768, intermediate_size=8, num_labels=2)
    model = RobertaForSequenceClassification(config)
    lora.inject(model, lora.LoRAConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"]))
    head = model.classifier.out_proj.weight.clone()
    load_factors(model, published)
    stored = torch.load(published, weights_only=True, map_location="cpu")
    for name, update in lora.extract(model).layers.items():
        assert torch.equal(update.B, stored[f"{name}.lora_B"])
    assert torch.equal(model.classifier.out_proj.weight, head)
