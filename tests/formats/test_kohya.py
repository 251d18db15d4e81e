"""kohya's files: names told back from underscores as diffusers itself converts them, other people's layouts read by their
formulas, and everything that is not LoRA, or damaged, refused."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from loralib import formats
from loralib.formats.diffusion_names import dotted, underscored
from loralib.formats.opened import Opened
from models import same_bits
from peers import library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::FutureWarning:diffusers")

SD15 = {
    "sample_size": 8,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "block_out_channels": (4, 4, 4, 4),
}
XL = {
    **SD15,
    "block_out_channels": (4, 4, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (0, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 30,
}
DEPTHS = {"sd15": (1, 1, 1, 0), "xl": (0, 2, 3)}  # transformer blocks by level of resolution
SIZES: dict[str, dict[str, Any]] = {"sd15": SD15, "xl": XL}
CLIP = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UPDATE = lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4)
OF_CLIP = "text_model.encoder.layers.0.self_attn.q_proj"


def unet(shape: str = "sd15", **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = library("diffusers").UNet2DConditionModel(**SIZES[shape] | sizes).eval()
    return model


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an update."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def trained(model: nn.Module, component: str, r: int = 2, lora_alpha: float = 3) -> lora.Adapter:
    """An adapter of all layers of `model`."""
    layers = {}
    for name, module in weighted(model).items():
        k, d, *kernel = module.weight.shape
        A, B = 0.1 * torch.randn(r, d, *kernel), 0.1 * torch.randn(k, r, *[1 for _ in kernel])
        layers[f"{component}.{name}"] = (lora.ConvolutionUpdate if kernel else lora.LoRAUpdate)(A, B, lora_alpha)
    return lora.Adapter(lora.LoRAConfig(), layers)


def stored(name: str = "lora_unet_conv_in", A: tuple[int, ...] = (2, 3), B: tuple[int, ...] = (4, 2)) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.randn(A), f"{name}.lora_up.weight": torch.randn(B)}


def loaded(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> lora.Adapter:
    safetensors.torch.save_file(dict(tensors), folder / "f.safetensors", metadata=metadata)
    return lora.load(folder / "f.safetensors")


# --- names ----------------------------------------------------------------------------------------------------------


def original(depths: tuple[int, ...]) -> Iterator[str]:
    """The names that the layers of a UNet with so many transformer blocks by level have in the original code."""

    def resnet(where: str, widens: bool) -> Iterator[str]:
        yield from (f"{where}.in_layers.2", f"{where}.emb_layers.1", f"{where}.out_layers.3")
        if widens:
            yield f"{where}.skip_connection"

    def attention(where: str, depth: int) -> Iterator[str]:
        yield from (f"{where}.proj_in", f"{where}.proj_out")
        for block in (f"{where}.transformer_blocks.{i}" for i in range(depth)):
            yield from (f"{block}.attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out.0"))
            yield from (f"{block}.ff.net.0.proj", f"{block}.ff.net.2")

    yield from ("input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2")
    last = len(depths) - 1
    for level, depth in enumerate(depths):
        for layer in range(2):
            where = f"input_blocks.{1 + 3 * level + layer}"
            yield from resnet(f"{where}.0", widens=False)
            yield from attention(f"{where}.1", depth) if depth else ()
        if level < last:
            yield f"input_blocks.{3 + 3 * level}.0.op"
    yield from resnet("middle_block.0", widens=False)
    yield from attention("middle_block.1", max(depths[-1], 1))
    yield from resnet("middle_block.2", widens=False)
    for level, depth in enumerate(reversed(depths)):
        for layer in range(3):
            where = f"output_blocks.{3 * level + layer}"
            yield from resnet(f"{where}.0", widens=True)
            yield from attention(f"{where}.1", depth) if depth else ()
        if level < last:
            yield f"output_blocks.{3 * level + 2}.{2 if depth else 1}.conv"


@pytest.mark.parametrize("shape", SIZES)
def test_the_original_codes_names_become_those_to_which_diffusers_converts_whole_models(shape):
    convert = library("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    names = [*original(DEPTHS[shape]), *(("label_emb.0.0", "label_emb.0.2") if shape == "xl" else ())]
    model = unet(shape)
    numbered = {f"model.diffusion_model.{name}.weight": torch.tensor(i) for i, name in enumerate(names)}
    biases = dict.fromkeys((name.replace(".weight", ".bias") for name in numbered), torch.tensor(-1))
    converted = convert(numbered | biases, dict(model.config))
    theirs = {int(i): key.removesuffix(".weight") for key, i in converted.items() if key.endswith(".weight")}
    assert {name: dotted(underscored(name)) for name in names} == {name: theirs[i] for i, name in enumerate(names)}
    assert set(theirs.values()) == weighted(model).keys()


ODD_UNETS = {
    "consistency": {"time_cond_proj_dim": 8},
    "projected text": {"encoder_hid_dim": 5, "encoder_hid_dim_type": "text_image_proj"},
    "pooled text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": 6},
    "text and image": {"addition_embed_type": "text_image", "encoder_hid_dim": 6},
    "gated": {"attention_type": "gated"},
    "dual": {"dual_cross_attention": True},
    "added": {
        "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 4,
        "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 4,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
}


@pytest.mark.parametrize("kind", [*SIZES, *ODD_UNETS])
def test_every_layer_of_diffusers_unets_is_told_back_from_underscores(kind):
    names = list(weighted(unet(kind) if kind in SIZES else unet(**ODD_UNETS[kind])))
    assert [dotted(underscored(name)) for name in names] == names


# --- what diffusers makes of our files ------------------------------------------------------------------------------


def as_diffusers_converts(path: Path, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors by component, under PEFT's names, to which diffusers converts a file of kohya's."""
    mixin, names = library("diffusers.loaders").StableDiffusionLoraLoaderMixin, library("diffusers.utils.state_dict_utils")
    state, _ = mixin.lora_state_dict(path.parent, weight_name=path.name, unet_config=model.config)
    found = {}
    for component, change in (
        ("unet", names.convert_unet_state_dict_to_peft),
        ("text_encoder", names.convert_state_dict_to_peft),
        ("text_encoder_2", names.convert_state_dict_to_peft),
    ):
        own = {k.removeprefix(f"{component}."): t for k, t in state.items() if k.startswith(f"{component}.")}
        if not own:
            continue
        found[component] = {
            k.replace(".lora.down", ".lora_A").replace(".lora.up", ".lora_B"): t for k, t in change(own).items()
        }
    return found


