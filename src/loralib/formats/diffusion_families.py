"""Diffusion transformers that diffusers rewrote: what their original code calls the layers, and what diffusers does.

A family is a table {original name: name in diffusers}. `#` stands for a number and `*` for the rest of a name. Programs write
the original names with dots (ComfyUI, ai-toolkit, BFL, XLabs) or with underscores for them (kohya's). A fused projection
becomes several: `{to_q,to_k,to_v}` are equal parts of its rows, and a part `to_q=in` has as many rows as the layer has inputs.
`~` behind a name: the two halves of the rows change places (shift and scale). `:` ends a component other than `transformer`.
Where the same name means two things, `ratios` (outputs to inputs) say which family it is of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

DOTTED, FLAT, PEFT = "diffusion_model.", "lora_unet_", "base_model.model."


@dataclass(frozen=True)
class Family:
    """The models whose layers `rows` name.

    prefixes: what may come before the names in files. sure: an expression for the name of a layer that no other model has; one
    must be there where the prefix is none of diffusion models.
    """

    name: str
    rows: Mapping[str, str]
    ratios: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    prefixes: tuple[str, ...] = (DOTTED, FLAT)
    sure: str = ""


def _each(block: str, new: str, names: Mapping[str, str]) -> dict[str, str]:
    """The rows of a block's layers."""
    return {f"{block}.{old}": f"{new}.{replacement}" for old, replacement in names.items()}


def _same(*names: str) -> dict[str, str]:
    """The rows of layers that diffusers calls as the original code does."""
    return {name: name for name in names}


