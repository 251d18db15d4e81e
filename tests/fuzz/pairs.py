"""Adapters whose config and tensors do not belong together: each is plausible alone.

What is read has to be an adapter in every way: it can be told about, written, read again as the same value, and merged.
"""

import json
import random
from pathlib import Path

import torch
from mutation import Time
from safetensors.torch import save
from seeds import Files

import loralib as lora

LAYERS = ("h.0.q", "h.0.v", "h.1.q", "emb", "conv")
_FIELDS: dict[str, tuple[object, ...]] = {  # of PEFT's config: values that somebody has, or might have
    "r": (0, 1, 2, 3, 64, -1, "2", 2.0, None, True, [2]),
    "lora_alpha": (0, 1, 4.5, -4, "8", None, 1e308, 1e-320, float("nan")),
    "target_modules": (None, [], ["q"], ["q", "v"], "all-linear", ".*q", "(a|a)*b", "[", ["emb", "q"], 3, [None]),
    "exclude_modules": (None, ["v"], ".*v"),
    "modules_to_save": (None, [], ["head"], ["q"], "head", [""], ["conv", "head"]),
    "rank_pattern": ({}, {"q": 1}, {"q": 0}, {"h.0.q": 2, "v": 3}, {"(": 1}, [], {"q": "2"}, {r"(a+)+": 2}),
    "alpha_pattern": ({}, {"q": 1}, {"q": -1}, {"v": 3.5}, {"q": None}, None),
    "use_rslora": (False, True, None, "yes"),
    "use_dora": (False, True),
    "fan_in_fan_out": (False, True, None),
    "bias": ("none", "all", "lora_only", "some", None),
    "init_lora_weights": (True, False, None, "gaussian", "pissa", "olora", "eva", 5),
    "lora_bias": (False, True),
    "layers_to_transform": (None, [0], 1, "0"),
    "layer_replication": (None, [[0, 1]]),
    "trainable_token_indices": (None, [1, 2], {"emb": [0, 3]}, "x"),
    "peft_type": ("LORA", "lora", "LOHA", "ADALORA", None, 3),
    "task_type": (None, "CAUSAL_LM", "SEQ_CLS", 7),
    "base_model_name_or_path": (None, "org/model", "", "../../etc/passwd", "\x1b[31mred"),
    "target_parameters": (None, ["experts"]),
    "megatron_config": (None, {}),
    "a_field_of_2031": (None, False, 0, {}, "on"),
}
_SUFFIXES = ("lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_embedding_A", "lora_magnitude_vector", "weight")


def pair(rng: random.Random) -> Files:
    """A config and tensors, with some things wrong in each, and between them."""
    r, dora = rng.choice((1, 2, 3)), rng.random() < 0.1
    config: dict[str, object] = {"peft_type": "LORA", "r": r, "lora_alpha": 4, "target_modules": ["q", "v"], "use_dora": dora}
    for name in rng.sample(sorted(_FIELDS), rng.choice((0, 0, 1, 1, 2))):
        config[name] = rng.choice(_FIELDS[name])
    for name in rng.sample(sorted(config), rng.choice((0, 0, 0, 0, 1))):
        del config[name]
    tensors: dict[str, torch.Tensor] = {}
    for layer in rng.sample(LAYERS, rng.choice((1, 2, 3))):
        tensors |= _factors(layer, r if rng.random() < 0.95 else 2, dora if rng.random() < 0.95 else not dora, rng)
    if rng.random() < 0.3:
        tensors["base_model.model.head.weight"] = _tensor((2, 3), rng)
    for name in rng.sample(sorted(tensors), min(len(tensors), rng.choice((0, 0, 0, 1)))):
        tensor = tensors.pop(name)
        if (kind := rng.random()) < 0.4:
            tensors[_renamed(name, rng)] = tensor
        elif kind < 0.8:
            tensors[name] = _changed(tensor, rng)
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save({name: tensor.contiguous() for name, tensor in tensors.items()}),
    }


def _factors(layer: str, r: int, dora: bool, rng: random.Random) -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.{layer}."
    if layer == "emb" and rng.random() < 0.7:
        return {f"{prefix}lora_embedding_A": _tensor((r, 7), rng), f"{prefix}lora_embedding_B": _tensor((3, r), rng)}
    kernel, ones = ((2, 2), (1, 1)) if layer == "conv" else ((), ())
    found = {f"{prefix}lora_A.weight": _tensor((r, 3, *kernel), rng), f"{prefix}lora_B.weight": _tensor((4, r, *ones), rng)}
    if dora:
        found[f"{prefix}lora_magnitude_vector"] = _tensor((4,), rng)
    return found


def _tensor(shape: tuple[int, ...], rng: random.Random) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, generator=generator).to(rng.choice((torch.float32,) * 6 + (torch.float16, torch.bfloat16)))


def _renamed(name: str, rng: random.Random) -> str:
    head, _, _ = name.partition(".lora_")
    return rng.choice(
        (
            name.removeprefix("base_model.model."),
            f"base_model.model.{name}",
            name.replace("lora_A", "lora_B") + "x",
            f"{head}.{rng.choice(_SUFFIXES)}",
            name.replace(".weight", ".other.weight"),
            name.replace("h.0", "h.9"),
            "\x1b[2J" + name,
            "lora_A.weight",
            ".",
        )
    )


def _changed(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    kind = rng.randrange(9)
    if kind == 0:
        return tensor.movedim(0, -1)
    if kind == 1:
        return tensor[:1]
    if kind == 2:
        return tensor[:0]
    if kind == 3:
        return tensor.to(rng.choice((torch.int64, torch.bool, torch.float64, torch.int8, torch.float8_e4m3fn)))
    if kind == 4:
        return tensor.float() * rng.choice((float("nan"), float("inf"), 1e38, 0.0))
    if kind == 5:
        return tensor.reshape(-1)
    if kind == 6:
        return tensor.unsqueeze(0)
    if kind == 7:
        return torch.cat([tensor, tensor])
    return tensor.flatten()[0]


def refused(files: Files, folder: Path) -> bool:
    """Whether a pair is refused. What is read is looked at, written and read again; a `LoRAError` may say no there."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with Time(5):
        try:
            adapter = lora.load(folder)
        except lora.LoRAError:
            return True
        str(adapter)
        adapter.summary()
        for written in ("peft", "safetensors"):
            out = folder / f"again-{written}" / "a.safetensors"
            out.parent.mkdir()
            path = out.parent / "folder" if written == "peft" else out
            try:
                lora.save(adapter, path, format=written)
            except lora.LoRAError:
                assert not path.exists(), f"{written}: refused, and written all the same"
                continue
            assert lora.load(path) == adapter, f"{written}: another adapter is read than was written"
        for name in adapter.layers:
            try:
                adapter.delta(name)
            except lora.LoRAError:
                continue
    return False
