"""Names of layers in the diffusion world, where kohya's files write underscores for dots, and where some write the names of the
original Stable Diffusion code instead of diffusers'.

    down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q  →  down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q
    input_blocks_2_1_transformer_blocks_0_attn1_to_q            →  the same

Underscores belong to names, too, so that a vocabulary decides: every word must be in it, and the longest one counts. The
original code numbers its blocks through. Which of diffusers' they are follows for models with two layers a block (Stable
Diffusion 1, 2 and XL), where three numbers make a block: two layers and a change of resolution.

    input_blocks_<1 + 3i + j>_0, _1    down_blocks.i.resnets.j, .attentions.j;  input_blocks_<3 + 3i>_0_op: its downsampler
    output_blocks_<3i + j>_0, _1       up_blocks.i.resnets.j, .attentions.j;    output_blocks_<2 + 3i>_…_conv: its upsampler
    middle_block_0, _1, _2             mid_block.resnets.0, .attentions.0, .resnets.1
"""

import re

# fmt: off
_WORDS = frozenset({
    # diffusers' UNet
    "add_embedding", "add_k_proj", "add_v_proj", "attentions", "attn", "attn1", "attn2", "class_embedding", "cond_proj", "conv",
    "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "down_blocks", "downsamplers", "encoder_hid_proj", "ff", "fuser",
    "image_embeds", "image_proj", "linear", "linear_1", "linear_2", "linears", "mid_block", "net", "pool", "position_net",
    "proj", "proj_in", "proj_out", "resnets", "text_proj", "time_emb_proj", "time_embedding", "to_k", "to_out", "to_q", "to_v",
    "transformer_blocks", "transformers", "up_blocks", "upsamplers",
    # diffusers' transformers
    "add_q_proj", "blocks", "condition_embedder", "context_embedder", "ff_context", "ffn", "guidance_embedder",
    "image_embedder", "img_in", "img_mlp", "img_mod", "linear_in", "linear_out", "norm", "norm1", "norm1_context", "norm_out",
    "proj_mlp", "refiner_blocks", "single_transformer_blocks", "text_embedder", "time_embedder", "time_proj",
    "time_text_embed", "timestep_embedder", "to_add_out", "to_qkv_mlp_proj", "token_refiner", "txt_in", "txt_mlp", "txt_mod",
    "x_embedder",
    # CLIP's text encoders
    "embeddings", "encoder", "fc1", "fc2", "k_proj", "layers", "mlp", "out_proj", "position_embedding", "q_proj", "self_attn",
    "text_model", "text_projection", "token_embedding", "v_proj",
    # T5's encoder
    "DenseReluDense", "SelfAttention", "block", "k", "layer", "o", "q", "shared", "v", "wi", "wi_0", "wi_1", "wo",
})
# fmt: on
_LONGEST = max(word.count("_") for word in _WORDS) + 1
_LAYERS_PER_BLOCK = 2
_ATTENTION = ("proj_in", "proj_out", "transformer_blocks")
_RESNET = {"in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj", "skip_connection": "conv_shortcut"}
_SINGLE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks)_(\d{1,2})_(\d)_(.+)")
_MIDDLE = re.compile(r"middle_block_([012])_(.+)")


def underscored(name: str) -> str:
    """A dotted name as kohya writes it."""
    return name.replace(".", "_")


def dotted(flat: str) -> str | None:
    """The dotted name, as diffusers has it, of a layer that kohya's files call `flat`; None where a word is not known.

    >>> dotted("mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj")
    'mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj'
    >>> dotted("output_blocks_5_2_conv"), dotted("mid_block_surprise")
    ('up_blocks.1.upsamplers.0.conv', None)
    """
    if flat in _SINGLE:
        return _SINGLE[flat]
    if block := _BLOCK.fullmatch(flat):
        return _of_block(block[1], int(block[2]), int(block[3]), block[4])
    if middle := _MIDDLE.fullmatch(flat):
        return _inside("mid_block." + ("resnets.0", "attentions.0", "resnets.1")[int(middle[1])], middle[2])
    parts, words, at = flat.split("_"), [], 0
    while at < len(parts):
        longest_first = (parts[at : at + length] for length in range(_LONGEST, 0, -1))
        word = next((word for word in map("_".join, longest_first) if word in _WORDS or word.isdecimal()), None)
        if word is None:
            return None
        words.append(word)
        at += word.count("_") + 1
    return ".".join(words)


def _of_block(side: str, block: int, part: int, rest: str) -> str | None:
    """The name of a layer in one of the original code's numbered blocks, each of which has a few parts."""
    span = _LAYERS_PER_BLOCK + 1
    if side == "input_blocks":
        level, layer = divmod(block - 1, span)
        if layer == _LAYERS_PER_BLOCK:
            return f"down_blocks.{level}.downsamplers.0.conv" if (part, rest) == (0, "op") else None
        where = f"down_blocks.{level}"
    else:
        level, layer = divmod(block, span)
        where = f"up_blocks.{level}"
        if part in (1, 2) and rest == "conv":
            return f"{where}.upsamplers.0.conv" if layer == _LAYERS_PER_BLOCK else None
    return _inside(f"{where}.{'resnets' if part == 0 else 'attentions'}.{layer}", rest) if part in (0, 1) else None


def _inside(module: str, rest: str) -> str | None:
    """The name of a layer in a residual or attention block."""
    if ".resnets." in module:
        return f"{module}.{_RESNET[rest]}" if rest in _RESNET else None
    inner = dotted(rest) if rest.startswith(_ATTENTION) else None
    return inner and f"{module}.{inner}"
