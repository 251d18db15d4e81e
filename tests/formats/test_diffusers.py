"""Adapters of Stable Diffusion: diffusers computes with our files what they say, and we read what it writes and once wrote."""

import json
import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import loralib as lora
from loralib.formats import diffusers
from loralib.formats.diffusion_names import dotted, underscored
from loralib.formats.opened import Opened
from models import bits, same_bits
from peers import data, library
from sample_adapters import adapters

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated and will be removed in v6:FutureWarning",
    "ignore::DeprecationWarning:diffusers",
    "ignore::FutureWarning:diffusers",
)

SIZES = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TARGETS = ["to_q", "to_out.0", "conv1", "proj_in", "ff.net.0.proj", "conv_shortcut", "time_emb_proj"]


def unet(**sizes) -> nn.Module:
    torch.manual_seed(0)
    return library("diffusers").UNet2DConditionModel(**SIZES | sizes).eval()


def image(model: nn.Module) -> Tensor:
    """What the model makes of fixed noise."""
    torch.manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, model.config.cross_attention_dim)
    with torch.no_grad():
        return model(x, 3, encoder_hidden_states=text).sample


def adapter_on(model: nn.Module, seed: int = 0, **config) -> lora.Adapter:
    """A trained adapter for `model`, which it leaves as it is, under the component's name."""
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 5, "target_modules": TARGETS} | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    adapter = lora.extract(model)
    lora.eject(model)
    return adapter.rename({"": "unet"})


def ours(model: nn.Module, adapter: lora.Adapter) -> Tensor:
    with torch.no_grad():
        lora.attach(model, adapter.part("unet"))
        result = image(model)
        lora.eject(model)
    return result


def loaded_by_diffusers(path) -> tuple[dict[str, Tensor], dict, dict]:
    """What diffusers' loader of Stable Diffusion's adapters makes of a file: tensors, alphas, metadata."""
    mixin = library("diffusers.loaders").StableDiffusionLoraLoaderMixin
    config = unet().config
    return mixin.lora_state_dict(path.parent, weight_name=path.name, unet_config=config, return_lora_metadata=True)


def in_diffusers(path) -> nn.Module:
    """A UNet into which diffusers has loaded the file."""
    model = unet()
    state, alphas, metadata = loaded_by_diffusers(path)
    library("diffusers.loaders").StableDiffusionLoraLoaderMixin.load_lora_into_unet(
        state, network_alphas=alphas, unet=model, metadata=metadata
    )
    return model.eval()


# --- between the two libraries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    "config",
    [{}, {"lora_alpha": 2}, {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"conv1": 1}}, {"use_rslora": True}],
    ids=["alpha", "plain", "patterns", "rslora"],
)
def test_diffusers_computes_with_our_files_what_we_compute(format, config, tmp_path):
    model = unet()
    adapter = adapter_on(model, **config)
    path = tmp_path / "a.safetensors"
    lora.save(adapter, path, format=format)
    result = image(in_diffusers(path))
    assert torch.allclose(result, ours(model, adapter), atol=1e-5)
    assert not torch.allclose(result, image(model), atol=1e-3)


@pytest.mark.parametrize("named", ["peft", "diffusers"])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"rank_pattern": {"to_q": 3}}])
def test_we_compute_with_diffusers_files_what_it_computes(named, config, tmp_path):
    peft, mixin = library("peft"), library("diffusers.loaders").StableDiffusionLoraLoaderMixin
    model = unet()
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS, **config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape))
    expected = image(model)
    state = peft.get_peft_model_state_dict(model)
    if named == "diffusers":
        state = library("diffusers.utils").convert_state_dict_to_diffusers(state)
    metadata = library("diffusers.training_utils")._collate_lora_metadata({"unet": model})
    mixin.save_lora_weights(tmp_path, unet_lora_layers=state, **metadata)
    adapter = lora.load(tmp_path)
    assert adapter.source.startswith("diffusers")
    assert torch.allclose(ours(unet(), adapter), expected, atol=1e-5)


