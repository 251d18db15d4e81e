"""Folders of MLX: the factors are transposes, and the scale multiplies as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import loralib as lora

Q, EMBED = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
CONFIG = {
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.0},
    "model": "x",
}


def factors(layer: str = Q, d: int = 8, k: int = 8, r: int = 4) -> dict[str, Tensor]:
    return {f"{layer}.lora_a": torch.randn(d, r), f"{layer}.lora_b": torch.randn(r, k)}


def folder_with(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(dict(tensors), folder / "adapters.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("d", "k"), [(8, 8), (8, 6), (4, 4), (3, 9)])
def test_a_layer_computes_what_mlx_computes(d, k, tmp_path):
    """y + scale · (x @ lora_a) @ lora_b, whether or not the layer is square."""
    tensors = factors(d=d, k=k)
    folder = folder_with(tmp_path / "a", tensors)
    assert lora.detect(folder) == lora.detect(folder / "adapters.safetensors") == "mlx"
    adapter = lora.load(folder)
    assert adapter == lora.load(folder / "adapters.safetensors")
    model = nn.ModuleDict({"q_proj": nn.Linear(d, k)})
    x = torch.randn(3, d)
    expected = model["q_proj"](x) + 10.0 * (x @ tensors[f"{Q}.lora_a"]) @ tensors[f"{Q}.lora_b"]
    lora.attach(model, adapter.rename({Q: "q_proj"}))
    assert torch.allclose(model["q_proj"](x), expected, atol=1e-4)
    assert adapter.metadata == {"base_model_name_or_path": "x"}
    lora.save(adapter, tmp_path / "b")
    assert lora.load(tmp_path / "b") == adapter


def test_embeddings_are_known_by_their_names(tmp_path):
    tensors = factors(EMBED, d=11, k=6)
    update = lora.load(folder_with(tmp_path / "a", tensors)).layers[EMBED]
    assert isinstance(update, lora.EmbeddingUpdate)
    expected = 10.0 * tensors[f"{EMBED}.lora_a"] @ tensors[f"{EMBED}.lora_b"]  # (num_embeddings, embedding_dim)
    assert torch.allclose(update.delta(), expected, atol=1e-5)


def test_dora_and_tensors_in_full(tmp_path):
    tensors = factors() | {f"{Q}.m": torch.rand(8), "model.norm.weight": torch.ones(8), "mixer.m": torch.ones(2)}
    adapter = lora.load(folder_with(tmp_path / "a", tensors, CONFIG | {"fine_tune_type": "dora"}))
    assert torch.equal(adapter.layers[Q].magnitude, tensors[f"{Q}.m"])
    assert adapter.tensors.keys() == {"model.norm.weight", "mixer.m"}


def test_a_lone_file_needs_the_scale(tmp_path):
    folder = folder_with(tmp_path / "a", factors(), None)
    with pytest.raises(lora.FormatError, match=r"adapter_config.json, which says the scale, is not next to it"):
        lora.load(folder)
    (folder / "adapters.safetensors").rename(folder / "0000100_adapters.safetensors")
    assert lora.load(folder, config=lora.LoRAConfig(lora_alpha=40)).layers[Q].scaling == 10
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert lora.load(folder / "0000100_adapters.safetensors").layers[Q].scaling == 10
    with pytest.raises(lora.FormatError, match=r"of MLX but no adapters.safetensors; give the file of a step"):
        lora.load(folder)


@pytest.mark.parametrize(
    ("tensors", "config", "telling"),
    [
        (factors(), CONFIG | {"fine_tune_type": "full"}, "fine_tune_type='full'; only 'lora' and 'dora'"),
        (factors(), CONFIG | {"lora_parameters": {"rank": 4, "alpha": 8}}, "must say the scale, a positive number; got None"),
        (factors(), CONFIG | {"lora_parameters": {"scale": True}}, "must say the scale"),
        (factors(), CONFIG | {"lora_parameters": [1]}, "must say the scale"),
        (factors(), CONFIG | {"lora_parameters": {"scale": 10**400}}, "must say the scale"),
        (factors(), CONFIG | {"lora_parameters": {"scale": 1e308}}, "must say the scale"),
        (factors(), CONFIG | {"lora_parameters": {"scale": 2, "rank": 8}}, "factors of rank 4, but .* says rank=8"),
        (factors(), CONFIG | {"lora_parameters": {"scale": 2, "alpha": 16}}, r"scale=2 and alpha=16.*and no alpha"),
        ({f"{Q}.lora_a": torch.ones(2, 8, 4), f"{Q}.lora_b": torch.ones(2, 4, 8)}, CONFIG, "of experts"),
        ({f"{Q}.lora_a": torch.ones(8), f"{Q}.lora_b": torch.ones(4, 8)}, CONFIG, "is no matrix"),
        ({f"{Q}.lora_a": torch.ones(8, 4)}, CONFIG, "has no lora_b"),
        (factors(EMBED) | {f"{EMBED}.m": torch.ones(8)}, CONFIG, "DoRA of an embedding"),
        (factors(r=3), CONFIG | {"lora_parameters": {"scale": 2}}, None),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tensors, config, telling, tmp_path):
    folder = folder_with(tmp_path / "a", tensors, config)
    if telling is None:
        assert lora.load(folder).layers[Q].r == 3
        return
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(folder)
