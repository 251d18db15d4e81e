"""The difference of two models: the best low-rank approximation of what changed, and all else in full."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import loralib as lora
from hf import tiny
from kinds import KINDS, every_kind
from loralib.checkpoints.difference import differences
from models import close, injected, mlp, same_bits
from peers import library


def shaken(model: nn.Module, names: str = "", rank: int = 2, seed: int = 0) -> nn.Module:
    """A copy of the model with low-rank changes of its matrices, and of everything else whose name ends with `names`."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and name.endswith("weight"):
                B, A = (torch.randn(shape, generator=generator).double() for shape in ((len(p), rank), (rank, p.shape[1])))
                B[:2] *= "embeddings" not in name  # the row of padding is not trained
                p.add_(0.1 * B @ A)
            elif names and name.endswith(names):
                p.add_(torch.randn(p.shape, generator=generator))
    return model


def applied(base: nn.Module, adapter: lora.Adapter) -> dict[str, Tensor]:
    model = copy.deepcopy(base)
    lora.attach(model, adapter)
    lora.merge(model, keep=False)
    return dict(model.state_dict())


# --- quantized weights ------------------------------------------------------------------------------------------------


def folder_of(path, weight: Tensor, config: str = "{}", **others: Tensor):
    path.mkdir()
    save_file({"proj.weight": weight, "norm.bias": torch.zeros(3), **others}, path / "model.safetensors")
    (path / "config.json").write_text(config)
    return path