def test_a_text_encoder_computes_the_same(tmp_path):
    t = library("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
    torch.manual_seed(0)
    model = t.CLIPTextModel(t.CLIPTextConfig(**sizes, eos_token_id=2)).eval()
    ids = torch.tensor([[1, 5, 2]])
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc1"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
        expected = model(ids).last_hidden_state
    adapter = lora.extract(model).rename({"": "text_encoder"})
    lora.eject(model)
    lora.save(adapter, tmp_path / "a.safetensors", format="diffusers")
    state, alphas, metadata = loaded_by_diffusers(tmp_path / "a.safetensors")
    library("diffusers.loaders").StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=model, prefix="text_encoder", metadata=metadata
    )
    with torch.no_grad():
        assert torch.allclose(model(ids).last_hidden_state, expected, atol=1e-5)


def with_updates(model: nn.Module, targets: list[str], ranks: list[int], alphas: list[float], dora: bool, inputs) -> tuple:
    """Updates of the layers whose names end so, and what the model gives with them merged into its weights by their formula."""
    layers, weights = {}, {}
    for name, module in model.named_modules():
        if any(name.endswith(target) for target in targets):
            i, W = len(layers), module.weight.detach()
            r, (k, d, *kernel) = ranks[i % len(ranks)], W.shape
            A, B = torch.randn(r, d, *kernel), 0.3 * torch.randn(k, r, *[1 for _ in kernel])
            magnitude = 0.5 + torch.rand(k) if dora else None
            kind = lora.ConvolutionUpdate if kernel else lora.LoRAUpdate
            layers[name] = kind(A, B, alphas[i % len(alphas)], magnitude=magnitude)
            changed = W + alphas[i % len(alphas)] / r * torch.einsum("kr,r...->k...", B.flatten(1), A)
            if magnitude is not None:
                changed = (changed.flatten(1) / changed.flatten(1).norm(dim=1, keepdim=True) * magnitude[:, None]).view_as(W)
            weights[f"{name}.weight"] = changed
    with torch.no_grad():
        return layers, torch.func.functional_call(model, weights, *inputs)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(("ranks", "alphas"), [([2], [2]), ([2], [3, 4, 5]), ([2, 3], [2, 3]), ([2, 3], [5])])
