"""One file with PEFT's names and no configuration next to it."""

import pytest
import safetensors.torch
import torch
from torch import Tensor

import loralib as lora

P = "base_model.model."


def factors(A: float = 1, B: float = 1, layer: str = "0", infix: str = "") -> dict[str, Tensor]:
    return {f"{layer}.lora_A{infix}.weight": A * torch.ones(2, 6), f"{layer}.lora_B{infix}.weight": B * torch.ones(5, 2)}


def test_a_lone_file_is_not_read_without_lora_alpha_and_not_written(tmp_path):
    safetensors.torch.save_file(factors(), tmp_path / "a.safetensors")
    with pytest.raises(lora.FormatError, match=r"adapter_config.json, which says lora_alpha, is not next to it.*lora_alpha=16"):
        lora.load(tmp_path / "a.safetensors")
    with pytest.raises(lora.FormatError, match=r"can only be read; choose one of peft"):
        lora.save(lora.Adapter(lora.LoRAConfig(), {}), tmp_path / "b", format="peft-file")
    rows = {f"{P}2.token_adapter.trainable_tokens_delta": torch.ones(1, 5)}
    safetensors.torch.save_file({f"{P}{key}": t for key, t in factors().items()} | rows, tmp_path / "a.safetensors")
    with pytest.raises(lora.FormatError, match=r"token rows, whose numbers only adapter_config.json says"):
        lora.load(tmp_path / "a.safetensors", config=lora.LoRAConfig(lora_alpha=4))


@pytest.mark.parametrize("infix", ["", ".default"])
def test_the_rank_is_that_of_the_factors_and_all_else_the_callers(infix, tmp_path):
    tensors = {f"{P}{key}": tensor for key, tensor in factors(infix=infix).items()} | {f"{P}head.weight": torch.ones(2, 3)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert lora.detect(tmp_path / "a.safetensors") == "peft-file"
    config = lora.LoRAConfig(lora_alpha=6, alpha_pattern={"other": 9}, lora_dropout=0.1, target_modules=["x"])
    adapter = lora.load(tmp_path / "a.safetensors", config=config)
    assert {name: (update.r, update.scaling) for name, update in adapter.layers.items()} == {"0": (2, 3)}
    assert list(adapter.tensors) == ["head.weight"]
    assert adapter.config.modules_to_save == ("head",)
    assert adapter.config.lora_dropout == 0.1
    assert "a.safetensors" in adapter.source
