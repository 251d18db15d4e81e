"""Diffusion transformers by their original names: the layers and updates that diffusers itself makes of the same file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import loralib as lora
from loralib.formats.diffusion_families import FAMILIES
from loralib.formats.family_places import place
from peers import library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::FutureWarning:diffusers")

R, ALPHA = 2, 1.0  # a scaling of 1/2: exact wherever it is multiplied in
BY_NAME = {family.name: family for family in FAMILIES}
CONVERSIONS = {  # by family and prefix, diffusers' own function
    ("FLUX.1", "lora_unet_"): "_convert_kohya_flux_lora_to_diffusers",
    ("FLUX.1", "diffusion_model."): "_convert_kohya_flux_lora_to_diffusers",
    ("FLUX.1 of XLabs", ""): "_convert_xlabs_flux_lora_to_diffusers",
    ("FLUX.1 of XLabs", "diffusion_model."): "_convert_xlabs_flux_lora_to_diffusers",
    ("FLUX.2", "lora_unet_"): "_convert_kohya_flux2_lora_to_diffusers",
    ("FLUX.2", "diffusion_model."): "_convert_non_diffusers_flux2_lora_to_diffusers",
    ("FLUX.3", "diffusion_model."): "_convert_non_diffusers_flux3_lora_to_diffusers",
    ("HunyuanVideo", ""): "_convert_hunyuan_video_lora_to_diffusers",
    ("HunyuanVideo", "transformer."): "_convert_hunyuan_video_lora_to_diffusers",
    ("Wan", "diffusion_model."): "_convert_non_diffusers_wan_lora_to_diffusers",
    ("Wan", "lora_unet_"): "_convert_musubi_wan_lora_to_diffusers",
    ("Qwen-Image", "lora_unet_"): "_convert_non_diffusers_qwen_lora_to_diffusers",
    ("Qwen-Image", "diffusion_model."): "_convert_non_diffusers_qwen_lora_to_diffusers",
    ("Qwen-Image", ""): "_convert_non_diffusers_qwen_lora_to_diffusers",
    ("Z-Image", "lora_unet_"): "_convert_non_diffusers_z_image_lora_to_diffusers",
    ("Z-Image", "diffusion_model."): "_convert_non_diffusers_z_image_lora_to_diffusers",
    ("Lumina 2", "diffusion_model."): "_convert_non_diffusers_lumina2_lora_to_diffusers",
    ("Ideogram 4", "diffusion_model."): "_convert_non_diffusers_ideogram4_lora_to_diffusers",
    ("Anima", "diffusion_model."): "_convert_non_diffusers_anima_lora_to_diffusers",
    ("Krea 2", "diffusion_model."): "_convert_non_diffusers_krea2_lora_to_diffusers",
    ("Krea 2", "base_model.model."): "_convert_non_diffusers_krea2_lora_to_diffusers",
}
WIDTHS = {"FLUX.1": 3072, "HunyuanVideo": 3072, "Lumina 2": 2304}  # which diffusers' functions assume
PLAIN = ("Anima", "FLUX.3", "HunyuanVideo", "Krea 2", "Lumina 2")  # whose conversions know lora_A and lora_B only
ELSEWHERE = {  # rows that diffusers does not know, or converts otherwise: without a component, or A like B
    "FLUX.1": r"img_in|txt_in|(time|guidance|vector)_in.*|final_layer.*",
    "FLUX.2": r"final_layer.ada.*|.*guidance_in.*|.*modulation.*",
    "HunyuanVideo": r"final_layer.ada.*|txt_in.*self_attn_qkv|.*mod.*linear|.*_mod.*",
    "Z-Image": r".*\.qkv|.*\.out|cap_.*|t_emb.*|all_.*|.*adaLN.*",
    "Wan": r"img_emb.*|.*_img|time_projection.*|.*_embedding.*|head.*",
    "Lumina 2": r"context_refiner.*adaLN.*",
}


def names_of(family: str, flat: bool) -> list[str]:
    """The original names of the layers of two blocks."""
    rows = [row for row in BY_NAME[family].rows if not re.fullmatch(ELSEWHERE.get(family, ""), row) and "*" not in row]
    return [row.replace("#", number) for row in rows for number in ("0", "1") if number == "0" or "#" in row]


def shape_of(family: str, name: str) -> tuple[int, int]:
    """(out, in) of a layer that fits its row."""
    found, width = BY_NAME[family], WIDTHS.get(family, 6)
    row = re.sub(r"(?<=\.)\d+(?=\.)", "#", name, count=1)
    k, d = found.ratios.get(row, (1, 1))
    if row not in found.ratios:
        at = place(found, name, flat=False)
        assert at is not None
        k = 7 if len(at.layers) == 4 else len(at.layers)
        k *= 2 if at.swapped else 1
    return k * width // (3 if d == 3 and k == 5 else 1), d * width // (3 if d == 3 and k == 5 else 1)


def made(family: str, prefix: str) -> dict[str, Tensor]:
    """A file of all layers of a family, two blocks of each kind."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, Tensor]()
    flat = prefix == "lora_unet_"
    ab = prefix == "base_model.model." or family in PLAIN or (family == "FLUX.2" and not flat)
    down, up = ("lora_A", "lora_B") if ab else ("down", "up") if "XLabs" in family else ("lora_down", "lora_up")
    for name in names_of(family, flat):
        k, d = shape_of(family, name)
        key = prefix + (name.replace(".", "_") if flat else name)
        tensors[f"{key}.{down}.weight"] = torch.randn(R, d, generator=generator)
        tensors[f"{key}.{up}.weight"] = torch.randn(k, R, generator=generator)
        if not ab and "XLabs" not in family:
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    return tensors


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (A, B)} of a state dict of diffusers."""
    found = {}
    for key, A in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            found[layer] = A, tensors[f"{layer}.lora_B.weight"]
    assert 2 * len(found) == len(tensors), sorted(tensors)
    return found


def loaded(folder: Path, tensors: Mapping[str, Tensor]) -> lora.Adapter:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "f.safetensors")
    return lora.load(folder / "f.safetensors")


@pytest.mark.parametrize(("family", "prefix"), CONVERSIONS)
def test_a_family_is_what_diffusers_makes_of_it(family, prefix, tmp_path):
    tensors = made(family, prefix)
    adapter = loaded(tmp_path, tensors)
    assert lora.detect(tmp_path / "f.safetensors") == "original"
    convert = getattr(library("diffusers.loaders.lora_conversion_utils"), CONVERSIONS[family, prefix])
    expected = by_layer(convert({name: tensor.clone() for name, tensor in tensors.items()}))
    assert adapter.layers.keys() == expected.keys()
    for name, (A, B) in expected.items():
        update = adapter.layers[name]
        assert torch.equal(update.B, B) or torch.equal(update.B * update.scaling, B)
        assert torch.equal(update.A, A) or torch.equal(update.A * update.scaling, A)
        assert update.scaling == (1 if not any(key.endswith(".alpha") for key in tensors) else 0.5)


# --- what diffusers' conversions leave out --------------------------------------------------------------------------


def delta(update: lora.LoRAUpdate) -> Tensor:
    return update.scaling * update.B @ update.A


def pair(layer: str, k: int = 6, d: int = 6, r: int = 2, dots: bool = False) -> dict[str, Tensor]:
    down, up = ("lora_A", "lora_B") if dots else ("lora_down", "lora_up")
    return {f"{layer}.{down}.weight": torch.randn(r, d), f"{layer}.{up}.weight": torch.randn(k, r)}


@pytest.mark.parametrize("dora", [False, True])
def test_the_rows_of_a_fused_projection_and_of_shift_and_scale_come_to_their_places(dora, tmp_path):
    qkv, final = "lora_unet_single_blocks_3_linear1", "lora_unet_final_layer_adaLN_modulation_1"
    tensors = pair(qkv, 42, 6) | pair(final, 12, 6) | {f"{name}.alpha": torch.tensor(6.0) for name in (qkv, final)}
    if dora:
        tensors |= {f"{name}.dora_scale": torch.randn(len(tensors[f"{name}.lora_up.weight"]), 1) for name in (qkv, final)}
    layers = loaded(tmp_path, tensors).layers
    block = "transformer.single_transformer_blocks.3"
    names = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    assert sorted(layers) == sorted([*names, "transformer.norm_out.linear"])
    whole = 3 * tensors[f"{qkv}.lora_up.weight"] @ tensors[f"{qkv}.lora_down.weight"]
    assert torch.equal(torch.cat([delta(layers[name]) for name in names]), whole)
    assert [len(layers[name].B) for name in names] == [6, 6, 6, 24]
    shift, scale = (3 * tensors[f"{final}.lora_up.weight"] @ tensors[f"{final}.lora_down.weight"]).chunk(2)
    assert torch.equal(delta(layers["transformer.norm_out.linear"]), torch.cat([scale, shift]))
    if dora:
        first, second = tensors[f"{final}.dora_scale"].flatten().chunk(2)
        assert torch.equal(layers["transformer.norm_out.linear"].magnitude, torch.cat([second, first]))
        assert torch.equal(torch.cat([layers[n].magnitude for n in names]), tensors[f"{qkv}.dora_scale"].flatten())


def test_an_update_of_blocks_becomes_updates_of_lower_rank(tmp_path):
    """kohya's scripts train query, key and value apart, and write them as one: diffusers takes them apart, too."""
    name, up = "lora_unet_double_blocks_0_img_attn_qkv", torch.zeros(18, 6)
    for i in range(3):
        up[6 * i : 6 * i + 6, 2 * i : 2 * i + 2] = torch.randn(6, 2)
    tensors = {f"{name}.lora_down.weight": torch.randn(6, 6), f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}
    layers = loaded(tmp_path, tensors).layers
    assert {update.r for update in layers.values()} == {2}
    assert torch.allclose(torch.cat([delta(u) for u in layers.values()]), 0.5 * up @ tensors[f"{name}.lora_down.weight"])