@pytest.mark.parametrize("named", ["as they are", "text_model", "in its own text_model"])
def test_text_encoders_compute_what_our_files_say_whatever_transformers_calls_their_layers(
    named, ranks, alphas, dora, tmp_path
):
    """transformers 5 has taken the module text_model out of CLIPTextModel, and left it in the model with a projection."""
    t, mixin = library("transformers"), library("diffusers.loaders").StableDiffusionLoraLoaderMixin
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
    config = t.CLIPTextConfig(**sizes, projection_dim=8, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = (t.CLIPTextModelWithProjection if named == "in its own text_model" else t.CLIPTextModel)(config).eval()
    component = "text_encoder_2" if named == "in its own text_model" else "text_encoder"
    ids = torch.tensor([[1, 5, 7, 2]])
    layers, expected = with_updates(model, ["q_proj", "out_proj", "fc1"], ranks, alphas, dora, [(ids,)])
    prefix = f"{component}.text_model." if named == "text_model" else f"{component}."
    adapter = lora.Adapter(lora.LoRAConfig(), {prefix + name: update for name, update in layers.items()})
    lora.save(adapter, tmp_path / "a.safetensors", format="diffusers")
    assert same_deltas(lora.load(tmp_path / "a.safetensors"), adapter)
    state, alphas_found, metadata = loaded_by_diffusers(tmp_path / "a.safetensors")
    with torch.no_grad():
        before = model(ids).last_hidden_state
        mixin.load_lora_into_text_encoder(
            state, network_alphas=alphas_found, text_encoder=model, prefix=component, metadata=metadata
        )
        assert torch.allclose(model(ids).last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert not torch.allclose(before, expected.last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(("ranks", "alphas"), [([2], [2]), ([2, 3], [2, 3]), ([2, 3], [5])])
def test_a_unet_computes_what_our_file_says(ranks, alphas, dora, tmp_path):
    model = unet()
    torch.manual_seed(1)
    inputs = [(torch.randn(1, 4, 8, 8), 3), {"encoder_hidden_states": torch.randn(1, 3, 6)}]
    layers, expected = with_updates(model, TARGETS, ranks, alphas, dora, inputs)
    adapter = lora.Adapter(lora.LoRAConfig(), {f"unet.{name}": update for name, update in layers.items()})
    lora.save(adapter, tmp_path / "a.safetensors", format="diffusers")
    scale = expected.sample.abs().max()
    assert (image(in_diffusers(tmp_path / "a.safetensors")) - expected.sample).abs().max() < 1e-5 * (1 + scale)
    assert not torch.allclose(image(model), expected.sample, atol=1e-2)


def test_metadata_are_written_where_diffusers_needs_them_and_not_elsewhere(tmp_path):
    """Without them diffusers, some versions of it, takes the ranks of all layers to be the same."""
    plain, other = (lora.LoRAUpdate(torch.ones(r, 3), torch.ones(4, r), r) for r in (2, 3))
    for layers, needed in (
        ({"unet.a": plain, "unet.b": plain, "text_encoder.c": other}, False),
        ({"unet.a": plain, "unet.b": other}, True),
        ({"unet.a": plain, "unet.b": replace(plain, lora_alpha=3)}, False),
        ({"unet.a": plain, "unet.b": replace(other, lora_alpha=1)}, True),
    ):
        lora.save(lora.Adapter(lora.LoRAConfig(), layers), tmp_path / "a.safetensors", format="diffusers")
        with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
            said = file.metadata()
        assert said.pop("format") == "pt"
        said.pop("loralib_scaling", None)
        assert list(said) == ["lora_adapter_metadata"] * needed
        for values in map(json.loads, said.values()):
            assert {key.partition(".")[0] for key in values} == {name.partition(".")[0] for name in layers}


def test_what_a_model_saves_for_itself_alone_is_read_by_its_own_names(tmp_path):
    model = unet()
    model.add_adapter(library("peft").LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS, rank_pattern={"to_q": 3}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape))
    expected = image(model)
    model.save_lora_adapter(tmp_path)
    assert lora.detect(tmp_path) == "diffusers"
    adapter = lora.load(tmp_path)
    assert all(not name.startswith("unet.") for name in adapter.layers)
    again = unet()
    lora.attach(again, adapter)
    assert torch.allclose(image(again), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": 4}, {}, {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"conv1": 1}}, {"use_rslora": True}],
    ids=["power of two", "alpha", "patterns", "rslora"],
)
def test_a_reader_that_looks_neither_at_metadata_nor_for_alphas_computes_the_same(config, dtype, tmp_path):
    """`load_lora_adapter(path)` is one."""
    model = unet()
    adapter = adapter_on(model, **config).to(dtype=dtype)
    lora.save(adapter, tmp_path / "a.safetensors", format="diffusers")
    for name in ("bare.safetensors", "a.safetensors"):
        other = unet()
        if name.startswith("bare"):
            safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "a.safetensors"), tmp_path / name)
        other.load_lora_adapter(tmp_path / name, prefix="unet")
        assert torch.allclose(image(other), ours(model, adapter), atol=1e-5)
    stored = safetensors.torch.load_file(tmp_path / "a.safetensors").values()
    assert len({tensor.dtype for tensor in stored}) <= 2
    assert config != {"lora_alpha": 4} or {tensor.dtype for tensor in stored} == {dtype}


# --- the real file --------------------------------------------------------------------------------------------------


