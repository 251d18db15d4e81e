"""Where the weights of a base model are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loralib.checkpoints.base_weights import weights_of
from loralib.recipes.learned.base import base_weights
from loralib.recipes.nlg import language_models


def test_a_folder_or_a_file_is_where_it_is(tmp_path: Path) -> None:
    assert base_weights(str(tmp_path)) == tmp_path
    file = tmp_path / "model.safetensors"
    file.touch()
    assert base_weights(str(file)) == file


def test_a_package_is_found() -> None:
    found = base_weights("minilm")
    assert isinstance(found, Path)
    assert (found / "model.safetensors").is_file()


def test_a_gguf_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(language_models, "load_language_model", lambda name: (model, None))
    (tmp_path / "model.gguf").touch()
    assert base_weights(str(tmp_path / "model.gguf")) is model


def test_a_name_on_the_hub_is_its_copy_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--org--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").mkdir(parents=True)
    save_file({"proj.weight": torch.eye(3)}, kept / "snapshots" / "abc" / "model.safetensors")
    assert torch.equal(weights_of(base_weights("org/model")).tensor("proj.weight"), torch.eye(3))


@pytest.mark.parametrize("name", ["org/model-that-nobody-has", "no/such/folder", "base"])
def test_what_is_nowhere_stays_a_path(name: str) -> None:
    assert base_weights(name) == Path(name)
