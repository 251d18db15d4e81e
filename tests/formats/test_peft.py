"""PEFT's folder: what we write PEFT reads, what PEFT writes we read, and what is damaged or foreign is refused."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import loralib as lora
from hf import HEADS, QUERY_VALUE, logits, tiny
from loralib.surgery.survey import Survey
from loralib.surgery.trainable import trained_names
from models import close, injected, mlp, randomize, same_bits, snapshot
from peers import data, library

# PEFT 0.21 uses names that transformers 5 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FAMILIES = ["Bert", "DistilBert", "Roberta"]

CONFIGS = {
    "plain": {},
    "bias lora_only": {"bias": "lora_only"},
    "bias all": {"bias": "all"},
    "ranks": {"rank_pattern": {"0.*": 3}, "alpha_pattern": {"^.*1.*": 5}},
    "rslora": {"use_rslora": True},
    "head": {"modules_to_save": "head"},
    "head and all biases": {"modules_to_save": "head", "bias": "all"},
}


def config_for(family: str, case: str) -> dict:
    config = {"r": 2, "lora_alpha": 6, "target_modules": list(QUERY_VALUE[family])} | CONFIGS[case]
    return config | ({"modules_to_save": list(HEADS[family])} if "modules_to_save" in config else {})


def shake(model: nn.Module, is_trained) -> None:
    """Stand in for training: move every trained floating-point tensor a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if is_trained(name) and tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))


def ours(model: nn.Module, **config) -> nn.Module:
    """The model with an update of ours, as if trained."""
    lora.inject(model, lora.LoRAConfig(**config))
    names = trained_names(Survey(model))
    shake(model, names.__contains__)
    return model