def test_text_encoders_come_with_their_transformer(tmp_path):
    clip, t5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"
    block = {"lora_unet_": "double_blocks_0_img_attn_proj", "diffusion_model.": "double_blocks.0.img_attn.proj"}
    for prefix, first, second in (
        ("lora_unet_", "lora_te1_" + clip.replace(".", "_"), "lora_te3_" + t5.replace(".", "_")),
        ("diffusion_model.", "text_encoders.clip_l.transformer." + clip, "text_encoders.t5xxl.transformer." + t5),
    ):
        tensors = pair(prefix + block[prefix]) | pair(first) | pair(second)
        names = {"transformer.transformer_blocks.0.attn.to_out.0", f"text_encoder.{clip}", f"text_encoder_2.{t5}"}
        assert loaded(tmp_path, tensors).layers.keys() == names


def test_zeros_in_place_of_full_weights_are_nothing(tmp_path):
    tensors = pair("diffusion_model.blocks.0.self_attn.q") | {"diffusion_model.blocks.0.norm3.diff_b": torch.zeros(6)}
    assert list(loaded(tmp_path, tensors).layers) == ["transformer.blocks.0.attn1.to_q"]
    tensors["diffusion_model.blocks.0.norm3.diff_b"][2] = 1
    with pytest.raises(lora.FormatError, match=r"norm3.diff_b' is a change of full weights, which is no LoRA"):
        loaded(tmp_path, tensors)


