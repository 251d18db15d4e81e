"""Merging file to file gives the very bits that merging in a model gives, and files that transformers loads."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import loralib as lora
from checkpoints.conftest import simple
from hf import tiny
from kinds import KINDS, every_kind
from loralib.adapters.config_of import described
from models import bits, close, randomize, same_bits
from peers import library
from sample_adapters import tensor, updates

IDS = torch.tensor([[1, 5, 3, 2]])


def saved(model: nn.Module, folder: Path) -> Path:
    """The model's weights in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in model.state_dict().items()},
        folder / "model.safetensors",
    )
    return folder


def in_memory(model: nn.Module, adapter: lora.Adapter) -> dict[str, Tensor]:
    """What attaching and merging for good makes of the weights."""
    model = copy.deepcopy(model)
    lora.attach(model, adapter)
    lora.merge(model, keep=False)
    return dict(model.state_dict())


def same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(same_bits(found[name], t) for name, t in expected.items())


# --- the same bits as in memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", every_kind)
def test_every_kind_of_layer_becomes_what_it_becomes_in_memory(kind, dtype, tmp_path):
    plain, model = KINDS[kind].build()
    adapter = without_padding(plain, lora.extract(model)).to(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    plain = plain.to(dtype)
    report = lora.merge_checkpoint(saved(plain, tmp_path / "base"), adapter, tmp_path / "out")
    assert report.layers == len(adapter.layers)
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), in_memory(plain, adapter)
    assert same_tensors(found, expected)


def without_padding(plain: nn.Module, adapter: lora.Adapter) -> lora.Adapter:
    """As training leaves it: the column of A that belongs to an embedding's padding is zero."""
    padding = getattr(plain.layer, "padding_idx", None)
    update = adapter.layers.get("layer")
    if padding is None or update is None:
        return adapter
    A = update.A.clone()
    A[:, padding] = 0
    return adapter.with_layers({"layer": replace(update, A=A)})


@pytest.mark.parametrize("threads", [1, 3])
def test_a_weight_of_many_blocks_has_the_same_bits(threads, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 200), nn.Linear(200, 33)).bfloat16()
    adapter = adapter_on(model, ["0", "1"])
    whole = in_memory(model, adapter)
    monkeypatch.setattr("loralib.ops.autograd.merging.ELEMENTS", 96 * 7)
    lora.merge_checkpoint(saved(model, tmp_path / "base"), adapter, tmp_path / "out", threads=threads)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert same_tensors(found, in_memory(model, adapter))
    assert all(close(found[name], t) for name, t in whole.items())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_dora_becomes_its_effective_weight(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dora")
    update = data.draw(updates(["linear", "embedding", "conv", "transposed"], dora=True))
    W = tensor(replace(update, magnitude=None).delta().shape, torch.float32, 3)
    transposed = isinstance(update, lora.ConvolutionUpdate) and update.transposed
    folder.joinpath("base").mkdir()
    save_file({"layer.weight": W.transpose(0, 1).contiguous() if transposed else W}, folder / "base" / "model.safetensors")
    adapter = lora.Adapter(described(lora.LoRAConfig(), {"layer": update}), {"layer": update})
    lora.merge_checkpoint(folder / "base", adapter, folder / "out")
    found = load_file(folder / "out" / "model.safetensors")["layer.weight"]
    assert close(found.transpose(0, 1) if transposed else found, update.effective_weight(W), factor=4)


def test_what_is_not_adapted_is_copied_byte_for_byte(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(7).bfloat16(), "d": torch.zeros(0, 3)}
    tensors |= {"e": torch.tensor(2.5), "f": torch.randn(4).to(torch.float8_e4m3fn), "g": torch.tensor([True, False])}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt", "author": "someone"})
    (base / "config.json").write_text('{"a": 1}')
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"another copy of the weights")
    update = lora.LoRAUpdate(torch.randn(2, 4), torch.randn(3, 2), 4)
    adapter = lora.Adapter(described(lora.LoRAConfig(), {"a": update}), {"a": update})
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out")
    names = [".loralib.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bits(found[name]) == bits(tensors[name]) for name in "bcdefg")
    assert close(found["a.weight"], update.effective_weight(tensors["a.weight"]))
    assert (tmp_path / "out" / "config.json").read_text() == '{"a": 1}'
    assert report.tensors == 1


# --- models of transformers -----------------------------------------------------------------------------------------


def transformers():
    return library("transformers")


def gpt2(**config):
    t = transformers()
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 17, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes | config)).eval()


