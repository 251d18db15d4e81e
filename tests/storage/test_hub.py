"""A name on the hub where a path is asked for: what was downloaded before is found, and nothing is fetched."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.storage import hub

UPDATE = lora.LoRAUpdate(torch.ones(2, 6), torch.ones(4, 2), 4)
ADAPTER = lora.Adapter(lora.LoRAConfig(), {"proj": UPDATE})


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub makes it, with an adapter and a model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("org--adapter", "org--base"):
        folder = tmp_path / "hub" / f"models--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc123")
        (folder / "snapshots" / "abc123").mkdir(parents=True)
    lora.save(ADAPTER, tmp_path / "hub" / "models--org--adapter" / "snapshots" / "abc123")
    weights = {"proj.weight": torch.zeros(4, 6)}
    save_file(weights, tmp_path / "hub" / "models--org--base" / "snapshots" / "abc123" / "model.safetensors")
    return tmp_path


def test_what_is_in_the_cache_is_read(cached: Path) -> None:
    assert lora.load("org/adapter") == ADAPTER
    assert lora.detect("org/adapter") == "peft"
    report = lora.merge_checkpoint("org/base", "org/adapter", cached / "out")
    assert report.layers == 1


def test_a_path_that_exists_counts_before_a_name(cached: Path) -> None:
    lora.save(2 * ADAPTER, cached / "org" / "adapter")
    assert lora.load("org/adapter") == 2 * ADAPTER


def test_what_is_not_there_is_not_fetched_and_the_error_says_how(cached: Path) -> None:
    with pytest.raises(lora.FormatError, match=r"org/other does not exist; .* hf download org/other puts it there"):
        lora.load("org/other")
    with pytest.raises(lora.FormatError, match=r"hf download org/none"):
        lora.merge_checkpoint("org/none", ADAPTER, cached / "out")
    with pytest.raises(lora.FormatError, match=r"give the path of a saved adapter"):
        lora.load("./org/other/file.safetensors")


def test_a_revision_leads_nowhere_else(cached: Path) -> None:
    (cached / "hub" / "models--org--adapter" / "refs" / "main").write_text("../../../secret")
    with pytest.raises(lora.FormatError, match="does not exist"):
        lora.load("org/adapter")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache() == Path.home() / ".cache" / "huggingface" / "hub"
    assert Path(constants.default_cache_path).name == "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub.cache() == tmp_path / "hub"
