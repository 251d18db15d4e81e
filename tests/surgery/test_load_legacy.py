"""Checkpoints of loralib 0.1, of every kind it wrote, land in a model and mean what they meant."""

import copy
import os

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from hf import tiny
from models import close, expect_refusal, mlp, randomize, same_bits
from peers import data, library, loralib_0_1

MODES = {"train": True, "eval": False}


class Blocks(nn.Module):
    """A model of each of 0.1's layers, built with the layers of `lib`."""

    def __init__(self, lib, r: int = 2):
        super().__init__()
        self.embed = lib.Embedding(11, 8, r=r, lora_alpha=3)
        self.qkv = lib.MergedLinear(8, 24, r=r, lora_alpha=3, enable_lora=[True, False, True])
        self.proj = lib.Linear(24, 8, r=r, lora_alpha=3, fan_in_fan_out=True)
        self.conv = lib.Conv2d(1, 2, 3, r=r, lora_alpha=3)
        self.head = nn.Linear(12 * 2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.proj(self.qkv(self.embed(ids)))  # (n, 4, 8)
        logits: Tensor = self.head(self.conv(x.unsqueeze(1)).flatten(1))
        return logits


IDS = torch.tensor([[1, 2, 3, 4], [10, 0, 5, 6]])


def trained_0_1() -> nn.Module:
    """A model of 0.1.2 whose factors are not zero."""
    torch.manual_seed(7)
    model = Blocks(loralib_0_1())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def base_of(theirs: nn.Module, model: nn.Module) -> nn.Module:
    """`model` with the pretrained weights of `theirs`, and factors of its own."""
    state = {name.replace("conv.conv", "conv"): t for name, t in theirs.state_dict().items() if "lora_" not in name}
    model.load_state_dict(state, strict=False)
    return model


def save(path, model: nn.Module, mode: str):
    path = path / f"{mode}.pt"
    model.train(MODES[mode])
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("assume", [True, False], ids=["told", "found out"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ours_evaluates", [False, True])
def test_03_a_whole_checkpoint_means_the_same_however_it_was_saved(mode, assume, ours_evaluates, tmp_path):
    theirs = trained_0_1()
    expected = theirs(IDS)
    model = base_of(theirs, Blocks(lora))
    bases = {name: t.clone() for name, t in model.state_dict().items() if name.endswith("weight")}
    model.train(not ours_evaluates)
    report = lora.load_legacy(model, save(tmp_path, theirs, mode), (mode == "eval") if assume else None)
    assert report.merged is (mode == "eval")
    assert report.layers == ("embed", "qkv", "proj", "conv")
    assert close(model(IDS), expected, factor=64)
    assert close(model.train()(IDS), expected, factor=64)
    if report.merged:
        assert report.kept == report.layers
        assert all(same_bits(t, bases[name]) for name, t in model.state_dict().items() if name.endswith("weight"))


def test_03_a_merged_checkpoint_is_unmerged_without_the_base_when_told_so(tmp_path):
    theirs = trained_0_1()
    expected, path = theirs(IDS), save(tmp_path, theirs, "eval")
    model = Blocks(lora)
    report = lora.load_legacy(model, path, assume_merged=True)
    assert report.subtracted == report.layers
    assert "from 4 layers ΔW was subtracted" in str(report)
    assert close(model(IDS), expected, factor=256)


def test_0_1_itself_merges_such_a_checkpoint_twice(tmp_path):
    theirs = trained_0_1()
    expected, path = theirs(IDS), save(tmp_path, theirs, "eval")
    again = Blocks(loralib_0_1())
    again.load_state_dict(torch.load(path, weights_only=True))
    assert not close(again.eval()(IDS), expected, factor=1e4)


def test_what_cannot_be_told_is_asked(tmp_path):
    path = save(tmp_path, trained_0_1(), "eval")
    model = Blocks(lora)
    call = lambda: lora.load_legacy(model, path)  # noqa: E731
    expect_refusal(lora.AttachError, "it is unclear whether .*: that of 'embed'.*assume_merged=True or False", model, call)


def test_an_untrained_checkpoint_is_the_same_merged_and_unmerged(tmp_path):
    torch.manual_seed(0)
    theirs = Blocks(loralib_0_1())
    model = base_of(theirs, Blocks(lora))
    report = lora.load_legacy(model, save(tmp_path, theirs, "eval"))
    assert not report.merged
    assert "base weights saved unmerged" in str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_merged_checkpoint_of_low_precision_is_recognised(dtype, tmp_path):
    theirs = trained_0_1().to(dtype)
    model = base_of(theirs, Blocks(lora).to(dtype))
    assert lora.load_legacy(model, save(tmp_path, theirs, "eval")).merged


@pytest.mark.parametrize("with_head", [False, True])
def test_factors_with_and_without_a_head_land(with_head, tmp_path):
    theirs = trained_0_1()
    state = loralib_0_1().lora_state_dict(theirs)
    assert len(state) == 8
    if with_head:
        state |= {name: t for name, t in theirs.state_dict().items() if name.startswith("head")}
    torch.save({"model_state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "lora.pt")
    model = base_of(theirs, Blocks(lora))
    nn.init.zeros_(model.head.weight)
    report = lora.load_legacy(model, tmp_path / "lora.pt")
    assert report.merged is None
    assert report.extra == (("head.weight", "head.bias") if with_head else ())
    assert str(report) == (f"lora.pt: the factors of 4 layers and {2 if with_head else 0} other tensors; no base weights.")
    model.head.load_state_dict(theirs.head.state_dict())
    assert close(model(IDS), theirs(IDS), factor=64)


@pytest.mark.parametrize("layout", ["weight", "conv.weight", "both"])
def test_10_the_three_layouts_of_convolutions_are_read(layout, tmp_path):
    theirs = trained_0_1()
    state = dict(theirs.state_dict())
    if layout != "conv.weight":
        state["conv.weight"] = state["conv.conv.weight"].clone()
        state["conv.bias"] = state["conv.conv.bias"].clone()
    if layout == "weight":
        del state["conv.conv.weight"], state["conv.conv.bias"]
    torch.save(state, tmp_path / "c.pt")
    model = Blocks(lora)
    lora.load_legacy(model, tmp_path / "c.pt", assume_merged=False)
    assert close(model(IDS), theirs(IDS), factor=64)


def test_buffers_of_old_transformers_are_skipped_and_said(tmp_path):
    model = nn.ModuleDict({"attn": nn.Sequential(lora.Linear(4, 4, r=2))})
    state = dict(lora.lora_state_dict(model)) | {"attn.bias": torch.ones(1), "e.position_ids": torch.ones(3)}
    torch.save({f"h.{name}": t for name, t in state.items()}, tmp_path / "c.pt")
    report = lora.load_legacy(nn.ModuleDict({"h": model}), tmp_path / "c.pt")
    assert report.skipped == ("h.attn.bias", "h.e.position_ids")
    assert "skipped 2 buffers that the model no longer has" in str(report)


class Written(dict):
    """The parameters of a layer, noting which are replaced."""

    def __init__(self, held):
        super().__init__(held)
        self.replaced = set()

    def __setitem__(self, name, value):
        self.replaced.add(name)
        super().__setitem__(name, value)

    def update(self, *args, **kwargs):
        self.replaced |= set(dict(*args, **kwargs))
        super().update(*args, **kwargs)


@pytest.mark.parametrize("mode", MODES)
def test_no_parameter_of_a_layer_is_replaced_on_the_way(mode, tmp_path):
    theirs = trained_0_1()
    model = base_of(theirs, Blocks(lora))
    path = save(tmp_path, theirs, mode)
    for layer in model.children():
        layer._parameters = Written(layer._parameters)
    lora.load_legacy(model, path)
    assert not any(layer._parameters.replaced for layer in model.children())


# --- what does not fit ----------------------------------------------------------------------------------------------


def refused(tmp_path, content, error, message, model=None):
    torch.save(content, tmp_path / "c.pt")
    model = model or nn.Sequential(lora.Linear(4, 4, r=2, bias=False))
    expect_refusal(error, message, model, lambda: lora.load_legacy(model, tmp_path / "c.pt"))


def factors(**changes):
    return {"0.lora_A": torch.ones(2, 4), "0.lora_B": torch.ones(4, 2)} | changes


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (factors(**{"0.lora_A": torch.ones(3, 4)}), lora.AttachError, r"0.lora_A: shape \(3, 4\) in the checkpoint, \(2, 4\)"),
        (factors(**{"1.lora_A": torch.ones(2, 4)}), lora.AttachError, "1.lora_A: in the checkpoint, not in the model"),
        ({"0.lora_A": torch.ones(2, 4)}, lora.AttachError, "0.lora_B: in the model, not in the checkpoint"),
        (factors(**{"0.wieght": torch.ones(4, 4)}), lora.AttachError, "0.wieght: in the checkpoint, not in the model"),
        ({"0.weight": torch.ones(4, 4)}, lora.FormatError, "holds no LoRA factors"),
        ({}, lora.FormatError, "holds a dict, not a state dict"),
        ([torch.ones(2)], lora.FormatError, "holds a list, not a state dict"),
        ({"r": 3}, lora.FormatError, "its entry 'r' is a int, not a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_unchanged(content, error, message, tmp_path):
    refused(tmp_path, content, error, message)


def test_a_merged_linear_with_another_mask_is_refused(tmp_path):
    state = lora.MergedLinear(4, 12, r=2, enable_lora=[True, False, True]).state_dict()
    model = nn.Sequential(lora.MergedLinear(4, 12, r=2, enable_lora=[True, True, True]))
    message = r"0.lora_A: shape \(4, 4\) in the checkpoint, \(6, 4\) in the model; 0.lora_B: shape"
    refused(tmp_path, {f"0.{name}": t for name, t in state.items()}, lora.AttachError, message, model)


def test_a_model_without_lora_layers_is_told_what_to_inject(tmp_path):
    message = r"inject a LoRAConfig\(r=…, lora_alpha=…, target_modules=\['0'\]\)"
    refused(tmp_path, factors(), lora.AttachError, message, mlp(4, 4, 4))


class Payload:
    """What would leave a mark if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MARK"],)


def test_a_file_that_is_not_safe_to_read_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    model = nn.Sequential(lora.Linear(4, 4, r=2))
    torch.save({"0.lora_A": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"\x80\x02not a checkpoint")
    (tmp_path / "empty.pt").touch()
    for name in ("evil.pt", "noise.pt", "empty.pt", "missing.pt"):
        expect_refusal(lora.FormatError, name, model, lambda name=name: lora.load_legacy(model, tmp_path / name))
    assert not (tmp_path / "mark").exists()


def test_every_truncation_of_a_checkpoint_is_refused(tmp_path):
    torch.save(factors(), tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    model = nn.Sequential(lora.Linear(4, 4, r=2))
    for length in range(0, len(content), 97):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(lora.FormatError):
            lora.load_legacy(model, tmp_path / "cut.pt")


# --- the checkpoint that 0.1 published ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnli():
    """A randomly initialised RoBERTa-base with the published adapter, and what was loaded."""
    path = data("adapters", "loralib-roberta-base-mnli", "roberta_base_lora_mnli.bin")
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(vocab_size=50, max_position_embeddings=20, num_labels=3, type_vocab_size=1)
    base = transformers.RobertaForSequenceClassification(config).eval()
    model = copy.deepcopy(base)
    config = lora.LoRAConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    lora.inject(model, config)
    return base, model, lora.load_legacy(model, path), torch.load(path, weights_only=True, map_location="cpu")


def mnli_logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(4, 20).reshape(2, 8)).logits


def test_the_published_mnli_adapter_lands(mnli):
    _, model, report, published = mnli
    assert str(report) == "roberta_base_lora_mnli.bin: the factors of 24 layers and 4 other tensors; no base weights."
    state = model.state_dict()
    assert len(published) == 52
    assert all(same_bits(state[name], tensor) for name, tensor in published.items())
    adapter = lora.extract(model)
    assert set(adapter.tensors) == {name for name in published if name.startswith("classifier.")}
    assert {update.scaling for update in adapter.layers.values()} == {2.0}
    assert adapter.num_parameters() == 294_912


def test_the_published_mnli_adapter_computes_the_same_merged(mnli):
    base, model, *_ = mnli
    unmerged = mnli_logits(model)
    with lora.merged(model):
        assert (mnli_logits(model) - unmerged).abs().max() < 1e-5
    assert (mnli_logits(base) - unmerged).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_the_published_mnli_adapter_computes_the_same_in_peft(mnli, tmp_path):
    base, model, *_ = mnli
    lora.save(lora.extract(model), tmp_path)
    theirs = library("peft").PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert (mnli_logits(theirs) - mnli_logits(model)).abs().max() < 1e-5


def test_a_small_roberta_of_0_1_lands(tmp_path):
    model = tiny("Roberta")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query", "value"]))
    randomize(model)
    torch.save(lora.lora_state_dict(model), tmp_path / "c.bin")
    other = tiny("Roberta")
    lora.inject(other, lora.LoRAConfig(r=2, target_modules=["query", "value"]))
    lora.load_legacy(other, tmp_path / "c.bin")
    assert all(
        same_bits(a, b) for a, b in zip(lora.lora_state_dict(other).values(), lora.lora_state_dict(model).values(), strict=True)
    )