def test_a_published_file_comes_back_byte_for_byte_also_by_way_of_kohya(tmp_path):
    original = data("adapters/sd15-lora-r4/pytorch_lora_weights.safetensors")
    adapter = lora.load(original)
    lora.save(adapter, tmp_path / "folder", format="diffusers")
    assert (tmp_path / "folder" / original.name).read_bytes() == original.read_bytes()
    lora.save(adapter, tmp_path / "k.safetensors", format="kohya")
    assert lora.detect(tmp_path / "k.safetensors") == "kohya"
    lora.save(lora.load(tmp_path / "k.safetensors"), tmp_path / "d.safetensors", format="diffusers")
    assert (tmp_path / "d.safetensors").read_bytes() == original.read_bytes()


# --- round trips ----------------------------------------------------------------------------------------------------


def check_read(format: str, read, layers) -> None:
    """Equal to the bit; in diffusers' files, into whose B the scaling is multiplied, where it is a power of two."""
    assert read.keys() == layers.keys()
    for name, update in layers.items():
        if format != "diffusers" or math.frexp(update.scaling)[0] == 0.5:
            assert read[name] == update
        else:
            assert read[name].scaling == 1
            assert torch.allclose(read[name].B.double(), update.B.double() * update.scaling, rtol=1e-6)


def same_deltas(a: lora.Adapter, b: lora.Adapter) -> bool:
    return a.layers.keys() == b.layers.keys() and all(
        torch.allclose(update.A @ update.A.t(), b.layers[name].A @ b.layers[name].A.t())
        and torch.allclose(update.scaling * update.B, b.layers[name].scaling * b.layers[name].B, rtol=1e-6)
        for name, update in a.layers.items()
    )