def llama(**config):
    t = transformers()
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 17}
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes | {"tie_word_embeddings": True} | config)).eval()


def adapter_on(model: nn.Module, targets: list[str], **config) -> lora.Adapter:
    """An adapter with random factors for a copy of `model`."""
    adapted = copy.deepcopy(model)
    lora.inject(adapted, lora.LoRAConfig(r=2, target_modules=targets, **config))
    return lora.extract(randomize(adapted))


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def check_loads_as_merged(folder: Path, model: nn.Module, adapter: lora.Adapter) -> nn.Module:
    """What transformers loads from `folder` has the bits of `model` with `adapter` merged in, and computes the same.

    The logits agree up to rounding only: a loaded weight may be aligned differently in memory, and products depend on that.
    """
    loaded = type(model).from_pretrained(folder)
    merged = copy.deepcopy(model)
    lora.attach(merged, adapter)
    lora.merge(merged, keep=False)
    assert same_tensors(dict(loaded.state_dict()), dict(merged.state_dict()))
    assert close(logits_of(loaded), logits_of(merged), factor=8)
    return loaded


@pytest.mark.parametrize("shards", ["10GB", "2KB"])
@pytest.mark.parametrize(
    ("build", "targets"),
    [(gpt2, ["c_attn", "c_proj"]), (llama, ["q_proj", "down_proj"]), (lambda: tiny("Bert"), ["query", "value"])],
)
def test_transformers_loads_the_result_and_computes_the_same(build, targets, shards, tmp_path):
    model = build()
    adapter = adapter_on(model, targets)
    model.save_pretrained(tmp_path / "base", max_shard_size=shards)
    report = lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert (report.files > 1) == (shards == "2KB")
    merged = check_loads_as_merged(tmp_path / "out", model, adapter)
    assert not close(logits_of(merged), logits_of(model), factor=1e3)


@pytest.mark.parametrize("targets", [["wte"], ["lm_head"], ["wte", "lm_head"]])
def test_a_tied_weight_is_refused_or_untied(targets, tmp_path):
    model = gpt2()
    free = gpt2(tie_word_embeddings=False)
    free.load_state_dict(model.state_dict())
    adapter = adapter_on(free, targets)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(lora.FormatError, match=r"ties.*--tied untie"):
        lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    report = lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", tied="untie")
    assert report.untied
    check_loads_as_merged(tmp_path / "out", free, adapter)


def test_tied_weights_of_a_llama_and_of_a_t5(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "base")
    free = llama(tie_word_embeddings=False)
    free.load_state_dict(model.state_dict())
    adapter = adapter_on(free, ["lm_head"])
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", tied="untie")
    check_loads_as_merged(tmp_path / "out", free, adapter)


def test_rows_of_tokens_go_to_the_embedding_and_stay_tied(tmp_path):
    model = gpt2()
    adapter = adapter_on(model, ["c_attn"])
    rows = {"transformer.wte.weight": lora.TokenRows((3, 16), torch.randn(2, 8))}
    adapter = replace(adapter, rows=rows)
    model.save_pretrained(tmp_path / "base")
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    check_loads_as_merged(tmp_path / "out", model, adapter)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta"])
def test_a_head_is_added_to_the_files_of_a_base_model(family, tmp_path):
    """The base model's files lack the head and the prefix that the whole model has before its names."""
    model = tiny(family)
    heads = {"Bert": ["classifier"], "DistilBert": ["pre_classifier", "classifier"], "Roberta": ["classifier"]}[family]
    targets = ["q_lin", "v_lin"] if family == "DistilBert" else ["query", "value"]
    adapter = adapter_on(model, targets, modules_to_save=heads)
    model.base_model.save_pretrained(tmp_path / "base")
    report = lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert set(report.added) == set(adapter.tensors)
    merged = type(model).from_pretrained(tmp_path / "out")
    expected = in_memory(model, adapter)
    assert all(same_bits(merged.state_dict()[name], t) for name, t in expected.items())


