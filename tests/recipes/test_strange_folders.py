"""Folders of models and runs that lack something, or are something else: refused, and nothing is drawn at random unsaid."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from loralib.errors import ConfigError, RunError
from loralib.recipes import model_loader, run_folder
from loralib.recipes.nlu import readers
from loralib.recipes.nlu.encoders import load_encoder
from loralib.recipes.options import TrainOptions


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def with_weights(keep: Callable[[str], bool]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({name: tensor for name, tensor in load_file(path).items() if keep(name)}, path, metadata={"format": "pt"})

    return change


def renamed(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


STRANGE = {
    "no tokenizer": (without_tokenizer, "has no vocabulary for texts"),
    "other width": (configured(hidden_size=48), "would be drawn at random"),
    "more layers": (configured(num_hidden_layers=3), "would be drawn at random"),
    "a layer is missing": (with_weights(lambda name: "layer.1." not in name), "would be drawn at random"),
    "no embeddings": (with_weights(lambda name: "word_embeddings" not in name), "would be drawn at random"),
    "of another model": (renamed, "would be drawn at random"),
    "padding beyond the words": (configured(pad_token_id=500), "cannot be loaded as an encoder"),
    "no heads": (configured(num_attention_heads=0), "cannot be loaded as an encoder"),
    "sizes of a wrong type": (configured(hidden_size="wide"), "cannot be loaded as an encoder"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_model_that_is_not_whole_is_refused(kind: str, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    change, sentence = STRANGE[kind]
    change(folder)
    with pytest.raises(RunError, match=sentence):
        load_encoder(str(folder), ["a", "b"])


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"], None])
def test_a_pooler_and_a_head_may_be_drawn(encoder: Path, tmp_path: Path, labels: list[str] | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    with_weights(lambda name: "pooler" not in name)(folder)
    assert set(load_encoder(str(folder), labels).head) == {"bert.pooler.dense", "classifier"}
    load_encoder(str(folder), ["x", "y"]).model.save_pretrained(folder)  # a head of two classes
    load_encoder(str(folder), labels)


def test_an_adapter_or_a_run_is_no_model(tmp_path: Path) -> None:
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    run_folder.write_options(run, TrainOptions(model="m", data="d.tsv"), ["a", "b"])
    for folder, what in ((adapter, "holds an adapter"), (run, "is a run")):
        with pytest.raises(RunError, match=f"{what}; give the model that it was trained on"):
            load_encoder(str(folder), ["a", "b"])
        with pytest.raises(RunError, match="--init-adapter"):
            model_loader.refuse_what_was_trained(folder)
    model_loader.refuse_what_was_trained(tmp_path)


def test_what_is_no_run_leads_to_one(tmp_path: Path) -> None:
    options = TrainOptions(model="m", data="d.tsv")
    run = tmp_path / "seeds" / "seed-0"
    run_folder.write_options(run, options, ["a", "b"])
    (run / "adapter").mkdir()
    (tmp_path / "file").write_text("")
    for path, reason, way in (
        (tmp_path / "seeds", "config.yaml is missing", f"give one of the runs in it, such as {run}"),
        (run / "adapter", "config.yaml is missing", f"give the run that it is in, {run}"),
        (tmp_path / "nowhere", "it does not exist", "give a folder that loralib train wrote"),
        (tmp_path / "file", "it is a file", "give a folder that loralib train wrote"),
    ):
        with pytest.raises(RunError) as raised:
            run_folder.read_options(path)
        assert str(raised.value) == f"{path} is not a run folder ({reason}); {way}."


@pytest.mark.parametrize("labels", [5, {"a": 0}, ["a", 1], "ab", True])
def test_labels_that_are_no_names_are_damage(labels: object, tmp_path: Path) -> None:
    run_folder.write_options(tmp_path, TrainOptions(model="m", data="d.tsv"), ["a", "b"])
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(RunError, match=r"damaged \(labels\.json is not a list of names\)"):
        run_folder.read_options(tmp_path)


@pytest.mark.parametrize(
    ("columns", "option"),
    [
        (("a", "a", None), "--label-column a"),
        (("a", "b", "b"), "--text-pair-column b"),
        (("a", "b", "a"), "--text-pair-column a"),
    ],
)
def test_no_column_serves_twice(columns: tuple[str, str, str | None], option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: that is the column of the"):
        readers.check_columns(*columns)
    readers.check_columns("a", "b", "c")
    readers.check_columns("a", "b", None)