@pytest.mark.parametrize("which", ["tuned", "base"])
@pytest.mark.parametrize(
    ("config", "others"),
    [
        ('{"quantization_config": {"quant_method": "fp8"}}', {}),
        ('{"compression_config": {"format": "pack-quantized"}}', {}),
        ("{}", {"proj.weight_scale_inv": torch.ones(1, 1)}),
        ("{}", {"proj.qweight": torch.ones(1, 4, dtype=torch.int32)}),
    ],
)
def test_a_quantized_folder_is_refused_as_merge_refuses_it(tmp_path, which, config, others):
    quantized = folder_of(tmp_path / "quantized", torch.randn(3, 4).to(torch.float8_e4m3fn), config, **others)
    plain = folder_of(tmp_path / "plain", torch.randn(3, 4))
    pair = (quantized, plain) if which == "tuned" else (plain, quantized)
    with pytest.raises(lora.FormatError, match="quantized is quantized; give the weights that it was made from"):
        lora.difference(*pair, r=1)
    with pytest.raises(lora.FormatError, match="is quantized"):
        lora.merge_checkpoint(quantized, lora.extract(injected(mlp(4, 3))), tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("which", ["tuned", "base", "both"])
def test_a_quantized_weight_is_refused_where_nothing_else_says_that_it_is_one(tmp_path, dtype, which):
    W = {name: torch.randn(3, 4).mul(5).to(dtype if which in (name, "both") else torch.float32) for name in ("tuned", "base")}
    folders = [folder_of(tmp_path / name, W[name]) for name in ("tuned", "base")]
    with pytest.raises(lora.AlgebraError, match=r"'proj.weight' is stored as torch\..*compare the models that were quantized"):
        lora.difference(*folders, r=1)


def test_a_quantized_weight_that_did_not_change_is_no_hindrance(tmp_path):
    W = torch.randn(3, 4).to(torch.float8_e4m3fn)
    folders = [folder_of(tmp_path / str(i), W, **{"other.weight": i * torch.ones(2, 2)}) for i in range(2)]
    assert list(lora.difference(folders[1], folders[0], r=1).layers) == ["other"]


# --- exact where the change has the rank ------------------------------------------------------------------------------


PLAIN_KINDS = [
    kind for kind in every_kind if not kind.endswith("of 0.1") and not kind.startswith("merged")
]  # others become plain


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_an_update_of_any_kind_of_layer_is_found_again(kind):
    plain, model = KINDS[kind].build()
    adapter = lora.extract(model)
    tuned = copy.deepcopy(plain)
    lora.attach(tuned, adapter)
    lora.merge(tuned, keep=False)
    found = lora.difference(tuned, plain, r=4)
    assert found.layers.keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        assert type(found.layers[name]) is type(update)
    result = applied(plain, found)
    assert all(close(result[name], t, factor=64) for name, t in tuned.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 4), seed=st.integers(0, 20), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_a_change_of_the_rank_asked_for_is_found_up_to_the_rounding_of_the_weights(rank, seed, dtype):
    base = mlp(9, 7, 5).to(dtype)
    tuned = shaken(copy.deepcopy(base).double(), rank=rank, seed=seed).to(dtype)
    result = applied(base, lora.difference(tuned, base, r=rank, dtype=torch.float64))
    assert all(close(result[name], t, factor=8) for name, t in tuned.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(r=st.integers(1, 6), seed=st.integers(0, 20))
def test_it_is_the_best_approximation_of_its_rank(r, seed):
    torch.manual_seed(seed)
    base, tuned = mlp(9, 7), mlp(9, 7)
    exact = (tuned[0].weight - base[0].weight).detach().double()
    S = torch.linalg.svdvals(exact)
    found = lora.difference(tuned, base, r=r, dtype=torch.float64).layers["0"]
    assert found.r == r
    assert torch.isclose((found.delta() - exact).norm(), S[r:].norm(), atol=1e-9)


def test_energy_chooses_the_smallest_rank_and_the_fraction_is_reported():
    torch.manual_seed(0)
    base, tuned = mlp(9, 7), mlp(9, 7)
    S = torch.linalg.svdvals((tuned[0].weight - base[0].weight).detach().double()).square()
    [item] = [item for item in differences(tuned, base, energy=0.8) if item.update is not None]
    r = item.update.r
    assert S[:r].sum() >= 0.8 * S.sum() > S[: r - 1].sum()
    assert abs(item.kept - float(S[:r].sum() / S.sum())) < 1e-6
    assert abs(item.norm - float(S.sum().sqrt())) < 1e-6
    assert lora.difference(tuned, base, r=2, energy=0.8).layers["0"].r == 2


def test_a_large_matrix_is_approximated_as_well_as_by_a_whole_decomposition():
    torch.manual_seed(0)
    base, tuned = nn.Sequential(nn.Linear(900, 800)), nn.Sequential(nn.Linear(900, 800))
    with torch.no_grad():
        tuned[0].weight.copy_(base[0].weight + torch.randn(800, 6) @ torch.randn(6, 900) + 0.01 * torch.randn(800, 900))
    exact = (tuned[0].weight - base[0].weight).detach().double()
    S = torch.linalg.svdvals(exact)
    found = lora.difference(tuned, base, r=6).layers["0"]
    assert (found.delta() - exact).norm() < 1.001 * S[6:].norm()
    assert lora.difference(tuned, base, energy=0.99).layers["0"].r == 6


# --- all else -------------------------------------------------------------------------------------------------------


def test_what_is_no_matrix_comes_in_full_and_what_is_equal_not_at_all():
    base = tiny("Bert")
    tuned = shaken(base, "LayerNorm.weight")
    with torch.no_grad():
        tuned.bert.embeddings.word_embeddings.weight.copy_(base.bert.embeddings.word_embeddings.weight)
        tuned.bert.encoder.layer[0].attention.self.query.bias.add_(1)
    adapter = lora.difference(tuned, base, r=2)
    assert "bert.embeddings.word_embeddings" not in adapter.layers
    assert same_bits(adapter.tensors["bert.embeddings.LayerNorm.weight"], tuned.bert.embeddings.LayerNorm.weight.detach())
    assert adapter.config.bias == "lora_only"
    assert "bert.embeddings.LayerNorm" in adapter.config.modules_to_save
    result = applied(base, adapter)
    assert all(close(result[name], t, factor=64) for name, t in tuned.state_dict().items())


def gpt2() -> nn.Module:
    t = library("transformers")
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 17, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 3]])).logits


def test_a_tied_weight_gets_an_update_in_each_layer_that_has_it(tmp_path):
    base = gpt2()
    tuned = shaken(base)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    found = lora.difference(tuned, base, r=2)
    assert {"transformer.wte", "lm_head"} <= found.layers.keys()
    assert torch.allclose(found.delta("transformer.wte"), found.delta("lm_head"), atol=1e-6)
    assert lora.difference(tmp_path / "tuned", tmp_path / "base", r=2).layers == found.layers
    attached = copy.deepcopy(base)
    lora.attach(attached, found)
    assert torch.allclose(logits(attached), logits(tuned), atol=1e-5)
    lora.merge_checkpoint(tmp_path / "base", found, tmp_path / "out", tied="untie")
    assert torch.allclose(logits(type(base).from_pretrained(tmp_path / "out")), logits(tuned), atol=1e-5)


