"""PEFT's folders with whole embeddings and heads: trained in full, grown by new tokens, adapted, or changed in some rows."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import loralib as lora
from models import same_bits
from peers import library

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model .*`tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.tensor([[1, 2, 3, 19, 18]])


def gpt2(tied: bool) -> nn.Module:
    """A GPT-2 of one layer; its head is, or is not, tied to its embedding."""
    transformers = library("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, tie_word_embeddings=tied)).eval()


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def theirs(tied: bool, **config) -> nn.Module:
    """PEFT's model, as if trained."""
    peft = library("peft")
    wrapped = peft.get_peft_model(gpt2(tied), peft.LoraConfig(r=2, lora_alpha=6, **config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return wrapped


def read_by_peft(tied: bool, folder: Path) -> nn.Module:
    return library("peft").PeftModel.from_pretrained(gpt2(tied), folder).eval()


def attached(tied: bool, adapter: lora.Adapter) -> nn.Module:
    model = gpt2(tied)
    lora.attach(model, adapter)
    return model


def names_in(folder: Path) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in load_file(folder / TENSORS)}


C_ATTN = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
TOKENS = C_ATTN | {"trainable_token_indices": [19, 3]}
CASES = {
    "embedding adapted": {"target_modules": ["wte"]},
    "embedding and head adapted": {"target_modules": ["wte", "lm_head"]},
    "head adapted, biases": {"target_modules": ["lm_head"], "bias": "all"},
    "tokens": TOKENS,
    "tokens by name": C_ATTN | {"trainable_token_indices": {"wte": [3, 2], "wpe": [1]}},
    "tokens and an adapted head": {"target_modules": ["lm_head"], "trainable_token_indices": [3]},
    "tokens and biases": TOKENS | {"bias": "all"},
}
UNTIED = {
    "embedding in full": C_ATTN | {"modules_to_save": ["wte"]},
    "embedding and head in full": C_ATTN | {"modules_to_save": ["wte", "lm_head"]},
    "tokens, head in full": TOKENS | {"modules_to_save": ["lm_head"]},
    "tokens of both": C_ATTN | {"trainable_token_indices": {"wte": [3, 2], "lm_head": [1]}},
}


@pytest.mark.parametrize("saved", ["auto", True])
@pytest.mark.parametrize(
    ("case", "tied"), [(case, tied) for case in CASES for tied in (True, False)] + [(case, False) for case in UNTIED]
)
def test_what_peft_writes_goes_to_a_model_and_back_to_peft(case, tied, saved, tmp_path):
    model = theirs(tied, **(CASES | UNTIED)[case])
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=saved)
    adapter = lora.load(tmp_path / "theirs")
    assert not torch.allclose(out(model), out(gpt2(tied)), atol=1e-3)
    if not _is_tied_half(adapter, tied):
        assert torch.allclose(out(attached(tied, adapter)), out(model), atol=1e-5)
    lora.save(adapter, tmp_path / "ours")
    assert torch.allclose(out(read_by_peft(tied, tmp_path / "ours")), out(model), atol=1e-5)
    again = lora.load(tmp_path / "ours")
    assert (again.layers, again.rows) == (adapter.layers, adapter.rows)
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(same_bits(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())


def _is_tied_half(adapter: lora.Adapter, tied: bool) -> bool:
    """Whether the adapter holds one of two tied weights, which a model that ties them cannot take."""
    return tied and ("lm_head.weight" in adapter.tensors) != ("transformer.wte.weight" in adapter.tensors)


def grown(model: nn.Module, adapter_for: str) -> lora.Adapter:
    """An adapter that brings a whole new weight for the layer `adapter_for`."""
    weight = model.get_submodule(adapter_for).weight.detach()
    kind = lora.EmbeddingUpdate if adapter_for.endswith("wte") else lora.LoRAUpdate
    A, B = torch.randn(2, 20 if kind is lora.EmbeddingUpdate else 8), torch.randn(8 if kind is lora.EmbeddingUpdate else 20, 2)
    update = kind(A, B, 1)
    return lora.Adapter(lora.LoRAConfig(), {adapter_for: update}, {f"{adapter_for}.weight": weight + 1})


@pytest.mark.parametrize("layer", ["transformer.wte", "lm_head"])
def test_peft_takes_the_whole_weight_of_an_adapted_layer(layer, tmp_path):
    """Which it does under the name that the weight has inside its wrapper only."""
    adapter = grown(gpt2(False), layer)
    lora.save(adapter, tmp_path)
    assert f"{layer}.base_layer.weight" in names_in(tmp_path)
    assert torch.allclose(out(read_by_peft(False, tmp_path)), out(attached(False, adapter)), atol=1e-4)
    assert lora.load(tmp_path).tensors.keys() == adapter.tensors.keys()


def test_peft_takes_the_whole_embedding_beside_rows_of_it(tmp_path):
    model = gpt2(False)
    tensors = {"transformer.wte.weight": model.transformer.wte.weight.detach() + 1}
    rows = {"transformer.wte.weight": lora.TokenRows((19, 2), torch.randn(2, 8))}
    layers = {"transformer.h.0.attn.c_attn": lora.LoRAUpdate(torch.randn(2, 8), torch.randn(24, 2), 1)}
    adapter = lora.Adapter(lora.LoRAConfig(fan_in_fan_out=True), layers, tensors, rows=rows)
    lora.save(adapter, tmp_path)
    assert "transformer.wte.token_adapter.base_layer.weight" in names_in(tmp_path)
    assert torch.allclose(out(read_by_peft(False, tmp_path)), out(attached(False, adapter)), atol=1e-4)
    read = lora.load(tmp_path)
    assert (read.layers, read.rows) == (adapter.layers, adapter.rows)
    assert same_bits(read.tensors["transformer.wte.weight"], tensors["transformer.wte.weight"])


def test_a_tied_head_repeats_the_rows_of_its_embedding_without_numbers_of_its_own(tmp_path):
    config = C_ATTN | {"trainable_token_indices": {"wte": [19, 3]}}
    model = theirs(True, **config)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert {"lm_head.token_adapter.trainable_tokens_delta", "lm_head.token_adapter.base_layer.weight"} <= names_in(tmp_path)
    adapter = lora.load(tmp_path)
    assert adapter.rows["lm_head.weight"] == adapter.rows["transformer.wte.weight"]
    assert torch.allclose(out(attached(True, adapter)), out(model), atol=1e-5)


# --- what contradicts itself, or would be read as something else ----------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    theirs(False, **TOKENS).save_pretrained(tmp_path, save_embedding_layers=True)
    return tmp_path


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


STEM = "base_model.model.transformer."


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (lambda t: t.update({f"{STEM}wte.weight": torch.ones(20, 8)}), "are both 'transformer.wte.weight', and differ"),
        (lambda t: t.update({f"{STEM}wte.token_adapter.token_indices": torch.ones(2)}), "is not their rows"),
        (lambda t: t.update({f"{STEM}wte.token_adapter.base_layer.base_layer.weight": torch.ones(20, 8)}), "is not their rows"),
        (lambda t: t.update({f"{STEM}wpe.token_adapter.trainable_tokens_delta": torch.ones(3, 8)}), "2 indices for values"),
        (lambda t: t.update({"base_model.model.": torch.ones(3)}), "has no PEFT name"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(folder, change, telling):
    edit(folder, change)
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(folder)


@pytest.mark.parametrize("indices", [{"wte": [19, 3], "wpe": [1]}, {"wpe": [19, 3]}])
def test_tokens_without_rows_and_rows_without_tokens_are_refused(folder, indices):
    said = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(said | {"trainable_token_indices": indices}))
    with pytest.raises(
        lora.FormatError, match=r"trainable_token_indices=(\[1\].*holds no token rows|None for 'transformer.wte')"
    ):
        lora.load(folder)


@pytest.mark.parametrize("part", ["base_layer", "modules_to_save", "original_module", "token_adapter", "lora_attention"])
def test_names_to_which_peft_gives_a_meaning_are_refused_and_nothing_is_written(part, tmp_path):
    update = lora.LoRAUpdate(torch.ones(1, 2), torch.ones(3, 1), 1)
    odd, plain = f"a.{part}.q", "a.q"
    for held in (
        {"layers": {odd: update}},
        {"layers": {plain: update}, "tensors": {f"{odd}.weight": torch.ones(1)}},
        {"layers": {plain: update}, "rows": {f"{odd}.weight": lora.TokenRows((1,), torch.ones(1, 2))}},
    ):
        with pytest.raises(lora.FormatError, match=f"{part!r} a meaning of its own. Nothing was written"):
            lora.save(lora.Adapter(lora.LoRAConfig(), **held), tmp_path / "folder")
        assert not list(tmp_path.iterdir())


def test_a_tensor_that_safetensors_cannot_hold_leaves_no_folder(tmp_path):
    update = lora.LoRAUpdate(torch.ones(1, 2), torch.ones(3, 1), 1)
    adapter = lora.Adapter(lora.LoRAConfig(), {"q": update}, {"head.z": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(lora.FormatError, match=r"complex128.*Nothing was written"):
        lora.save(adapter, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [5, 7])
def test_slices_that_do_not_fit_their_mask_are_refused(rows, tmp_path):
    stem = "base_model.model.c_attn"
    A, B = torch.randn(4, 5), torch.randn(rows, 2, 1)
    torch.save({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}, tmp_path / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "enable_lora": [True, False, True]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(lora.FormatError, match="cannot be cut into the slices"):
        lora.load(tmp_path)


def test_mica_leaves_the_base_weights_and_is_read(tmp_path):
    model = theirs(False, **C_ATTN, init_lora_weights="mica")
    model.save_pretrained(tmp_path)
    assert torch.allclose(out(attached(False, lora.load(tmp_path))), out(model), atol=1e-5)
    plain = copy.deepcopy(gpt2(False))
    assert torch.equal(plain.transformer.h[0].attn.c_attn.weight, model.base_model.model.transformer.h[0].attn.c_attn.weight)