def theirs(model: nn.Module, **config) -> nn.Module:
    """The model with an update of PEFT's, as if trained."""
    peft = library("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config)).eval()
    names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    shake(wrapped, lambda name: name in names or ("modules_to_save.default" in name and "running" in name))
    return wrapped


def in_peft(model: nn.Module, folder: Path) -> nn.Module:
    return library("peft").PeftModel.from_pretrained(model, folder).eval()


def same_up_to_1e5(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5)


# --- between the two libraries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CONFIGS)
def test_peft_computes_with_our_folder_what_we_compute(family, case, tmp_path):
    base = logits(tiny(family))
    model = ours(tiny(family), **config_for(family, case))
    lora.save(lora.extract(model), tmp_path)
    result = logits(in_peft(tiny(family), tmp_path))
    assert same_up_to_1e5(result, logits(model))
    assert not close(result, base, factor=1e3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_we_compute_with_pefts_folder_what_peft_computes(family, case, task_type, tmp_path):
    model = theirs(tiny(family), task_type=task_type, **config_for(family, case))
    model.save_pretrained(tmp_path)
    mine = tiny(family)
    before = snapshot(mine)
    adapter = lora.load(tmp_path)
    assert len(lora.attach(mine, adapter)) == 4
    assert same_up_to_1e5(logits(mine), logits(model))
    assert adapter.metadata.get("task_type") == task_type
    lora.eject(mine)
    assert snapshot(mine) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CONFIGS)
def test_an_adapter_survives_the_round_trip(family, case, tmp_path):
    model = ours(tiny(family), **config_for(family, case))
    adapter = lora.extract(model).with_metadata({"base_model_name_or_path": "some/model", "task_type": "SEQ_CLS"})
    lora.save(adapter, tmp_path)
    read = lora.load(tmp_path)
    assert read.metadata == adapter.metadata
    assert read.config == adapter.config
    assert read.layers.keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        assert same_bits(read.layers[name].A, update.A)
        assert same_bits(read.layers[name].B, update.B)
        assert read.layers[name].scaling == update.scaling
    assert read.tensors.keys() == adapter.tensors.keys()
    assert all(same_bits(read.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    other = tiny(family)
    lora.attach(other, read)
    assert same_bits(logits(other), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_keep_their_dtype(dtype, tmp_path):
    adapter = lora.extract(injected(mlp(6, 5))).to(dtype=dtype)
    lora.save(adapter, tmp_path)
    assert lora.load(tmp_path).layers["0"].A.dtype == dtype


def test_factors_of_bfloat16_compute_the_same_in_peft(tmp_path):
    model = tiny("Bert")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"]), dtype=torch.bfloat16)
    randomize(model)
    lora.save(lora.extract(model), tmp_path)
    assert same_up_to_1e5(logits(in_peft(tiny("Bert"), tmp_path)), logits(model))


class Normed(nn.Module):
    """A layer to adapt and a normalization, with running statistics, to train."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x):
        return self.head(self.lin(x))


def test_running_statistics_go_both_ways(tmp_path):
    config = {"r": 2, "target_modules": ["lin"], "modules_to_save": ["head"]}
    x = torch.randn(5, 4)
    model = ours(Normed().eval(), **config)
    lora.save(lora.extract(model), tmp_path / "ours")
    assert same_up_to_1e5(in_peft(Normed(), tmp_path / "ours")(x), model(x))
    peft_model = theirs(Normed().eval(), **config)
    peft_model.save_pretrained(tmp_path / "theirs")
    mine = Normed().eval()
    lora.attach(mine, lora.load(tmp_path / "theirs"))
    assert "head.0.running_mean" in lora.extract(mine).tensors
    assert same_up_to_1e5(mine(x), peft_model(x))


class SameEndings(nn.Module):
    """One layer's name ends another's, so a pattern that is not exact would fit both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(4, 4)
        self.enc = nn.ModuleDict({"proj": nn.Linear(4, 4), "other": nn.Linear(4, 4)})

    def forward(self, x):
        return self.enc["other"](self.enc["proj"](self.proj(x)).tanh())


@pytest.mark.parametrize("pattern", [{"alpha_pattern": {"^proj": 20}}, {"rank_pattern": {"^proj": 3}}])
def test_a_layer_whose_name_ends_anothers_keeps_its_own_rank_and_alpha(pattern, tmp_path):
    x = torch.randn(5, 4)
    model = ours(SameEndings(), r=2, **pattern)
    lora.save(lora.extract(model), tmp_path)
    other = SameEndings()
    lora.attach(other, lora.load(tmp_path))
    assert same_bits(other(x), model(x))
    assert same_up_to_1e5(in_peft(SameEndings(), tmp_path)(x), model(x))


def test_factors_that_share_memory_can_be_saved(tmp_path):
    update = lora.LoRAUpdate(torch.ones(1, 4), torch.ones(4, 1), lora_alpha=1)
    lora.save(lora.Adapter(lora.LoRAConfig(r=1), {"a": update, "b": update}), tmp_path)
    assert same_bits(lora.load(tmp_path).layers["b"].A, update.A)


def test_a_transposed_view_is_saved_as_what_it_shows(tmp_path):
    update = lora.LoRAUpdate(torch.randn(4, 2).t(), torch.randn(2, 4).t(), lora_alpha=1)
    lora.save(lora.Adapter(lora.LoRAConfig(r=2), {"a": update}), tmp_path)
    assert torch.equal(lora.load(tmp_path).layers["a"].A, update.A)


# --- adapters that others made --------------------------------------------------------------------------------------


def test_a_published_adapter_of_distilbert_computes_what_peft_computes():
    folder = data("adapters", "distilbert-imdb")
    transformers = library("transformers")
    torch.manual_seed(0)
    with torch.no_grad():
        model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig()).eval()
    base = logits(model)
    adapter = lora.load(folder)
    stated = json.loads((folder / CONFIG).read_text())
    assert {update.r for update in adapter.layers.values()} == {stated["r"]}
    assert {update.scaling for update in adapter.layers.values()} == {stated["lora_alpha"] / stated["r"]}
    assert set(adapter.tensors) == {f"{m}.{t}" for m in ("pre_classifier", "classifier") for t in ("weight", "bias")} or set(
        adapter.tensors
    ) == {"classifier.weight", "classifier.bias"}
    assert len(lora.attach(model, adapter)) == 2 * model.config.n_layers
    result = logits(model)
    lora.eject(model)
    assert same_bits(logits(model), base)
    assert same_up_to_1e5(logits(in_peft(model, folder)), result)
    assert not close(result, base, factor=1e3)


def test_an_adapter_of_gpt2_lands_on_its_fused_projections():
    adapter = lora.load(data("adapters", "gpt2-anirudh"))
    transformers = library("transformers")
    config = transformers.GPT2Config(n_layer=12, n_positions=8, num_labels=6)
    with torch.device("meta"):
        model = transformers.GPT2ForSequenceClassification(config)
    assert set(lora.attach(model, adapter)) == {f"transformer.h.{i}.attn.c_attn" for i in range(12)}
    assert adapter.config.fan_in_fan_out


# --- files that are damaged, foreign or hostile ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    lora.save(lora.extract(injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"])), tmp_path)
    return tmp_path


def edit_config(folder: Path, **values) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder: Path, change) -> None:
    tensors = safetensors.torch.load_file(folder / TENSORS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS)


def refused(path: Path, message: str) -> None:
    with pytest.raises(lora.FormatError, match=message):
        lora.load(path)


KEY = "base_model.model.0.lora_{}.weight"


def test_the_folder_reads_before_it_is_damaged(folder):
    assert lora.load(folder).layers.keys() == {"0"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "use_dora=True, but 0 of 1 layers have magnitudes"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.w"]}, "no factors for target_parameters"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices=.*holds no token rows"),
        ({"invented_next_year": {"a": 1}}, "invented_next_year"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'; only LORA"),
        ({"peft_type": None}, "peft_type=None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base weights"),
        ({"r": 3}, "layer '0' has factors of rank 2, but adapter_config.json says r=3"),
        ({"rank_pattern": {"0": 4}}, "says r=4"),
        ({"r": 0}, "r=0: the rank must be a positive integer"),
        ({"r": "2"}, "r='2'"),
        ({"lora_alpha": "big"}, "lora_alpha='big'"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"rank_pattern": [1]}, "rank_pattern=.*must be a dictionary"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: .* is neither a name nor a regular expression"),
        ({"target_modules": 5}, "target_modules=5"),
        ({"bias": {}}, "bias={}"),
    ],
)
def test_configurations_that_cannot_be_represented_are_refused_by_name(folder, values, message):
    edit_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"r": }', "[" * 100_000, "\xff"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    (folder / CONFIG).write_text(text, encoding="latin-1")
    refused(folder, f"{CONFIG} is not (JSON|a JSON object).*fetch or save it again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY.format("B")), "layer '0' has no lora_B"),
        (lambda t: t.pop(KEY.format("A")), "layer '0' has no lora_A"),
        (lambda t: t.update({KEY.format("A"): torch.ones(2, 6, dtype=torch.int32)}), "factors of dtype torch.int32"),
        (lambda t: t.update({KEY.format("A"): torch.ones(2, 6, dtype=torch.bool)}), "factors of dtype torch.bool"),
        (lambda t: t.update({KEY.format("A"): torch.ones(2)}), "are not factors of one update"),
        (lambda t: t.update({KEY.format("A"): torch.ones(3, 6)}), "are not factors of one update"),
        (lambda t: t.update({"0.lora_A.weight": torch.ones(2)}), r"tensor '0.lora_A.weight' has no PEFT name"),
        (
            lambda t: t.update({"base_model.model.0.lora_magnitude_vector": torch.ones(5)}),
            "use_dora=False, but 1 of 1 layers have magnitudes",
        ),
        (lambda t: t.update({"base_model.model.e.lora_embedding_A": torch.ones(2, 5)}), "layer 'e' has no lora_embedding_B"),
        (lambda t: t.clear(), "holds no LoRA factors"),
    ],
)
def test_tensors_that_make_no_adapter_are_refused(folder, change, message):
    edit_tensors(folder, change)
    refused(folder, message)