@pytest.mark.parametrize("shape", SIZES)
def test_diffusers_converts_our_files_to_the_same_tensors(shape, tmp_path):
    model = unet(shape)
    transformers = library("transformers")
    clip = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP, projection_dim=8))
    layers: dict[str, lora.LoRAUpdate] = {}
    for part, component in ((model, "unet"), (clip, "text_encoder"), (clip, "text_encoder_2")):
        layers |= trained(part, component).layers
    layers = {name: update for name, update in layers.items() if "add_embedding" not in name}  # diffusers confuses the two
    lora.save(lora.Adapter(lora.LoRAConfig(), layers), tmp_path / "k.safetensors", format="kohya")
    theirs = as_diffusers_converts(tmp_path / "k.safetensors", model)
    ours: dict[str, dict[str, Tensor]] = {}
    for name, update in layers.items():
        component, _, inner = name.partition(".")
        ours.setdefault(component, {}).update({f"{inner}.lora_A.weight": update.A, f"{inner}.lora_B.weight": update.B})
    assert theirs.keys() == ours.keys()
    for component, tensors in ours.items():
        assert theirs[component].keys() == tensors.keys()
        assert all(same_bits(theirs[component][key], tensor) for key, tensor in tensors.items())
    assert lora.load(tmp_path / "k.safetensors").layers == layers