NAMES = ["unet.mid_block.attentions.0.proj_in", "unet.conv_in", "text_encoder.text_model.encoder.layers.1.mlp.fc1"]


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@settings(max_examples=60, deadline=None)
@given(drawn=adapters(["linear", "conv"], extra=False))
def test_an_adapter_survives_the_round_trip(format, drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("x") / "a.safetensors"
    layers = dict(zip(NAMES, drawn.layers.values(), strict=False))
    layers = {name: replace(update, use_rslora=False) for name, update in layers.items()}
    lora.save(lora.Adapter(lora.LoRAConfig(), layers), path, format=format)
    read = lora.load(path)
    check_read(format, read.layers, layers)
    again = path.with_name("b.safetensors")
    lora.save(read, again, format=format)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@settings(max_examples=30, deadline=None)
@given(drawn=adapters(["linear", "conv"], extra=False, dora=True))
def test_dora_survives_the_round_trip(format, drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("x") / "a.safetensors"
    layers = {name: replace(u, use_rslora=False) for name, u in zip(NAMES, drawn.layers.values(), strict=False)}
    lora.save(lora.Adapter(lora.LoRAConfig(), layers), path, format=format)
    check_read(format, lora.load(path).layers, layers)


# --- older names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("down", "up", "layer"),
    [
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight", "unet.a.to_q"),
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q.lora_B.weight", "unet.a.to_q"),
        ("unet.a.processor.to_q_lora.down.weight", "unet.a.processor.to_q_lora.up.weight", "unet.a.to_q"),
        ("unet.a.processor.to_out_lora.down.weight", "unet.a.processor.to_out_lora.up.weight", "unet.a.to_out.0"),
        ("unet.a.processor.to_q.lora.down.weight", "unet.a.processor.to_q.lora.up.weight", "unet.a.to_q"),
        (
            "text_encoder.x.q_proj.lora_linear_layer.down.weight",
            "text_encoder.x.q_proj.lora_linear_layer.up.weight",
            "text_encoder.x.q_proj",
        ),
        ("text_encoder.x.to_out_lora.down.weight", "text_encoder.x.to_out_lora.up.weight", "text_encoder.x.out_proj"),
        ("transformer.b.0.attn.to_k.lora_A.weight", "transformer.b.0.attn.to_k.lora_B.weight", "transformer.b.0.attn.to_k"),
    ],
)
def test_names_of_every_age_are_read(down, up, layer, tmp_path):
    A, B = torch.randn(2, 3), torch.randn(4, 2)
    safetensors.torch.save_file({down: A, up: B}, tmp_path / "f.safetensors")
    adapter = lora.load(tmp_path / "f.safetensors")
    assert list(adapter.layers) == [layer]
    assert same_bits(adapter.layers[layer].B, B)
    assert adapter.layers[layer].scaling == 1
    stem = down.rpartition(".lora")[0] if "processor" not in down and "to_out_lora" not in down else None
    if stem:
        safetensors.torch.save_file({down: A, up: B, f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "f.safetensors")
        assert lora.load(tmp_path / "f.safetensors").layers[layer].scaling == 0.5


@pytest.mark.parametrize("prefix", ["", "unet."], ids=["without a component", "with one"])
@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "own.safetensors", "own.pt"])
@pytest.mark.parametrize("down", ["processor.to_{}_lora.{}.weight", "to_{}.lora.{}.weight", "to_{}.lora_{}.weight"])
def test_files_of_every_age_compute_what_diffusers_computes(down, name, prefix, tmp_path):
    """diffusers up to 0.16 saved one model's factors, pickled at first."""
    model, stored = unet(), {}
    torch.manual_seed(1)
    for module, layer in model.named_modules():
        owner, _, leaf = module.rpartition(".")
        if leaf in ("to_q", "to_v"):
            for way, shape in (("down", (2, layer.in_features)), ("up", (layer.out_features, 2))):
                stored[f"{prefix}{owner}.{down.format(leaf[-1], way)}"] = 0.3 * torch.randn(shape)
    save = torch.save if name.endswith(("bin", "pt")) else safetensors.torch.save_file
    save(stored, tmp_path / name)
    assert lora.detect(tmp_path / name) == lora.detect(tmp_path) == "diffusers"
    adapter = lora.load(tmp_path)
    ours = unet()
    lora.attach(ours, adapter.part("unet") if prefix else adapter)
    if "lora_{}" not in down:  # which diffusers reads for some models only
        safetensors.torch.save_file(stored, tmp_path / "p.safetensors")
        model.load_lora_adapter(tmp_path / "p.safetensors", prefix="unet" if prefix else None)
        assert torch.allclose(image(ours), image(model), atol=1e-5)
    assert not torch.allclose(image(ours), image(unet()), atol=1e-3)


def test_a_models_own_names_are_known_by_the_name_of_the_file(tmp_path):
    stored = {"blocks.0.attn.to_k.lora_A.weight": torch.ones(2, 3), "blocks.0.attn.to_k.lora_B.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(stored, tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.load(tmp_path).layers["blocks.0.attn.to_k"].scaling == 1
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "other.safetensors")
    assert lora.detect(tmp_path) == "peft-file"


