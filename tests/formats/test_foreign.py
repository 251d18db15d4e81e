"""Layouts that people publish: each is read right, or refused in a sentence that says what it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import loralib as lora
from loralib.formats.foreign import by_first_bytes, by_names

Q = "model.layers.0.self_attn.q_proj"
P = f"base_model.model.{Q}"
A, B = torch.ones(2, 6), torch.ones(4, 2)
FACTORS = {f"{P}.lora_A.weight": A, f"{P}.lora_B.weight": B}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def folder_with(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG) -> Path:
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(dict(config)))
    return folder


def pair(name: str, down: str = "lora_down", up: str = "lora_up") -> dict[str, Tensor]:
    return {f"{name}.{down}.weight": A.clone(), f"{name}.{up}.weight": B.clone()}


@pytest.mark.parametrize(
    "others",
    [
        [
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
            "training_args.bin",
        ],  # transformers' checkpoints
        ["README.md", "tokenizer.json", "all_results.json", "training_loss.png", "added_tokens.json"],  # LLaMA-Factory
        ["adapter_model.bin"],  # both kinds: PEFT reads the safetensors file
    ],
)
def test_what_lies_next_to_an_adapter_does_not_matter(others, tmp_path):
    folder = folder_with(tmp_path, FACTORS)
    for name in others:
        (folder / name).write_bytes(b"no tensors at all")
    assert lora.load(folder).layers.keys() == {Q}


def test_text_encoders_of_stable_diffusion_xl(tmp_path):
    names = {
        f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1": name for i, name in ((1, "text_encoder"), (2, "text_encoder_2"))
    }
    save_file({key: tensor for name in names for key, tensor in pair(name).items()}, tmp_path / "a.safetensors")
    found = {f"{name}.text_model.encoder.layers.0.mlp.fc1" for name in names.values()}
    assert lora.load(tmp_path / "a.safetensors").layers.keys() == found


def test_a_checkpoint_of_lightning_holds_its_state_dict_within(tmp_path):
    torch.save({"epoch": 3, "state_dict": FACTORS}, tmp_path / "last.ckpt")
    adapter = lora.load(tmp_path / "last.ckpt", config=lora.LoRAConfig(lora_alpha=4))
    assert adapter.layers[Q].scaling == 2


@pytest.mark.parametrize(
    "kind", ["ADALORA", "VERA", "LOKR", "LOHA", "IA3", "OFT", "PROMPT_TUNING", "XLORA", "TRAINABLE_TOKENS"]
)
def test_other_methods_of_peft(kind, tmp_path):
    with pytest.raises(lora.FormatError, match=f"peft_type='{kind}'; only LORA adapters can be read"):
        lora.load(folder_with(tmp_path, {"x": A}, {"peft_type": kind, "r": 2}))


@pytest.mark.parametrize(
    ("tensors", "telling"),
    [
        (pair("lycoris_transformer_blocks_0_attn_to_q"), "LyCORIS, whose names do not say which model"),
        ({"lycoris_mid_block.hada_w1_a": A}, "LyCORIS of another method than LoRA"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": A}, "of the method LoKr"),
        ({"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": A}, "of the method LoKr"),
        ({"emb_params": A}, "textual inversion"),
        ({"clip_l": A, "clip_g": A}, "textual inversion"),
        ({"image_proj.proj.weight": A, "ip_adapter.1.to_k_ip.weight": A}, "IP-Adapter"),
        ({"lora_controlnet": A, "input_blocks.0.0.up": A}, "Control-LoRA"),
        ({"layers.0.attn.q_proj.lora_a.weight": A, "layers.0.attn.q_proj.lora_b.weight": B}, "torchtune"),
        ({"decoder.linear_qkv.adapter.linear_in.weight": A}, "NeMo"),
        ({"transformer_blocks.0.qkv_proj.lora_down": A, "transformer_blocks.0.qkv_proj.lora_up": B}, "Nunchaku"),
        (
            pair("double_blocks.0.img_attn.proj", "lora_A", "lora_B") | {"x.query_norm.scale": A},
            "control adapter of FLUX by BFL",
        ),
        (
            pair("lora_unet_double_blocks_0_img_attn_proj") | {"bundle_emb.tok.clip_l": A},
            "bundle_emb.tok.clip_l' is .* textual",
        ),
        (pair("lora_unet_joint_blocks_0_x_block_attn_proj"), "Stable Diffusion 3, which is not read"),
        ({key: tensor.to(torch.int8) for key, tensor in pair("lora_unet_conv_in").items()}, "dtype torch.int8"),
        ({"prompt_embeddings": A}, "a prompt that was tuned"),
        ({f"{Q}.weight": A}, "a whole model, perhaps"),
        ({}, "names of no known format"),
    ],
)
def test_what_is_no_lora_is_called_by_its_name(tensors, telling, tmp_path):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        (b"GGUF\x03\0\0\0", "a GGUF file of llama.cpp; give the PEFT folder"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page; download the file itself"),
        (b"{}", "a JSON file"),
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "x.safetensors", "x.gguf"])
def test_files_of_something_else_are_known_by_their_first_bytes(content, telling, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    if name.startswith("adapter_model"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    for path in (
        tmp_path / name,
        *([tmp_path] if name != "x.safetensors" and (name != "x.gguf" or b"GGUF" in content) else []),
    ):
        with pytest.raises(lora.FormatError, match=telling):
            lora.load(path)


def test_an_adapter_in_several_files(tmp_path):
    for i, (key, tensor) in enumerate(FACTORS.items(), 1):
        save_file({key: tensor}, tmp_path / f"adapter_model-0000{i}-of-00002.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(
        lora.FormatError, match=r"in several files \(adapter_model.safetensors.index.json\), which PEFT does not read"
    ):
        lora.load(tmp_path)


def test_nothing_is_said_of_what_is_not_known(tmp_path):
    assert by_first_bytes(tmp_path) is None
    assert by_names([f"{P}.lora_A.weight", "a.lora_A"]) is None