@pytest.mark.parametrize(
    ("layers", "telling"),
    [
        (
            {"diffusion_model.layers.0.feed_forward.w1": (6, 6)},
            "may be of Z-Image or of Lumina 2, where they have different names",
        ),
        ({"diffusion_model.double_blocks.0.img_mlp.0": (6, 6)}, "no layer of a known family has this name and shape"),
        (
            {"diffusion_model.double_blocks.0.img_attn.proj": (6, 6), "diffusion_model.double_blocks.0.surprise": (6, 6)},
            r"double_blocks.0.surprise': no layer of FLUX.1 has this name.*have diffusers convert it once",
        ),
        ({"diffusion_model.double_blocks.0.img_attn.qkv": (7, 6)}, "has 7 outputs, which do not divide among"),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv": (18, 6),
                "diffusion_model.joint_blocks.0.x_block.attn.proj": (6, 6),
            },
            "it is of Stable Diffusion 3, which is not read",
        ),
        ({"lora_unet_single_blocks_0_linear1": (12, 6)}, "no layer of a known family has this name and shape"),
    ],
)
def test_what_is_of_no_known_family_is_refused_by_name(layers, telling, tmp_path):
    tensors = {k: t for name, shape in layers.items() for k, t in pair(name, *shape, dots="." in name).items()}
    with pytest.raises(lora.FormatError, match=telling):
        loaded(tmp_path, tensors)