def test_layers_can_be_chosen_and_the_rest_comes_in_full():
    base = mlp(4, 5, 3)
    tuned = shaken(base)
    adapter = lora.difference(tuned, base, r=2, target_modules=["0"])
    assert list(adapter.layers) == ["0"]
    assert same_bits(adapter.tensors["2.weight"], tuned[2].weight.detach())
    assert list(lora.difference(tuned, base, r=2, exclude_modules=["0"]).layers) == ["2"]
    with pytest.raises(lora.TargetError, match="q_proj"):
        lora.difference(tuned, base, r=2, target_modules=["q_proj"])


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta"])
def test_folders_give_what_models_give(family, tmp_path):
    base = tiny(family)
    tuned = shaken(base, "bias")
    base.save_pretrained(tmp_path / "base", max_shard_size="5KB")
    tuned.save_pretrained(tmp_path / "tuned")
    found = lora.difference(tmp_path / "tuned", tmp_path / "base", r=2)
    expected = lora.difference(tuned, base, r=2)
    assert found.layers == expected.layers
    assert found.tensors.keys() == expected.tensors.keys()
    lora.save(found, tmp_path / "adapter")
    again = lora.load(tmp_path / "adapter")
    result = applied(base, again)
    assert all(close(result[name], t, factor=64) for name, t in tuned.state_dict().items())


def test_the_layout_of_gpt2_comes_from_its_configuration(tmp_path):
    base = gpt2().transformer
    tuned = shaken(base)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    found = lora.difference(tmp_path / "tuned", tmp_path / "base", r=2)
    assert found.layers == lora.difference(tuned, base, r=2).layers
    assert found.layers["h.0.attn.c_attn"].A.shape == (2, 8)
    assert isinstance(found.layers["wte"], lora.EmbeddingUpdate)
    result = applied(base, found)
    assert all(close(result[name], t, factor=64) for name, t in tuned.state_dict().items())


def test_a_model_and_a_folder_can_be_compared(tmp_path):
    base = tiny("Bert")
    tuned = shaken(base)
    base.save_pretrained(tmp_path / "base")
    assert lora.difference(tuned, tmp_path / "base", r=2).layers == lora.difference(tuned, base, r=2).layers


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_a_model_with_a_head_is_compared_with_its_bare_base(family, tmp_path):
    whole = tiny(family)
    tuned = shaken(whole, "bias")
    whole.base_model.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    found = lora.difference(tmp_path / "tuned", tmp_path / "base", r=2)
    assert {name for name in found.tensors if name.startswith("classifier")} == {"classifier.weight", "classifier.bias"}
    result = applied(whole, found)
    assert all(close(result[name], t, factor=64) for name, t in tuned.state_dict().items())
    back = lora.difference(tuned.base_model, whole, r=2)
    assert len(back.layers) == sum(not name.startswith(("classifier", "pre_classifier")) for name in found.layers)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused():
    base = mlp(4, 5)
    with pytest.raises(lora.AlgebraError, match="do not differ"):
        lora.difference(base, copy.deepcopy(base), r=2)
    with pytest.raises(lora.AlgebraError, match=r"other shapes: 0\.weight"):
        lora.difference(mlp(4, 6), base, r=2)
    with pytest.raises(lora.AlgebraError, match="has only 0 of the 2 tensors"):
        lora.difference(nn.ModuleDict({"x": nn.Linear(2, 2)}), base, r=2)
    with pytest.raises(lora.ConfigError, match="needs a rank r"):
        lora.difference(base, base)
    with pytest.raises(lora.ConfigError, match="energy=2"):
        lora.difference(base, base, energy=2)
    adapted = mlp(4, 5)
    lora.inject(adapted, lora.LoRAConfig(r=2))
    with pytest.raises(lora.LayerError, match="carries an update"):
        lora.difference(adapted, base, r=2)
    spoilt = copy.deepcopy(base)
    with torch.no_grad():
        spoilt[0].weight[0, 0] = float("nan")
    with pytest.raises(lora.AlgebraError, match="not finite"):
        lora.difference(spoilt, base, r=2)
    biased = copy.deepcopy(base)
    with torch.no_grad():
        biased[0].bias.add_(1)
    with pytest.raises(lora.AlgebraError, match=r"only in 0\.bias"):
        lora.difference(biased, base, r=2)


def test_models_that_share_a_few_names_by_chance_are_not_compared():
    """Otherwise all but those would be taken over in full, as if they were new heads."""
    base = nn.ModuleDict({"head": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)})
    other = nn.ModuleDict({"head": nn.Linear(2, 2), "layers": nn.Linear(2, 2)})
    with pytest.raises(lora.AlgebraError, match=r"has only 2 of the 4 tensors.*'layers\.weight'"):
        lora.difference(other, base, r=1)