@pytest.mark.parametrize(
    ("extra", "metadata", "telling"),
    [
        ({"unet.a.to_q.lora_B.bias": torch.ones(4)}, None, "lora_B.bias.*no kind"),
        ({"unet.a.to_q.lora.down.weight": torch.ones(2, 3)}, None, "twice"),
        ({"unet.b.to_q.lora_A.weight": torch.ones(2, 3)}, None, "has no B"),
        ({}, "[", "not JSON"),
        ({}, "[]", "not a JSON object"),
        ({}, json.dumps({"unet.r": 3}), "rank 2, but .* says r=3"),
        ({}, json.dumps({"unet.r": 2, "unet.lora_bias": True}), "lora_bias=True"),
        ({}, json.dumps({"unet.r": "x"}), "r='x'"),
        ({"unet.a.to_q.alpha": torch.tensor(1.0)}, json.dumps({"unet.r": 2}), "has an alpha and"),
        ({"unet.a.to_q.alpha": torch.tensor([1.0, 2.0])}, None, "expected one number"),
        ({"unet.a.to_q.alpha": torch.tensor(float("nan"))}, None, "positive number"),
        ({"unet.a.to_q.lora_magnitude_vector": torch.ones(1, 4)}, None, "magnitude"),
        ({"unet.a.to_q.lora_magnitude_vector": torch.ones(3)}, None, "magnitude"),
        ({"unet.a.to_q.lora_magnitude_vector": torch.ones(())}, None, "magnitude"),
        ({"unet.a.to_q.lora_magnitude_vector": torch.ones(4)}, json.dumps({"unet.r": 2, "unet.use_dora": False}), "magnitudes"),
        ({}, json.dumps({"unet.r": 2, "unet.use_dora": True}), "0 of 1 have magnitudes"),
        (
            {
                "unet.b.lora_A.weight": torch.ones(2, 3),
                "unet.b.lora_B.weight": torch.ones(4, 2),
                "unet.b.lora_magnitude_vector": torch.ones(4),
            },
            None,
            "1 of 2 have magnitudes",
        ),
        ({"unet.a.to_q.lora_A.weight": torch.ones(2, 3, 3, 3)}, None, "with a kernel, or none"),
        ({"unet.a.to_q.lora_A.weight": torch.ones(())}, None, "with a kernel, or none"),
        (
            {"unet.a.to_q.lora_B.weight": torch.ones(()), "unet.a.to_q.lora_magnitude_vector": torch.ones(4)},
            None,
            "with a kernel, or none",
        ),
        ({"unet.a.to_q.lora_A.weight": torch.ones(2, 3).int()}, None, "int32"),
        ({"unet.a.to_q.lora_A.weight": torch.ones(3, 3)}, None, "same r"),
        ({"unet.lora_A.weight": torch.ones(2, 3)}, None, "no kind"),
        ({"unet.a.to_q.lokr_w1": torch.ones(2, 3)}, None, "lokr_w1.*no kind"),
        ({}, json.dumps({"unet.r": 2, "unet.rank_pattern": {"(?i)to_q": 2}}), "regular expression"),
        ({}, json.dumps({"unet.r": 2, "unet.rank_pattern": {"(" * 3000 + ")" * 3000: 2}}), "regular expression"),
        ({}, json.dumps({"unet.r": 2, "unet.rank_pattern": [2]}), "rank_pattern"),
        ({}, json.dumps({"unet.r": 2, "unet.lora_alpha": {"a": [1]}}), "lora_alpha"),
        ({}, json.dumps({"unet.r": 2, "unet.lora_alpha": 10**400}), "must be a positive number"),
        ({}, json.dumps({"unet.r": [[2]]}), "r="),
        ({}, "[" * 100_000, "not JSON"),
        ({}, json.dumps({"unet.r": 2, "unet.enable_lora": [True, False]}), "enable_lora"),
        ({}, json.dumps({"unet.r": 2, "unet.trainable_token_indices": [1]}), "trainable_token_indices"),
        ({}, json.dumps({"unet.r": 2, "unet.init_lora_weights": "pissa"}), "changes the base weights"),
        ({}, json.dumps({"unet.r": 2, "unet.peft_type": "LOHA"}), "only LORA"),
        ({}, json.dumps({"r": 2, "lora_alpha": 3, "unet.r": 2}), r"unet\.r=2"),
    ],
)
def test_what_contradicts_itself_is_refused(extra, metadata, telling, tmp_path):
    tensors = {"unet.a.to_q.lora_A.weight": torch.ones(2, 3), "unet.a.to_q.lora_B.weight": torch.ones(4, 2)} | extra
    said = {"lora_adapter_metadata": metadata} if metadata else None
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors", metadata=said)
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(tmp_path / "f.safetensors")


UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
EMBEDDING = lora.EmbeddingUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
GROUPED = lora.ConvolutionUpdate(torch.ones(2, 3, 1), torch.ones(4, 2, 1), 4, groups=2)