_QKV, _ADDED = "attn.{to_q,to_k,to_v}", "attn.{add_q_proj,add_k_proj,add_v_proj}"
_DOUBLE = {"img_attn.qkv": _QKV, "txt_attn.qkv": _ADDED, "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out"}
_NET = {
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_LINEAR1 = "{attn.to_q=in,attn.to_k=in,attn.to_v=in,proj_mlp}"
_TIMES = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder", "vector_in": "text_embedder"}
_LAYERS = {"in_layer": "linear_1", "out_layer": "linear_2"}

_FLUX1 = {
    **_each("double_blocks.#", "transformer_blocks.#", _DOUBLE | _NET),
    **_each("double_blocks.#", "transformer_blocks.#", {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}),
    **_each(
        "single_blocks.#",
        "single_transformer_blocks.#",
        {"linear1": _LINEAR1, "linear2": "proj_out", "modulation.lin": "norm.linear"},
    ),
    **{f"{old}.{i}": f"time_text_embed.{new}.{o}" for old, new in _TIMES.items() for i, o in _LAYERS.items()},
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear~",
}
_FLUX2 = {
    **_each("double_blocks.#", "transformer_blocks.#", _DOUBLE),
    **_each(
        "double_blocks.#",
        "transformer_blocks.#",
        {
            "img_mlp.0": "ff.linear_in",
            "img_mlp.2": "ff.linear_out",
            "txt_mlp.0": "ff_context.linear_in",
            "txt_mlp.2": "ff_context.linear_out",
        },
    ),
    **_each("single_blocks.#", "single_transformer_blocks.#.attn", {"linear1": "to_qkv_mlp_proj", "linear2": "to_out"}),
    **{
        f"{old}.{i}": f"time_guidance_embed.{_TIMES[old]}.{o}" for old in ("time_in", "guidance_in") for i, o in _LAYERS.items()
    },
    **{f"{name}.lin": f"{name}.linear" for name in ("single_stream_modulation", "double_stream_modulation_img")},
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_FLUX3_BLOCK = {
    "q_proj": "attn.to_q",
    "k_proj": "attn.to_k",
    "v_proj": "attn.to_v",
    "attn_out": "attn.to_out.0",
    "mlp_in": "ff.linear_in",
    "mlp_out": "ff.linear_out",
}
_XLABS = _each(
    "double_blocks.#.processor",
    "transformer_blocks.#",
    {"qkv_lora1": _QKV, "qkv_lora2": _ADDED, "proj_lora1": "attn.to_out.0", "proj_lora2": "attn.to_add_out"},
) | _each("single_blocks.#.processor", "single_transformer_blocks.#", {"qkv_lora": _QKV, "proj_lora": "proj_out"})
_MLP = {"mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
_HUNYUAN = {
    **_each(
        "double_blocks.#",
        "transformer_blocks.#",
        {old.replace("_attn.", "_attn_"): new for old, new in _DOUBLE.items()}
        | {"img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear"}
        | {f"img_{old}": new for old, new in _MLP.items()}
        | {f"txt_{old}": new.replace("ff.", "ff_context.") for old, new in _MLP.items()},
    ),
    **_each(
        "single_blocks.#",
        "single_transformer_blocks.#",
        {"linear1": _LINEAR1, "linear2": "proj_out", "modulation.linear": "norm.linear"},
    ),
    **_each(
        "txt_in.individual_token_refiner.blocks.#",
        "context_embedder.token_refiner.refiner_blocks.#",
        {"self_attn_qkv": _QKV, "self_attn_proj": "attn.to_out.0", "adaLN_modulation.1": "norm_out.linear"} | _MLP,
    ),
    **{
        f"{old}.mlp.{i}": f"time_text_embed.{_TIMES[old]}.linear_{i // 2 + 1}"
        for old in ("time_in", "guidance_in")
        for i in (0, 2)
    },
    **{f"vector_in.{i}": f"time_text_embed.text_embedder.{o}" for i, o in _LAYERS.items()},
    **{f"txt_in.t_embedder.mlp.{i}": f"context_embedder.time_text_embed.timestep_embedder.linear_{i // 2 + 1}" for i in (0, 2)},
    **{f"txt_in.c_embedder.linear_{i}": f"context_embedder.time_text_embed.text_embedder.linear_{i}" for i in (1, 2)},
    "txt_in.input_embedder": "context_embedder.proj_in",
    "img_in.proj": "x_embedder.proj",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear~",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_WAN = {
    **_each("blocks.#.self_attn", "blocks.#.attn1", _ATTENTION),
    **_each("blocks.#.cross_attn", "blocks.#.attn2", _ATTENTION | {"k_img": "add_k_proj", "v_img": "add_v_proj"}),
    **_each("blocks.#.ffn", "blocks.#.ffn.net", {"0": "0.proj", "2": "2"}),
    **{
        f"{name}_embedding.{i}": f"condition_embedder.{name}_embedder.linear_{i // 2 + 1}"
        for name in ("text", "time")
        for i in (0, 2)
    },
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}
_ATTENTION_OF_ANIMA = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}
_ANIMA = {
    **_each("blocks.#.self_attn", "transformer_blocks.#.attn1", _ATTENTION_OF_ANIMA),
    **_each("blocks.#.cross_attn", "transformer_blocks.#.attn2", _ATTENTION_OF_ANIMA),
    **_each("blocks.#.mlp", "transformer_blocks.#.ff.net", {"layer1": "0.proj", "layer2": "2"}),
    **{
        f"blocks.#.adaln_modulation_{name}.{i}": f"transformer_blocks.#.{norm}.linear_{i}"
        for name, norm in (("self_attn", "norm1"), ("cross_attn", "norm2"), ("mlp", "norm3"))
        for i in (1, 2)
    },
    "llm_adapter.*": "text_conditioner:*",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
    "x_embedder.proj.1": "patch_embed.proj",
}
_QWEN = _same(
    *(f"transformer_blocks.#.attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"transformer_blocks.#.attn.add_{n}_proj" for n in "qkv"),
    *(f"transformer_blocks.#.{side}_{n}" for side in ("img", "txt") for n in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
    *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    *("img_in", "txt_in", "proj_out", "norm_out.linear"),
)
_STACKS = ("layers", "noise_refiner", "context_refiner")
_Z_IMAGE = {
    **{f"{stack}.#.attention.qkv": f"{stack}.#.attention.{{to_q,to_k,to_v}}" for stack in _STACKS},
    **{f"{stack}.#.attention.out": f"{stack}.#.attention.to_out.0" for stack in _STACKS},
    **_same(
        *(f"{stack}.#.attention.{n}" for stack in _STACKS for n in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{stack}.#.feed_forward.w{i}" for stack in _STACKS for i in (1, 2, 3)),
        *(f"{stack}.#.adaLN_modulation.0" for stack in _STACKS),
        *("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        *("all_x_embedder.2-1", "all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1"),
    ),
}
_LUMINA2 = {
    f"{stack}.#.{old}": f"{stack}.#.{new}"
    for stack in _STACKS
    for old, new in {
        "attention.qkv": "attn.{to_q=in,to_k,to_v}",
        "attention.out": "attn.to_out.0",
        "adaLN_modulation.1": "norm1.linear",
        **{f"feed_forward.w{i}": f"feed_forward.linear_{i}" for i in (1, 2, 3)},
    }.items()
}
_IDEOGRAM = {
    "layers.#.attention.qkv": "layers.#.attention.{to_q,to_k,to_v}",
    "layers.#.attention.o": "layers.#.attention.to_out.0",
    **_same("layers.#.adaln_modulation", *(f"layers.#.feed_forward.w{i}" for i in (1, 2, 3))),
}
_KREA_BLOCK = {
    **{f"attn.w{n}": f"attn.to_{n}" for n in "qkv"},
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    **{f"mlp.{n}": f"ff.{n}" for n in ("gate", "up", "down")},
}
_KREA2 = {
    **_each("blocks.#", "transformer_blocks.#", _KREA_BLOCK),
    **_each("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", _KREA_BLOCK),
    **_each("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", _KREA_BLOCK),
    "first": "img_in",
    "last.linear": "final_layer.linear",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
}
_AS_IN_DIFFUSERS = {  # LTX-Video, Qwen-Image, HiDream: only the prefix differs
    **_same("transformer_blocks.#.*", "single_transformer_blocks.#.*", "double_stream_blocks.#.*", "single_stream_blocks.#.*"),
    **_same("caption_projection.*", "proj_out"),
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single.*": "time_embed.*",
    "audio_adaln_single.*": "audio_time_embed.*",
}


def _ratios(linear1: int, mlp: tuple[int, int], linear2: int) -> dict[str, tuple[int, int]]:
    """The shapes of FLUX's layers: outputs of linear1 and mlp.0, inputs of linear2 and mlp.2, in widths of the model."""
    sides = ("img", "txt")
    rows = {f"double_blocks.#.{s}_mlp.0": (mlp[0], 1) for s in sides} | {
        f"double_blocks.#.{s}_mlp.2": (1, mlp[1]) for s in sides
    }
    return rows | {"single_blocks.#.linear1": (linear1, 1), "single_blocks.#.linear2": (1, linear2)}


_BLOCKS = r"(?:double|single)_blocks\..*"
FAMILIES = (
    Family("FLUX.1", _FLUX1, _ratios(7, (4, 4), 5), (DOTTED, FLAT, PEFT), _BLOCKS),
    Family("FLUX.2", _FLUX2, _ratios(9, (6, 3), 4), (DOTTED, FLAT, PEFT), _BLOCKS),
    Family(
        "FLUX.3",
        _each("single_blocks.#", "single_transformer_blocks.#", _FLUX3_BLOCK)
        | _each("content_mode_blocks.#", "mode_blocks.#", _FLUX3_BLOCK),
        prefixes=(DOTTED,),
    ),
    Family("FLUX.1 of XLabs", _XLABS, {}, (DOTTED, ""), r".*\.processor\..*"),
    Family(
        "HunyuanVideo",
        _HUNYUAN,
        {"single_blocks.#.linear1": (7, 1), "single_blocks.#.linear2": (1, 5)},
        (DOTTED, FLAT, "transformer.", ""),
        _BLOCKS,
    ),
    Family("Wan", _WAN, {}, (DOTTED, FLAT, ""), r"blocks\.\d+\.(?:self|cross)_attn\.[qkvo]"),
    Family("Qwen-Image", _QWEN, {}, (DOTTED, FLAT, ""), r"transformer_blocks\.\d+\.attn\..*"),
    Family("Z-Image", _Z_IMAGE, {f"{stack}.#.attention.qkv": (3, 1) for stack in _STACKS}),
    Family("Lumina 2", _LUMINA2, {f"{stack}.#.attention.qkv": (5, 3) for stack in _STACKS}, (DOTTED,)),
    Family("Ideogram 4", _IDEOGRAM, {"layers.#.attention.qkv": (3, 1)}, (DOTTED, "conditional_transformer.")),
    Family("Anima", _ANIMA, prefixes=(DOTTED,)),
    Family("Krea 2", _KREA2, {}, (DOTTED, PEFT), r"txtfusion\..*|blocks\.\d+\.attn\.gate"),
    Family("LTX-Video or HiDream", _AS_IN_DIFFUSERS, prefixes=(DOTTED,)),
)
REFUSED = {  # families that are not read, by expressions for the beginning of their layers' names
    r"joint_blocks[._]": "Stable Diffusion 3",
    r"(?:double_layers|cond_seq_linear|single_layers)[._]": "AuraFlow",
    r"(?:token_refiner[._]blocks|blocks[._]\d+[._]attn[._]qkv_proj|blocks[._]\d+[._]adaln_proj)": "MiniMax-H3",
    r"blocks[._]\d+[._](?:attn|mlp)[._]": "Cosmos or another video model",
    r"text_embedding_projection[._]": "LTX-2's connectors",
    r"vace_blocks[._]": "Wan VACE",
    r"(?:down|mid|up)_blocks[._].*motion_modules": "AnimateDiff",
}