@pytest.mark.parametrize(
    "part", ["lokr_w1", "hada_w1_a", "oft_blocks", "diff_b", "a1.weight", "lora_B.bias", "weight", "lora_A.x.weight"]
)
def test_other_methods_are_refused_by_name(part, tmp_path):
    tensors = pair("diffusion_model.blocks.0.self_attn.q") | {f"diffusion_model.blocks.0.self_attn.k.{part}": torch.ones(2, 2)}
    with pytest.raises(lora.FormatError, match=r"self_attn.k.*(method|full weights|no kind)"):
        loaded(tmp_path, tensors)


def test_two_names_of_one_layer_are_refused(tmp_path):
    tensors = pair("lora_unet_blocks_0_self_attn_q") | pair("diffusion_model.blocks.0.self_attn.q")
    with pytest.raises(lora.FormatError, match=r"'transformer.blocks.0.attn1.to_q' has several updates"):
        loaded(tmp_path, tensors)


def test_every_row_is_a_name_of_its_own():
    for family in FAMILIES:
        for row in family.rows:
            name = row.replace("#", "7").replace("*", "x.y")
            for flat in (False, True) if "*" not in row else (False,):
                at = place(family, name.replace(".", "_") if flat else name, flat)
                assert at is not None, (family.name, row)
                assert at == place(family, name, flat=False)
                assert all("#" not in layer and "*" not in layer and "~" not in layer for layer in at.layers)


@pytest.mark.parametrize(
    "layer",
    [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.12.attn.add_q_proj",
        "transformer_blocks.1.attn.to_add_out",
        "transformer_blocks.1.ff.net.0.proj",
        "transformer_blocks.1.ff_context.net.2",
        "transformer_blocks.1.norm1_context.linear",
        "single_transformer_blocks.37.attn.to_v",
        "single_transformer_blocks.3.proj_mlp",
        "single_transformer_blocks.3.norm.linear",
        "time_text_embed.timestep_embedder.linear_1",
        "norm_out.linear",
        "x_embedder",
    ],
)
def test_onetrainers_names_are_diffusers_with_underscores(layer, tmp_path):
    """Of those of feed-forward layers diffusers' own conversion loses the end."""
    adapter = loaded(
        tmp_path, pair("lora_transformer_" + layer.replace(".", "_")) | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    )
    assert adapter.layers.keys() == {f"transformer.{layer}", "text_encoder.text_model.encoder.layers.0.mlp.fc1"}
    tensors = pair(f"transformer.{layer}") | {f"transformer.{layer}.alpha": torch.tensor(1.0)}
    assert loaded(tmp_path, tensors).layers[f"transformer.{layer}"].scaling == 0.5


def test_names_of_a_family_are_not_written_as_a_unets(tmp_path):
    update = lora.LoRAUpdate(torch.ones(2, 6), torch.ones(6, 2), 2)
    for name in ("unet.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q"):
        with pytest.raises(lora.FormatError, match="cannot be told back"):
            lora.save(lora.Adapter(lora.LoRAConfig(), {name: update}), tmp_path / "a.safetensors", format="kohya")


def test_comfyuis_names_of_stable_diffusion_are_kohyas_with_dots(tmp_path):
    names = {
        "diffusion_model.input_blocks.4.1.proj_in": "lora_unet_input_blocks_4_1_proj_in",
        "diffusion_model.output_blocks.3.0.in_layers.2": "lora_unet_output_blocks_3_0_in_layers_2",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1": "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    }
    tensors = [pair(name) for name in names]
    comfy = loaded(tmp_path, {key: tensor for found in tensors for key, tensor in found.items()})
    renamed = [
        {key.replace(old, new): tensor for key, tensor in found.items()}
        for found, (old, new) in zip(tensors, names.items(), strict=True)
    ]
    assert loaded(tmp_path, {key: tensor for found in renamed for key, tensor in found.items()}).layers == comfy.layers