def test_a_text_encoder_computes_with_our_file_what_it_says(tmp_path):
    transformers, mixin = library("transformers"), library("diffusers.loaders").StableDiffusionLoraLoaderMixin
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)).eval()
    adapter = trained(model, "text_encoder").rename(lambda name: name.replace(".encoder.", ".text_model.encoder."))
    lora.save(adapter, tmp_path / "k.safetensors", format="kohya")
    ids = torch.tensor([[1, 5, 7, 2]])
    weights = {f"{n.replace('text_encoder.text_model.', '')}.weight": u.delta() for n, u in adapter.layers.items()}
    changed = {name: model.get_parameter(name) + delta for name, delta in weights.items()}
    with torch.no_grad():
        before = model(ids).last_hidden_state
        expected = torch.func.functional_call(model, changed, (ids,)).last_hidden_state
        state, alphas = mixin.lora_state_dict(tmp_path, weight_name="k.safetensors")
        mixin.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=model)
        assert torch.allclose(model(ids).last_hidden_state, expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


# --- files that are not ours ----------------------------------------------------------------------------------------


def test_a_file_as_kohyas_scripts_write_it_is_what_diffusers_reads_in_it(tmp_path):
    model = unet("xl")
    state = {}
    for i, name in enumerate([*original(DEPTHS["xl"])]):
        k, d, *kernel = weighted(model)[str(dotted(underscored(name)))].weight.shape
        key = f"lora_unet_{underscored(name)}"
        state |= stored(key, (1 + i % 3, d, *kernel), (k, 1 + i % 3, *[1 for _ in kernel])) | {
            f"{key}.alpha": torch.tensor(1.5)
        }
    state = {key: tensor.half() for key, tensor in state.items()}
    adapter = loaded(tmp_path, state, {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "1.5"})
    theirs = as_diffusers_converts(tmp_path / "f.safetensors", model)["unet"]
    assert len(theirs) == 2 * len(adapter.layers) == 2 * len([*original(DEPTHS["xl"])])
    for name, update in adapter.layers.items():
        inner = name.removeprefix("unet.")
        assert same_bits(update.A, theirs[f"{inner}.lora_A.weight"])
        assert same_bits(update.B, theirs[f"{inner}.lora_B.weight"])
        assert update.scaling == 1.5 / update.r
    assert not adapter.metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tucker_decomposition_is_multiplied_out_without_loss(dtype, tmp_path):
    mid, down, up = (torch.randn(shape).to(dtype) for shape in ((2, 2, 3, 3), (2, 5, 1, 1), (4, 2, 1, 1)))
    tensors = {"lora_mid.weight": mid, "lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    adapter = loaded(tmp_path, {f"lora_unet_conv_in.{part}": tensor for part, tensor in tensors.items()})
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    inner = nn.functional.conv2d(nn.functional.conv2d(x, down.double()), mid.double(), padding=1)
    expected = 1.5 * nn.functional.conv2d(inner, up.double())
    result = nn.functional.conv2d(x, adapter.delta("unet.conv_in").double(), padding=1)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(adapter.layers["unet.conv_in"], lora.ConvolutionUpdate)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_dora_scales_an_output_are_magnitudes(kernel, tmp_path):
    ones = tuple(1 for _ in kernel)
    state = stored(A=(2, 3, *kernel), B=(4, 2, *ones)) | {"lora_unet_conv_in.dora_scale": torch.rand(4, 1, *ones)}
    update = loaded(tmp_path, state).layers["unet.conv_in"]
    W = torch.randn(4, 3, *kernel)
    down, up, scale = (
        state[f"lora_unet_conv_in.{part}"].flatten(1) for part in ("lora_down.weight", "lora_up.weight", "dora_scale")
    )
    changed = W.flatten(1) + up @ down
    expected = changed * scale / changed.norm(dim=1, keepdim=True)
    assert torch.allclose(update.effective_weight(W), expected.reshape(W.shape), atol=1e-5)


@pytest.mark.parametrize("alpha", [torch.tensor(3.0), torch.tensor([3.0]), torch.tensor(3.0).bfloat16(), torch.tensor(3)])
def test_alpha_is_one_number_of_any_dtype(alpha, tmp_path):
    adapter = loaded(tmp_path, stored() | {"lora_unet_conv_in.alpha": alpha})
    assert adapter.layers["unet.conv_in"].scaling == 1.5
    assert loaded(tmp_path, stored()).layers["unet.conv_in"].scaling == 1


# --- what is written ------------------------------------------------------------------------------------------------


@given(r=st.integers(1, 300), lora_alpha=st.floats(1e-3, 1e3))
def test_a_scaling_by_the_root_of_the_rank_becomes_an_alpha_of_the_same_effect(r, lora_alpha, tmp_path_factory):
    update = lora.LoRAUpdate(torch.ones(r, 1), torch.ones(1, r), lora_alpha, use_rslora=True)
    path = tmp_path_factory.mktemp("k") / "k.safetensors"
    lora.save(lora.Adapter(lora.LoRAConfig(), {"unet.conv_in": update}), path, format="kohya")
    read = lora.load(path).layers["unet.conv_in"]
    assert math.isclose(read.scaling, update.scaling, rel_tol=2**-51)
    again = path.with_name("again.safetensors")
    lora.save(lora.load(path), again, format="kohya")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("components", "prefixes"),
    [
        (["text_encoder"], {"lora_te"}),
        (["text_encoder", "text_encoder_2"], {"lora_te1", "lora_te2"}),
        (["text_encoder_2"], {"lora_te2"}),
    ],
)
def test_text_encoders_are_numbered_where_there_are_several(components, prefixes, tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(), {f"{component}.{OF_CLIP}": UPDATE for component in components})
    lora.save(adapter, tmp_path / "k.safetensors", format="kohya")
    keys = safetensors.torch.load_file(tmp_path / "k.safetensors")
    assert {key.partition("_text_model")[0] for key in keys} == prefixes
    assert lora.load(tmp_path / "k.safetensors").layers == adapter.layers


def test_a_text_encoder_without_its_outermost_module_has_to_be_renamed(tmp_path):
    """transformers 5 calls the layers of a CLIPTextModel so, and programs would pass over such names in silence."""
    adapter = lora.Adapter(lora.LoRAConfig(), {f"text_encoder.{OF_CLIP.removeprefix('text_model.')}": UPDATE})
    with pytest.raises(lora.FormatError, match=r"adapter\.rename") as error:
        lora.save(adapter, tmp_path / "k.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
    remedy = {"text_encoder.encoder": "text_encoder.text_model.encoder"}
    assert str(remedy) in str(error.value)
    lora.save(adapter.rename(remedy), tmp_path / "k.safetensors", format="kohya")
    assert list(lora.load(tmp_path / "k.safetensors").layers) == [f"text_encoder.{OF_CLIP}"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "telling"),
    [
        ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"), ("on_input", "IA³"), ("a1.weight", "GLoRA"),
        ("b2.weight", "GLoRA"), ("diff", "full weights"), ("diff_b", "full weights"), ("w_norm", "full weights"),
        ("scalar", "no kind"), ("lora_down.bias", "no kind"),
    ],
)  # fmt: skip
def test_other_methods_are_named(part, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=f"lora_unet_conv_in.{part}.*{telling}"):
        loaded(tmp_path, stored() | {f"lora_unet_conv_in.{part}": torch.ones(2, 2)})


KEY = "lora_unet_conv_in."
TUCKER = stored(A=(2, 3, 1, 1), B=(4, 2, 1, 1))


@pytest.mark.parametrize(
    ("tensors", "telling"),
    [
        (stored(A=(), B=(4, 2)), "shapes"),
        (stored(A=(), B=()), "not factors"),
        (stored(A=(0, 3), B=(4, 0)), "r > 0"),
        (stored(A=(3, 3), B=(4, 2)), "same r"),
        (stored(A=(2, 3, 3, 3), B=(4, 2)), "with a kernel, or none"),
        (stored(A=(2, 3), B=(4, 2, 1, 1)), "with a kernel, or none"),
        (stored(A=(2, 3, 3, 3), B=(4, 2, 3, 3)), "not factors"),
        ({k: t.int() for k, t in stored().items()}, "int32"),
        ({k: t.to(torch.float8_e4m3fn) for k, t in stored().items()}, "float8"),
        ({KEY + "lora_up.weight": torch.ones(4, 2)}, "has no lora_down"),
        ({KEY + "lora_down.weight": torch.ones(4, 2)}, "has no lora_up"),
        ({KEY + "alpha": torch.tensor(1.0)}, "has no lora_down"),
        (stored() | {KEY + "alpha": torch.tensor(0.0)}, "alpha=0"),
        (stored() | {KEY + "alpha": torch.tensor(-4.0)}, "alpha=-4"),
        (stored() | {KEY + "alpha": torch.tensor(math.inf)}, "alpha=inf"),
        (stored() | {KEY + "alpha": torch.tensor(math.nan)}, "alpha=nan"),
        (stored() | {KEY + "alpha": torch.ones(2)}, "one number"),
        (stored() | {KEY + "alpha": torch.ones(0)}, "one number"),
        (stored() | {KEY + "alpha": torch.tensor(True)}, "bool"),
        (stored() | {KEY + "dora_scale": torch.ones(())}, "dora_scale"),
        (stored() | {KEY + "dora_scale": torch.ones(5, 1)}, "magnitude"),
        (stored() | {KEY + "dora_scale": torch.ones(1, 1)}, "magnitude"),
        (stored(B=()) | {KEY + "dora_scale": torch.ones(1, 1)}, "shapes"),
        (stored() | {KEY + "dora_scale": torch.ones(1, 3)}, "scales an input"),
        (stored(A=(2, 4)) | {KEY + "dora_scale": torch.ones(1, 4)}, "scales an input"),
        (stored() | {KEY + "dora_scale": torch.ones(4, 1).int()}, "int32"),
        (TUCKER | {KEY + "lora_mid.weight": torch.ones(2, 5, 3, 3)}, "does not fit"),
        (TUCKER | {KEY + "lora_mid.weight": torch.ones(())}, "does not fit"),
        (TUCKER | {KEY + "lora_mid.weight": torch.ones(2, 2, 3, 3).half()}, "does not fit"),
        (TUCKER | {KEY + "lora_mid.weight": torch.ones(2, 2, 9, 9)}, "does not fit"),
        (stored() | {KEY + "lora_mid.weight": torch.ones(2, 2, 3, 3)}, "does not fit"),
        (stored() | stored("lora_unet_input_blocks_0_0"), "same layer"),
        (stored(f"lora_te_{underscored(OF_CLIP)}") | stored(f"lora_te1_{underscored(OF_CLIP)}"), "same layer"),
        (stored() | {"text_model.weight": torch.ones(1)}, "no kind"),
        (stored("lora_unet_joint_blocks_0_x_block_attn_qkv"), "joint_blocks_0_x_block_attn_qkv .*Stable Diffusion 3.*keys="),
    ],
)
def test_damaged_files_are_refused(tensors, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        loaded(tmp_path, tensors)


def test_a_middle_factor_that_would_grow_beyond_the_file_is_refused(tmp_path):
    """A few megabytes whose product would have 2⁴² numbers."""
    tensors = {"lora_mid.weight": (1, 1, 1024, 1024), "lora_down.weight": (1, 2**20, 1, 1), "lora_up.weight": (4, 1, 1, 1)}
    with pytest.raises(lora.FormatError, match="does not fit"):
        loaded(tmp_path, {KEY + part: torch.zeros(shape).half() for part, shape in tensors.items()})
    tensors |= {"lora_mid.weight": (2**20, 1, 1, 1), "lora_up.weight": (4, 2**20, 1, 1)}
    with pytest.raises(lora.FormatError, match="does not fit"):
        loaded(tmp_path, {KEY + part: torch.zeros(shape).half() for part, shape in tensors.items()})


def test_names_that_cannot_be_told_can_be_given_by_a_key_map(tmp_path):
    tensors = stored("lora_unet_double_blocks_0_img_attn_qkv")
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors")
    keys = {
        r"lora_unet_double_blocks_(\d+)_img_attn_qkv\.lora_down\.weight": r"unet.double_blocks.\1.img_attn.qkv.lora_A",
        r"lora_unet_double_blocks_(\d+)_img_attn_qkv\.lora_up\.weight": r"unet.double_blocks.\1.img_attn.qkv.lora_B",
    }
    assert list(lora.load(tmp_path / "f.safetensors", keys=keys).layers) == ["unet.double_blocks.0.img_attn.qkv"]


@pytest.mark.parametrize("stranger", ["diffusers", "peft", "safetensors", "unrelated", "damaged", "folder", "nothing"])
def test_kohyas_files_are_recognised_and_others_are_not(stranger, tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(), {"unet.conv_in": replace(UPDATE)})
    lora.save(adapter, tmp_path / "k.safetensors", format="kohya")
    path = tmp_path / "x.safetensors"
    if stranger in ("diffusers", "safetensors"):
        lora.save(adapter, path, format=stranger)
    elif stranger == "peft":
        names = ("base_model.model.unet.conv_in.lora_A.weight", "base_model.model.unet.conv_in.lora_B.weight")
        safetensors.torch.save_file(dict(zip(names, (UPDATE.A, UPDATE.B), strict=True)), path)
    elif stranger == "unrelated":
        safetensors.torch.save_file({"lora_unet": torch.ones(1), "lora_vae_x.lora_down.weight": torch.ones(1)}, path)
    elif stranger == "damaged":
        path.write_bytes((tmp_path / "k.safetensors").read_bytes()[:-1])
    elif stranger == "folder":
        path.mkdir()
    assert not formats.kohya.detect(Opened(path))
    assert formats.diffusers.detect(Opened(path)) == (stranger == "diffusers")
    assert formats.kohya.detect(Opened(tmp_path / "k.safetensors"))
    assert not formats.diffusers.detect(Opened(tmp_path / "k.safetensors"))