def test_files_with_a_prefix_take_the_adapter_of_a_model_without_one(tmp_path):
    model = gpt2()
    adapter = adapter_on(model.transformer, ["c_attn"])
    assert next(iter(adapter.layers)).startswith("h.0")
    model.save_pretrained(tmp_path / "base")
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out")
    assert same_tensors(dict(merged.transformer.state_dict()), in_memory(model.transformer, adapter))


def test_pickled_files_become_safetensors(tmp_path):
    model = gpt2()
    adapter = adapter_on(model, ["c_attn"])
    model.save_pretrained(tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "base" / "pytorch_model.bin")
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out")
    assert all(same_bits(merged.state_dict()[name], t) for name, t in in_memory(model, adapter).items())


def test_an_adapter_of_peft_computes_what_peft_merges(tmp_path):
    peft = library("peft")
    model = llama()
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], use_dora=True))
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = logits_of(wrapped)
    lora.merge_checkpoint(tmp_path / "base", lora.load(tmp_path / "adapter"), tmp_path / "out")
    merged = type(wrapped.get_base_model()).from_pretrained(tmp_path / "out")
    assert torch.allclose(logits_of(merged), expected, atol=1e-5)


# --- what is refused, and what is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "config", "telling"),
    [
        (lambda a: a.rename({"proj": "pro"}), {}, r"lacks 1 of the 1 layers.*nearest there: .*proj"),
        (lambda a: replace(a, tensors={"x.proj.weight": torch.ones(2, 2)}), {}, r"shape \(2, 2\) in the adapter"),
        (lambda a: replace(a, rows={"proj.weight": lora.TokenRows((9,), torch.ones(1, 4))}), {}, "resize"),
        (lambda a: replace(a, rows={"emb.weight": lora.TokenRows((9,), torch.ones(1, 4))}), {}, r"has no 'x\.emb\.weight'"),
        (lambda a: a, {"quantization_config": {"bits": 4}}, "is quantized"),
        (
            lambda a: a.with_layers({"proj": lora.LoRAUpdate(torch.ones(1, 5), torch.ones(3, 1), 1)}),
            {},
            r"\(3, 5\) for a weight of \(3, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(change, config, telling, tmp_path):
    base, adapter = simple(tmp_path, **config)
    with pytest.raises(lora.FormatError, match=telling):
        lora.merge_checkpoint(base, change(adapter), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_adapter_that_fits_two_places_is_refused(tmp_path):
    base, adapter = simple(tmp_path)
    save_file({f"{x}.proj.weight": torch.randn(3, 4) for x in "xy"}, base / "model.safetensors")
    with pytest.raises(lora.FormatError, match=r"2 times, in 'x\.', 'y\.'"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out")


def test_weights_of_integers_are_refused(tmp_path):
    base, adapter = simple(tmp_path)
    save_file({"proj.weight": torch.zeros(3, 4, dtype=torch.int8)}, base / "model.safetensors")
    with pytest.raises(lora.FormatError, match="stored as I8"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out")


def test_only_what_a_merge_wrote_is_replaced_and_only_by_force(tmp_path):
    base, adapter = simple(tmp_path)
    out = tmp_path / "out"
    lora.merge_checkpoint(base, adapter, out)
    first = load_file(out / "model.safetensors")
    with pytest.raises(lora.FormatError, match="exists"):
        lora.merge_checkpoint(base, adapter, out)
    lora.merge_checkpoint(base, 0 * adapter, out, overwrite=True)
    assert not same_tensors(load_file(out / "model.safetensors"), first)
    (out / "inner").mkdir()
    (out / "inner" / "thesis.tex").write_text("x")
    with pytest.raises(lora.FormatError, match=r"holds what loralib merge did not write \(inner/thesis.tex\)"):
        lora.merge_checkpoint(base, adapter, out, overwrite=True)
    assert (out / "inner" / "thesis.tex").read_text() == "x"
    with pytest.raises(lora.FormatError, match="is or holds the base"):
        lora.merge_checkpoint(base, adapter, base, overwrite=True)


@pytest.mark.parametrize("there", ["a file", "a folder without a mark", "the mark of others"])
def test_what_no_merge_wrote_is_never_replaced(there, tmp_path):
    base, adapter = simple(tmp_path)
    out = tmp_path / "out"
    if there == "a file":
        out.write_text("data")
    else:
        out.mkdir()
        (out / "model.safetensors").write_text("data")
        if there == "the mark of others":
            (out / ".loralib.json").write_text('{"written_by": "run", "files": ["model.safetensors"]}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(lora.FormatError, match=r"is a file|has no mark .* so it is not replaced"):
        lora.merge_checkpoint(base, adapter, out, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_mark_of_a_base_that_was_merged_is_not_the_results(tmp_path):
    base, adapter = simple(tmp_path)
    lora.merge_checkpoint(base, adapter, tmp_path / "one")
    lora.merge_checkpoint(tmp_path / "one", adapter, tmp_path / "two")
    lora.merge_checkpoint(base, adapter, tmp_path / "two", overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_when_it_breaks_off(error, tmp_path, monkeypatch):
    base, adapter = simple(tmp_path)

    def fails(*args):
        raise error

    monkeypatch.setattr(os, "pwrite", fails)
    before = torch.get_num_threads()
    with pytest.raises(type(error)):
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert torch.get_num_threads() == before


def test_progress_ends_with_all_bytes(tmp_path):
    base, adapter = simple(tmp_path)
    seen: list[tuple[int, int]] = []
    lora.merge_checkpoint(base, adapter, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (48, 48)


# --- found in review ------------------------------------------------------------------------------------------------


def without_prefix(folder: Path, prefix: str) -> None:
    """Take a prefix off the names in a folder's weights, as the files of a base model have them."""
    file = folder / "model.safetensors"
    save_file({name.removeprefix(prefix): t.clone() for name, t in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("targets", [["c_attn", "lm_head"], ["wte"]])
def test_a_weight_is_untied_in_the_files_of_a_base_model_too(targets, tmp_path):
    model, free = gpt2(), gpt2(tie_word_embeddings=False)
    free.load_state_dict(model.state_dict())
    adapter = adapter_on(free, targets)
    model.save_pretrained(tmp_path / "base")
    without_prefix(tmp_path / "base", "transformer.")
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", tied="untie")
    check_loads_as_merged(tmp_path / "out", free, adapter)


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight"])
def test_the_bases_own_tied_weight_is_as_if_the_adapter_had_not_repeated_it(name, tmp_path):
    model = gpt2()
    bare = adapter_on(model, ["c_attn"])
    with_copy = replace(bare, tensors={name: model.lm_head.weight.detach().half().float()})
    model.lm_head.weight.data.copy_(with_copy.tensors[name])
    model.save_pretrained(tmp_path / "base")
    for adapter, out in ((bare, "a"), (with_copy, "b"), (replace(bare, tensors={name: with_copy.tensors[name].half()}), "c")):
        assert not lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / out).untied
    expected = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert all((tmp_path / out / "model.safetensors").read_bytes() == expected for out in ("b", "c"))


@pytest.mark.parametrize("names", [["lm_head.weight"], ["transformer.wte.weight"]])
def test_a_tied_weight_that_was_trained_in_full_is_refused_or_untied(names, tmp_path):
    model, free = gpt2(), gpt2(tie_word_embeddings=False)
    adapter = replace(adapter_on(model, ["c_attn"]), tensors={name: torch.randn(17, 8) for name in names})
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(lora.FormatError, match=r"ties.*--tied untie"):
        lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", tied="untie").untied
    free.load_state_dict(model.state_dict())
    check_loads_as_merged(tmp_path / "out", free, adapter)


def test_a_tied_weight_that_was_trained_as_one_stays_tied(tmp_path):
    model, trained = gpt2(), torch.randn(17, 8)
    tensors = {"transformer.wte.weight": trained, "lm_head.weight": trained.clone()}
    adapter = replace(adapter_on(model, ["c_attn"]), tensors=tensors)
    model.save_pretrained(tmp_path / "base")
    assert not lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out").untied
    merged = type(model).from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert same_bits(merged.lm_head.weight.detach(), trained)


def test_force_replaces_a_models_folder_and_nothing_larger(tmp_path):
    base, adapter = simple(tmp_path)
    before = load_file(base / "model.safetensors")
    with pytest.raises(lora.FormatError, match="is or holds the base"):
        lora.merge_checkpoint(base, adapter, tmp_path, overwrite=True)
    assert same_tensors(load_file(base / "model.safetensors"), before)


def test_what_was_there_is_put_back_when_the_result_cannot_take_its_place(tmp_path, monkeypatch):
    base, adapter = simple(tmp_path)
    lora.merge_checkpoint(base, adapter, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    replace_path = Path.replace

    def fails(self, target):
        if self.is_dir() and self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return replace_path(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        lora.merge_checkpoint(base, 0 * adapter, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_folders_made_for_the_result_are_taken_away_when_it_breaks_off(tmp_path, monkeypatch):
    base, adapter = simple(tmp_path)

    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="No space"):
        lora.merge_checkpoint(base, adapter, tmp_path / "new" / "place" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_pickled_files_of_diffusers_keep_their_name(tmp_path):
    base, adapter = simple(tmp_path)
    torch.save(load_file(base / "model.safetensors"), base / "diffusion_pytorch_model.bin")
    (base / "model.safetensors").unlink()
    lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[1:] == ["diffusion_pytorch_model.safetensors"]


def test_dora_of_a_layer_that_stores_its_weight_as_in_out(tmp_path):
    W, update = torch.randn(6, 4), lora.LoRAUpdate(torch.randn(2, 6), torch.randn(4, 2), 3, magnitude=torch.rand(4))
    save_file({"c_attn.weight": W}, tmp_path / "model.safetensors")
    adapter = lora.Adapter(described(lora.LoRAConfig(fan_in_fan_out=True), {"c_attn": update}), {"c_attn": update})
    lora.merge_checkpoint(tmp_path / "model.safetensors", adapter, tmp_path / "out")
    V = W.t() + 1.5 * update.B @ update.A
    expected = (update.magnitude[:, None] * V / V.norm(dim=1, keepdim=True)).t()
    assert torch.allclose(load_file(tmp_path / "out" / "model.safetensors")["c_attn.weight"], expected, atol=1e-6)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a factor", "a magnitude", "a head", "a row"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_that_is_not_finite_is_refused_and_nothing_is_written(what, value, tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"proj.weight": torch.ones(6, 8), "head.weight": torch.ones(2, 6)}, tmp_path / "base" / "model.safetensors")
    A, bad = torch.ones(1, 8), torch.full((6,), value)
    updates, tensors, rows = {"proj": lora.LoRAUpdate(A, torch.ones(6, 1), 1)}, {}, {}
    if what == "a factor":
        updates = {"proj": lora.LoRAUpdate(A, bad.unsqueeze(1), 1)}
    elif what == "a magnitude":
        updates = {"proj": lora.LoRAUpdate(A, torch.ones(6, 1), 1, magnitude=bad)}
    elif what == "a head":
        tensors = {"head.weight": torch.full((2, 6), value)}
    else:
        rows = {"head.weight": lora.TokenRows((1,), bad.unsqueeze(0))}
    adapter = lora.Adapter(lora.LoRAConfig(r=1), updates, tensors, rows=rows)
    with pytest.raises(lora.FormatError, match=r"not finite, of .*Nothing was written"):
        lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("trained_in_full", [False, True])
def test_what_float16_cannot_hold_is_refused_and_nothing_is_written(trained_in_full, tmp_path):
    (tmp_path / "base").mkdir()
    W = torch.full((6, 8), 60000.0, dtype=torch.float16)
    save_file({"proj.weight": W, "head.weight": W.clone()}, tmp_path / "base" / "model.safetensors")
    updates = {"proj": lora.LoRAUpdate(torch.ones(1, 8), torch.full((6, 1), 1.0 if trained_in_full else 1e4), 1)}
    tensors = {"head.weight": torch.full((6, 8), 1e5)} if trained_in_full else {}
    adapter = lora.Adapter(lora.LoRAConfig(r=1), updates, tensors)
    with pytest.raises(lora.FormatError, match=r"beyond 65504, .*Nothing was written"):
        lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