def conv_in(update: lora.LoRAUpdate = UPDATE, **rest) -> lora.Adapter:
    return lora.Adapter(lora.LoRAConfig(), {"unet.conv_in": update}, **rest)


def test_some_layers_of_dora_and_some_not_are_refused(tmp_path):
    """diffusers would give the others magnitudes, too."""
    dora = replace(UPDATE, magnitude=torch.ones(4))
    adapter = lora.Adapter(lora.LoRAConfig(), {"unet.a": UPDATE, "unet.b": dora})
    with pytest.raises(lora.FormatError, match="Some layers of unet are DoRA"):
        lora.save(adapter, tmp_path / "new" / "folder", format="diffusers")
    assert not list(tmp_path.iterdir())
    lora.save(lora.Adapter(lora.LoRAConfig(), {"unet.a": UPDATE, "text_encoder.b": dora}), tmp_path, format="diffusers")
    assert lora.load(tmp_path).layers["text_encoder.b"] == dora


@pytest.mark.parametrize("prefix", ["decoder.layers.0.q", "base_model.model.unet.q", "q", "unetwork.q", "unet"])
def test_other_peoples_names_are_not_taken_for_diffusers(prefix, tmp_path):
    tensors = {f"{prefix}.lora_A.weight": torch.ones(2, 3), f"{prefix}.lora_B.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors")
    assert not diffusers.detect(Opened(tmp_path / "f.safetensors"))


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("adapter", "telling"),
    [
        (lora.Adapter(lora.LoRAConfig(), {"layer": UPDATE}), r"rename\(\{'': 'unet'\}\)"),
        (lora.Adapter(lora.LoRAConfig(), {}), "adapts no layer"),
        (conv_in(tensors={"h.weight": torch.ones(1)}), r"no place for tensors.*h\.weight"),
        (conv_in(metadata={"task_type": "X"}), "no place for metadata: task_type"),
        (conv_in(rows={"e": lora.TokenRows((1,), torch.ones(1, 2))}), "no place for token rows"),
        (conv_in(EMBEDDING), "no place for updates of embeddings"),
        (conv_in(GROUPED), "'unet.conv_in' is for a convolution with groups"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(format, adapter, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        lora.save(adapter, tmp_path / "f.safetensors", format=format)
    assert not list(tmp_path.iterdir())


# --- kohya's --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 30,
            "transformer_layers_per_block": 2,
        },
        {"use_linear_projection": True, "class_embed_type": "timestep"},
    ],
    ids=["sd15", "sdxl", "sd2"],
)
def test_every_layer_of_a_unet_is_told_back_from_underscores(sizes):
    names = [name for name, m in unet(**sizes).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(names) > 50
    assert [dotted(underscored(name)) for name in names] == names


def test_every_layer_of_a_text_encoder_is_told_back_from_underscores():
    t = library("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
    clip = t.CLIPTextModelWithProjection(t.CLIPTextConfig(**sizes))
    t5 = t.T5EncoderModel(
        t.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    )
    for model in (clip, t5):
        names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        names += [f"text_model.{name}" for name in names if model is clip and not name.startswith("text_")]
        assert [dotted(underscored(name)) for name in names] == names


def test_names_of_the_original_code_become_those_that_diffusers_gives_them(tmp_path):
    """Every layer of an XL-shaped UNet under the name that it has in the original code."""
    convert = library("diffusers.loaders.lora_conversion_utils")
    blocks = {"input_blocks_1_0_in_layers_2": (4, 4, 3, 3), "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (4, 4)}
    blocks |= {"input_blocks_3_0_op": (4, 4, 3, 3), "input_blocks_5_1_proj_in": (4, 4), "middle_block_0_emb_layers_1": (4, 4)}
    blocks |= {"middle_block_1_transformer_blocks_1_ff_net_0_proj": (4, 4), "middle_block_2_out_layers_3": (4, 4, 3, 3)}
    blocks |= {"output_blocks_2_2_conv": (4, 4, 3, 3), "output_blocks_0_0_skip_connection": (4, 4, 1, 1)}
    blocks |= {"output_blocks_1_1_transformer_blocks_0_attn2_to_out_0": (4, 4), "output_blocks_8_0_in_layers_2": (4, 4, 3, 3)}
    state = {}
    for name, (_, d, *kernel) in blocks.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, d, *kernel)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(4, 2, *[1 for _ in kernel])
        state[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    safetensors.torch.save_file(state, tmp_path / "f.safetensors")
    config = unet(layers_per_block=2).config
    mapped = convert._maybe_map_sgm_blocks_to_diffusers(dict(state), config)
    theirs, _ = convert._convert_non_diffusers_lora_to_diffusers(mapped)
    found = lora.load(tmp_path / "f.safetensors")
    ours_by_tensor = {bits(update.A): name for name, update in found.layers.items()}
    for key, tensor in theirs.items():
        if key.endswith(".lora.down.weight"):
            assert ours_by_tensor[bits(tensor)] == key.removesuffix(".lora.down.weight")
    assert len(found.layers) == len(blocks)


def test_a_tucker_decomposition_is_multiplied_out(tmp_path):
    mid, down, up = torch.randn(2, 2, 3, 3), torch.randn(2, 5, 1, 1), torch.randn(4, 2, 1, 1)
    state = {
        "lora_unet_conv_in.lora_mid.weight": mid,
        "lora_unet_conv_in.lora_down.weight": down,
        "lora_unet_conv_in.lora_up.weight": up,
    }
    safetensors.torch.save_file(state, tmp_path / "f.safetensors")
    x = torch.randn(1, 5, 6, 6)
    expected = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1), up)
    result = nn.functional.conv2d(x, lora.load(tmp_path / "f.safetensors").delta("unet.conv_in"), padding=1)
    assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "tensor", "telling"),
    [
        ("lora_unet_conv_in.hada_w1_a", torch.ones(2, 2), "method LoHa"),
        ("lora_unet_conv_in.lokr_w1", torch.ones(2, 2), "method LoKr"),
        ("lora_unet_conv_in.diff", torch.ones(2, 2), "full weights"),
        ("lora_unet_conv_in.unheard", torch.ones(2, 2), "no kind that can be"),
        ("lora_unet_surprise.lora_down.weight", torch.ones(2, 2), "lora_unet_surprise.*key map"),
        ("lora_unet_conv_in.dora_scale", torch.ones(1, 3), "scales an input"),
        ("lora_unet_conv_in.alpha", torch.tensor(0.0), "alpha=0"),
        ("lora_unet_conv_in.lora_mid.weight", torch.ones(2, 3, 3, 3), "does not fit"),
        ("something.else", torch.ones(1), "no kind"),
    ],
)
def test_what_is_no_lora_is_refused_by_name(key, tensor, telling, tmp_path):
    state = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 3), "lora_unet_conv_in.lora_up.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(state | {key: tensor}, tmp_path / "f.safetensors")
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(tmp_path / "f.safetensors")


def test_a_name_that_underscores_would_lose_is_refused(tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(), {"unet.my_block.0": UPDATE})
    with pytest.raises(lora.FormatError, match=r"unet\.my_block\.0.*cannot be recovered"):
        lora.save(adapter, tmp_path / "f.safetensors", format="kohya")


def test_two_text_encoders_are_numbered(tmp_path):
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    adapter = lora.Adapter(lora.LoRAConfig(), {f"text_encoder.{name}": UPDATE, f"text_encoder_2.{name}": UPDATE})
    lora.save(adapter, tmp_path / "f.safetensors", format="kohya")
    keys = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert {key.partition("_text")[0] for key in keys} == {"lora_te1", "lora_te2"}
    assert lora.load(tmp_path / "f.safetensors").layers == adapter.layers
