"""Small adapters in every format, the files that fuzzing begins with, as {file name: content}."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save

import loralib as lora
from loralib.adapters.token_rows import TokenRows

Files = dict[str, bytes]


def _update(layer: str, r: int, shape: tuple[int, ...] = (3,), ones: tuple[int, ...] = ()) -> lora.LoRAUpdate:
    torch.manual_seed(len(layer) + r)
    kind = lora.ConvolutionUpdate if ones else lora.LoRAUpdate
    return kind(torch.randn(r, *shape), torch.randn(4, r, *ones), lora_alpha=2 * r)


def adapters() -> dict[str, lora.Adapter]:
    """By format: an adapter that uses what the format can hold."""
    linear = {"a.q": _update("a.q", 2), "a.v": _update("a.v", 1)}
    conv = {"c": _update("c", 2, (3, 2, 2), (1, 1))}
    embedding = {"emb": lora.EmbeddingUpdate(torch.randn(2, 7), torch.randn(3, 2), 4)}
    slices = lora.FusedUpdate(torch.randn(4, 3), torch.randn(6, 2), 4, False, (True, False, True), (3, 3, 3))
    dora = {name: lora.LoRAUpdate(u.A, u.B, u.lora_alpha, magnitude=torch.rand(4)) for name, u in linear.items()}
    rows = {"emb.weight": TokenRows((1, 5), torch.randn(2, 3))}
    head = {"head.weight": torch.randn(2, 3), "head.bias": torch.randn(2)}
    config = lora.LoRAConfig(modules_to_save=["head"])
    unet = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": _update("q", 2)}
    unet |= {"unet.mid_block.resnets.0.conv1": _update("conv1", 2, (3, 3, 3), (1, 1))}
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": _update("t", 1)}
    return {
        "peft": lora.Adapter(lora.LoRAConfig(), linear | conv | embedding),
        "peft with more": lora.Adapter(config, dora, head, {"task_type": "SEQ_CLS"}, rows),
        "safetensors": lora.Adapter(config, linear | conv | {"s": slices}, head, {"base": "some/model"}, rows),
        "loralib": lora.Adapter(config, {n: lora.LoRAUpdate(u.A, u.B, 4) for n, u in linear.items()}, head),
        "diffusers": lora.Adapter(lora.LoRAConfig(), unet | text),
        "kohya": lora.Adapter(lora.LoRAConfig(), unet | text),
    }


def seeds() -> Iterator[tuple[str, Files]]:
    """(name, files) of every format."""
    for name, adapter in adapters().items():
        with TemporaryDirectory() as folder:
            out = Path(folder) / ("out" if name.startswith("peft") else "adapter.pt" if name == "loralib" else "a.safetensors")
            described = adapter.with_layers(dict(reversed(adapter.layers.items())))
            lora.save(described, out, format=name.split()[0])
            files = out.iterdir() if out.is_dir() else [out]
            yield name, {file.name: file.read_bytes() for file in files}
    state = {"base_model.model.lin0.lora_A.weight": torch.randn(2, 3), "base_model.model.lin0.lora_B.weight": torch.randn(4, 2)}
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lin0"]}).encode()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    yield "peft, pickled", {"adapter_config.json": config, "adapter_model.bin": buffer.getvalue()}
    yield (
        "peft, with an adapter's name",
        {
            "adapter_config.json": config,
            "adapter_model.safetensors": save({key.replace(".weight", ".default.weight"): t for key, t in state.items()}),
        },
    )
    factors = {"a.q_proj.lora_a": torch.randn(3, 2), "a.q_proj.lora_b": torch.randn(2, 4), "norm.weight": torch.ones(3)}
    said = json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 10.0}}).encode()
    yield "mlx", {"adapter_config.json": said, "adapters.safetensors": save(factors)}
    block = "diffusion_model.double_blocks.0.img_"
    flux = {f"{block}attn.qkv.lora_A.weight": torch.randn(2, 3), f"{block}attn.qkv.lora_B.weight": torch.randn(9, 2)}
    flux |= {f"{block}mod.lin.lora_down.weight": torch.randn(2, 3), f"{block}mod.lin.lora_up.weight": torch.randn(18, 2)}
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.randn(2, 3)}
    text |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.randn(4, 2)}
    yield "original", {"a.safetensors": save(flux | text | {f"{block}mod.lin.alpha": torch.tensor(1.0)})}
