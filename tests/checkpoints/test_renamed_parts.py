"""Models whose parts have other names in memory than in their files: what is merged into files is what is merged in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import loralib as lora
from loralib.checkpoints.checkpoint import open_checkpoint
from loralib.checkpoints.names import tie_of
from loralib.cli import main
from models import same_bits
from peers import library

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
QWEN = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "intermediate_size": 16, "out_hidden_size": 16}


def built(name: str, **fields: Any) -> nn.Module:
    t = library("transformers")
    torch.manual_seed(0)
    owner = next(
        name.removesuffix(end) for end in ("ForConditionalGeneration", "ForImageClassification", "Model") if name.endswith(end)
    )
    model: nn.Module = getattr(t, name)(getattr(t, f"{owner}Config")(**fields)).eval()
    return model


LLAMA, GEMMA = {**TEXT, "model_type": "llama"}, {**TEXT, "head_dim": 8}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llava": lambda: built(
        "LlavaForConditionalGeneration", text_config=LLAMA, vision_config=VISION | {"model_type": "clip_vision_model"}
    ),
    "gemma3": lambda: built("Gemma3ForConditionalGeneration", text_config=GEMMA, vision_config=VISION),
    "qwen2.5-vl": lambda: built("Qwen2_5_VLForConditionalGeneration", text_config=TEXT | ROPE, vision_config=QWEN),
    "vit": lambda: built("ViTForImageClassification", **VISION),
    "vit, base": lambda: built("ViTModel", **VISION),
    "dinov2": lambda: built("Dinov2Model", **VISION),
}


def adapter_on(model: nn.Module, names: list[str]) -> lora.Adapter:
    layers = {}
    for name in names:
        k, d = model.get_submodule(name).weight.shape
        layers[name] = lora.LoRAUpdate(torch.randn(2, d), torch.randn(k, 2), 3)
    return lora.Adapter(lora.LoRAConfig(), layers)


def linear(model: nn.Module) -> list[str]:
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and not name.endswith(("lm_head", "classifier", "out_proj"))
    ]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_files_with_the_hubs_names_are_merged_into(build, tmp_path):
    model = build()
    adapter = adapter_on(model, linear(model))
    model.save_pretrained(tmp_path / "base")
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
    expected = build()
    expected.load_state_dict(model.state_dict())
    lora.attach(expected, adapter)
    lora.merge(expected, keep=False)
    merged = type(model).from_pretrained(tmp_path / "out").state_dict()
    assert all(same_bits(tensor, merged[name]) for name, tensor in expected.state_dict().items())


def test_the_other_way_round_older_names_find_newer_files(tmp_path):
    model = MODELS["llava"]()
    name = "language_model.model.layers.0.self_attn.q_proj"
    update = lora.LoRAUpdate(torch.randn(2, 16), torch.randn(16, 2), 3)

    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    lora.merge_checkpoint(tmp_path / "model.safetensors", lora.Adapter(lora.LoRAConfig(), {name: update}), tmp_path / "out")
    before, after = (load_file(path) for path in (tmp_path / "model.safetensors", tmp_path / "out" / "model.safetensors"))
    assert [key for key in before if not same_bits(before[key], after[key])] == [
        "model.language_model.layers.0.self_attn.q_proj.weight"
    ]


def test_the_tie_of_a_model_of_text_and_images_is_known(tmp_path):
    MODELS["gemma3"]().save_pretrained(tmp_path)
    tie = tie_of(open_checkpoint(tmp_path))
    assert tie is not None
    assert tie.embedding == "language_model.model.embed_tokens.weight"


def test_names_that_no_table_knows_are_given_by_hand(tmp_path, capsys):

    save_file({"net.blocks.0.proj.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    adapter = lora.Adapter(lora.LoRAConfig(), {"mine.0.proj": lora.LoRAUpdate(torch.ones(1, 4), torch.ones(4, 1), 1)})
    lora.save(adapter, tmp_path / "adapter")
    words = ["merge", str(tmp_path / "model.safetensors"), str(tmp_path / "adapter"), "-o", str(tmp_path / "out")]
    assert main(words) != 0
    assert "--rename mine=NEW" in capsys.readouterr().err
    assert main([*words, "--rename", "mine=net.blocks"]) == 0
    assert same_bits(load_file(tmp_path / "out" / "model.safetensors")["net.blocks.0.proj.weight"], torch.ones(4, 4))