@pytest.mark.parametrize(
    ("convert", "names"),
    [
        ("ltxv", ["transformer_blocks.0.attn1.to_q", "transformer_blocks.27.ff.net.0.proj", "caption_projection.linear_1"]),
        (
            "ltx2",
            [
                *("transformer_blocks.0.audio_attn2.to_out.0", "patchify_proj", "audio_patchify_proj", "adaln_single.linear"),
                *("transformer_blocks.3.audio_to_video_attn.to_k", "audio_adaln_single.emb.timestep_embedder.linear_1"),
            ],
        ),
        (
            "hidream",
            [
                *("double_stream_blocks.0.block.attn1.to_q_t", "single_stream_blocks.3.block.ff_i.experts.0.w1"),
                "double_stream_blocks.15.block.adaLN_modulation.1",
            ],
        ),
    ],
)
def test_names_that_diffusers_shares_are_what_it_makes_of_them(convert, names, tmp_path):
    tensors = {key: tensor for name in names for key, tensor in pair(f"diffusion_model.{name}", dots=True).items()}
    function = getattr(
        library("diffusers.loaders.lora_conversion_utils"), f"_convert_non_diffusers_{convert}_lora_to_diffusers"
    )
    expected, layers = by_layer(function(dict(tensors))), loaded(tmp_path, tensors).layers
    assert layers.keys() == expected.keys()
    assert all(torch.equal(layers[name].A, A) and torch.equal(layers[name].B, B) for name, (A, B) in expected.items())


def test_a_file_of_fal_is_one_of_comfyui_by_another_prefix(tmp_path):
    names = ["double_blocks.0.img_attn.proj", "single_blocks.3.modulation.lin", "img_in"]
    tensors = {key: tensor for name in names for key, tensor in pair(name, dots=True).items()}
    found = [
        loaded(tmp_path, {prefix + k: t for k, t in tensors.items()}).layers
        for prefix in ("base_model.model.", "diffusion_model.")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["layers.0.feed_forward.w1", "layers.0.attention.wq"], "peft-file"),  # Llama's original code
        (["layers.0.feed_forward.w1"], "peft-file"),
        (["base_model.model.blocks.0.mlp.up", "base_model.model.first"], "peft-file"),
        (["base_model.model.img_in"], "peft-file"),
        (["blocks.0.ffn.0", "blocks.0.ffn.2"], "peft-file"),
        (["blocks.0.self_attn.q", "blocks.0.surprise"], "peft-file"),
        (["transformer.final_layer.linear", "transformer.transformer_blocks.0.attn.to_q"], "diffusers"),
        (["transformer.img_in", "transformer.txt_in"], "diffusers"),
    ],
)
def test_other_models_with_such_names_are_not_taken_for_these(names, format, tmp_path):
    tensors = {key: tensor for name in names for key, tensor in pair(name, dots=True).items()}
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors")
    assert lora.detect(tmp_path / "f.safetensors") == format


@pytest.mark.parametrize("infix", ["", ".default"])
def test_names_without_a_prefix_are_a_familys_unless_diffusers_wrote_the_file(infix, tmp_path):
    """DiffSynth-Studio writes such files; a model's own `save_lora_adapter` says its configuration in the metadata."""
    layer = "transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A{infix}.weight": torch.ones(2, 6), f"{layer}.lora_B{infix}.weight": torch.ones(6, 2)}
    assert loaded(tmp_path, tensors).layers.keys() == {f"transformer.{layer}"}
    if not infix:
        said = json.dumps({"r": 2, "lora_alpha": 8, "target_modules": ["to_q"]})
        safetensors.torch.save_file(tensors, tmp_path / "f.safetensors", {"lora_adapter_metadata": said})
        assert lora.load(tmp_path / "f.safetensors").layers[layer].scaling == 4
        safetensors.torch.save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
        assert lora.load(tmp_path / "pytorch_lora_weights.safetensors").layers.keys() == {layer}