def test_every_truncation_of_the_tensors_is_refused(folder):
    content = (folder / TENSORS).read_bytes()
    for length in (0, 1, 7, 8, 9, len(content) // 4, len(content) // 2, len(content) - 1):
        (folder / TENSORS).write_bytes(content[:length])
        refused(folder, "is not a whole safetensors file .*fetch or save it again")


def test_a_header_that_promises_too_much_is_refused_before_anything_is_allocated(folder):
    header = json.dumps({KEY.format("A"): {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    for size in (len(header), 2**62):
        (folder / TENSORS).write_bytes(size.to_bytes(8, "little") + header)
        refused(folder, "is not a whole safetensors file")


class Payload:
    """What an attacker pickles: unpickling it writes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').close()",)


def test_a_pickle_in_disguise_is_refused_and_does_not_run(folder, tmp_path):
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Payload(marker))
    pickle.loads(hostile)
    assert marker.exists(), "the payload works"
    marker.unlink()
    torch.save(Payload(marker), tmp_path / "saved")
    for content in (hostile, (tmp_path / "saved").read_bytes()):
        (folder / TENSORS).write_bytes(content)
        refused(folder, "is not a whole safetensors file")
        (folder / TENSORS).unlink()
        (folder / "adapter_model.bin").write_bytes(content)
        refused(folder, "is not a checkpoint of tensors that is safe to read")
    assert not marker.exists()


def test_what_is_not_there_is_said(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist; give the path of a saved adapter")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", rf"holds no adapter in a known format: a PEFT folder has {CONFIG} and {TENSORS}")
    refused(folder / CONFIG, "give the folder")
    (folder / TENSORS).unlink()
    refused(folder, f"has {CONFIG} but no {TENSORS}")


# --- writing --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_and_nothing_is_written(tmp_path):
    adapter = lora.extract(injected(mlp(6, 5)))
    update = adapter.layers["0"]
    mixed = lora.LoRAUpdate(update.A, update.B, update.lora_alpha, use_rslora=True)
    for value, message in (
        (lora.Adapter(adapter.config, {}), "The adapter adapts no layer"),
        (lora.Adapter(adapter.config, {"0": update, "1": mixed}), "which PEFT cannot hold"),
    ):
        with pytest.raises(lora.FormatError, match=f"{message}.*Nothing was written"):
            lora.save(value, tmp_path / "out")
    with pytest.raises(lora.FormatError, match=r"format='pfet' is not known; choose one of peft, safetensors"):
        lora.save(adapter, tmp_path / "out", format="pfet")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_the_folder_that_was_loaded_works(folder):
    adapter = lora.load(folder)
    copied = copy.deepcopy(adapter)
    lora.save(adapter, folder)
    assert same_bits(lora.load(folder).layers["0"].A, copied.layers["0"].A)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS]


def test_who_reads_while_an_adapter_is_saved_sees_a_whole_file(folder):
    before = (folder / TENSORS).read_bytes()
    with (folder / TENSORS).open("rb") as reader:
        lora.save(lora.extract(injected(mlp(6, 5), r=3)), folder)
        assert reader.read() == before
    assert (folder / TENSORS).read_bytes() != before


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    adapter = lora.extract(injected(mlp(6, 5, 4)))
    for name in ("a", "b"):
        lora.save(adapter, tmp_path / name)
    for file in (CONFIG, TENSORS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


SAVE_ON_A_FULL_DISK = """
import resource, sys, torch, loralib as lora
update = lora.LoRAUpdate(torch.ones(8, 999), torch.ones(999, 8), lora_alpha=1)
adapter = lora.Adapter(lora.LoRAConfig(r=8), {"0": update})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    lora.save(adapter, sys.argv[1])
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_adapter_and_names_the_file(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = subprocess.run([sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.split()[1:] == [str(folder / TENSORS)]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert lora.load(folder).layers["0"].r == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        lora.save(lora.extract(injected(mlp(6, 5))), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_interrupt_leaves_no_temporary_file(folder, monkeypatch):
    from loralib.storage import atomic

    def interrupt(descriptor):
        raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(atomic.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lora.save(lora.extract(injected(mlp(6, 5))), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
